"""Names and messages made safe to print: nothing in them moves the cursor, starts a line or reorders the text."""

from __future__ import annotations

import re
import unicodedata

from rich.markup import escape

# Cc: control characters, such as escape and newline; Cs: bytes of a file name in another encoding; Zl, Zp: separators
# of lines and paragraphs.
_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
# They have no shape of their own: marks of the direction of text, which reorder what stands beside them, spaces without
# width and marks of the byte order, which make two different names look the same.
_UNSEEN = frozenset("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")

# Characters of a foreign message that an error shows.
_SHOWN = 200
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def printable(name: str) -> str:
    """`name` on one line, with control characters and marks without a shape as backslash escapes.

    Names of files and classes come from folders, archives and galleries that somebody else may have made. Printed as
    they are, they could forge lines, hide text or give orders to the terminal.

    Example:
        >>> printable("cat\\n\\x1b[2Jdog")
        'cat\\\\n\\\\x1b[2Jdog'
    """
    if name.isprintable():  # of ordinary names: fast, and stricter than the rest
        return name
    return "".join(_escape(sign) if _is_unsafe(sign) else sign for sign in name)


def in_markup(name: str) -> str:
    """`printable(name)` for the markup of rich: words in square brackets stay words."""
    return escape(printable(name))


def in_one_line(text: str) -> str:
    """Foreign words for an error, in one line of at most 200 characters, without the joiners that names may have."""
    shown = "".join(sign if sign.isprintable() else _escape(sign) for sign in " ".join(text.split()))
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def reason_of(error: BaseException) -> str:
    """The first line of the error that `error` was raised from, without terminal colours, for an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = _COLOUR.sub("", str(error)).strip().splitlines()
    return in_one_line(lines[0] if lines else type(error).__name__)


def _is_unsafe(sign: str) -> bool:
    return unicodedata.category(sign) in _CATEGORIES or sign in _UNSEEN


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode()
