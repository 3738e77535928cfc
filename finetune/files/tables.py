"""CSV tables, written so that spreadsheets take no cell for a formula, and read back."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from finetune.errors import InputError
from finetune.files.writing import replacing

# Spreadsheets run a cell that begins with one of these as a formula. The wide signs are those of Japanese keyboards.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
# Put before such a cell, and before a cell that begins with it, so that reading can take it away again. Spreadsheets
# show such a cell as text; quotes alone would not help, because a quoted formula is run too.
_PREFIX = "'"
_GUARDED = (*_FORMULA, _PREFIX)
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
# A byte of a file name in another encoding is a lone surrogate in Python, written as backslash, "udc" and two digits.
# Backslashes before it, and before text that looks like it, are doubled, so that reading finds out which it was.
_BYTE = re.compile(r"(\\*)(?:([\udc80-\udcff])|(?<=\\)(udc[89a-f][0-9a-f]))")
_ESCAPED_BYTE = re.compile(r"(\\+)udc([89a-f][0-9a-f])")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table, complete or not at all. `rows` may be a stream: no more than one is in memory.

    A text that a spreadsheet would run as a formula, because it begins with = + - @, a tab or a line break, gets a
    ' in front, and so does a text that begins with '. Numbers stay as they are. `read_csv` takes the ' away, and brings
    bytes of file names in other encodings back, which are written as backslash escapes.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(_Lines(file), lineterminator=_Lines.END)
        writer.writerow(header)
        for row in rows:
            writer.writerow([_guarded(cell) for cell in row])


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header that names these `columns`, and maybe others, as `write_csv` got them.
    InputError when it is missing or damaged."""
    if path.exists() and not path.is_file():  # reading a pipe would never end
        raise InputError(f"{path} is not a file; it may be damaged")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, there = list(reader), set(reader.fieldnames or ())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is no CSV table ({error}); it may be damaged") from error
    lacking = [column for column in columns if column not in there]
    if lacking:
        raise InputError(f"{path} has no column {lacking[0]}; it may be damaged")
    if any(row[column] is None for row in rows for column in columns):
        raise InputError(f"{path} has a row that is cut short; it may be damaged")
    return [{name: _read(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows]


def plain_text(cell: str) -> str:
    """A cell of a table that `write_csv` may have written, without the ' that it puts in front."""
    return cell[1:] if cell.startswith(_PREFIX) and cell[1:].startswith(_GUARDED) else cell


class _Lines:
    """Writes rows that end in \\n. csv quotes a line break in a cell only if it is in the end of rows, so they come
    with both of its signs."""

    END = "\r\n"

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix(self.END) + "\n")


def _read(cell: str) -> str:
    return plain_text(_ESCAPED_BYTE.sub(_byte, cell) if "\\udc" in cell else cell)


def _byte(escape: re.Match[str]) -> str:
    backslashes, digits = escape.groups()
    kept = "\\" * (len(backslashes) // 2)
    return kept + (chr(0xDC00 + int(digits, 16)) if len(backslashes) % 2 else f"udc{digits}")


def _escape(byte: re.Match[str]) -> str:
    backslashes, sign, text = byte.groups()
    return 2 * backslashes + (f"\\udc{ord(sign) & 0xFF:02x}" if sign else text)


def _guarded(cell: Any) -> Any:
    if not isinstance(cell, str):
        return cell
    cell = _BYTE.sub(_escape, cell)
    return _PREFIX + cell if cell.startswith(_GUARDED) and not _NUMBER.fullmatch(cell) else cell
