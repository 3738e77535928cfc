"""The description of the package: README.md, readable where its relative links and pictures lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)[^)]*\)")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)]+)\)")
NOTE = "The documentation and the benchmarks come with the source, not with the package."


class Readme(MetadataHookInterface):
    """Sets `readme`, called by hatchling."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        source = metadata.get("urls", {}).get("Source")
        metadata["readme"] = {"content-type": "text/markdown", "text": description(text, source)}


def description(readme: str, source: str | None = None) -> str:
    """The README with absolute links below `source`, or without links into the repository where there is none.

    A picture of the repository becomes its description in words.
    """
    text = _PICTURE.sub(lambda picture: f"*{picture[1]}*", readme)
    if source is not None:
        return _LINK.sub(lambda link: f"[{link[1]}]({source.rstrip('/')}/{link[2]})", text)
    return f"{_LINK.sub(lambda link: link[1], text).rstrip()}\n\n{NOTE}\n"
