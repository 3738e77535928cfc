"""How sphinx-gallery shows the tutorials: their order, and the style of the pictures that they draw."""

from __future__ import annotations

import re
from typing import Any

# Small pictures, with letters that can be read on a telephone. White on a dark page too.
STYLE: dict[str, Any] = {
    "figure.figsize": (5.2, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": 11,
    "axes.titlesize": 11,
    "figure.titlesize": 11,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def set_style(gallery: dict[str, Any], script: str) -> None:
    """Called before each tutorial."""
    import matplotlib

    matplotlib.rcParams.update(STYLE)


class Numbered:
    """Sort key of a tutorial: the number in the name of its file, so that 10 comes after 9."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return "Numbered"

    def __call__(self, name: str) -> int:
        found = re.search(r"\d+", name)
        return int(found[0]) if found else 0
