"""Names of files and classes that would forge lines, clear the terminal or reorder text if they were printed raw."""

from __future__ import annotations

# They erase the screen, forge a line, hide a beginning, reorder text, use controls of 8 bits, markup and emoji.
NAMES = (
    "cat\x1b[2J\x1b[31mred",
    "cat\nfinetune: all is well",
    "cat\rdog",
    "gpj.\u202egnp",
    "cat\x9b2J",
    "[red]cat[bold]",
    ":cat:",
    "cat\u2028dog",
)
RAW = ("\x1b[2J", "\x1b[31m", "\r", "\u202e", "\x9b", "\u2028", "\nfinetune: all is well", "\U0001f431")


def assert_nothing_raw(text: str) -> None:
    for sign in RAW:
        assert sign not in text, f"{sign!r} is printed raw in {text!r}"
