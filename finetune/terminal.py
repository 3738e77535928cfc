"""Names and messages made safe to print: nothing in them moves the cursor, starts a line or reorders the text."""

from __future__ import annotations

import unicodedata

from rich.markup import escape

# Cc: control characters, such as escape and newline; Cs: bytes of a file name in another encoding; Zl, Zp: separators
# of lines and paragraphs.
_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")
# They have no shape of their own: marks of the direction of text, which reorder what stands beside them, spaces without
# width and marks of the byte order, which make two different names look the same.
_UNSEEN = frozenset("\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff")


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
    return "".join(_escaped(sign) for sign in name)


def in_markup(name: str) -> str:
    """`printable(name)` for the markup of rich: words in square brackets stay words."""
    return escape(printable(name))


def _escaped(sign: str) -> str:
    if unicodedata.category(sign) in _CATEGORIES or sign in _UNSEEN:
        return sign.encode("unicode_escape").decode()
    return sign
