"""The cards of the data sets as pages."""

from __future__ import annotations

import re
from pathlib import Path


def write_data_pages(cards: Path, folder: Path) -> None:
    """Copy every card of `cards` to `folder`, the overview as index.md with a list of the others."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for card in sorted(cards.glob("*.md")):
        text = re.sub(r"\[(\w[\w-]*\.json)\]\(\S+?\)", r"`data/\1`", card.read_text(encoding="utf-8"))
        if card.name != "README.md":
            names.append(card.stem)
            (folder / card.name).write_text(text, encoding="utf-8")
    overview = (cards / "README.md").read_text(encoding="utf-8").replace("# Data\n", "# Data sets\n", 1)
    pages = "\n".join(["```{toctree}", ":hidden:", "", *names, "```", ""])
    (folder / "index.md").write_text(f"{overview}\n{pages}", encoding="utf-8")
