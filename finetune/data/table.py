"""Pictures that a table names: a CSV file, a data frame, or a list of (path, label) or (path, label, split)."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO, runtime_checkable

from finetune.data.folder import IN_MEMORY, SPLIT_NAMES, Listing, Sample, check_listing, list_folder
from finetune.errors import InputError
from finetune.files.tables import plain_text

COLUMNS = ("path", "label", "split")
TABLES = (".csv", ".tsv")
_DELIMITERS = ",;\t"
_FORM = "path,label or path,label,split"


@runtime_checkable
class DataFrame(Protocol):
    """The common part of pandas' and polars' data frames: iterable columns by name."""

    @property
    def columns(self) -> Any: ...
    def __getitem__(self, column: Any) -> Any: ...


# A folder, a CSV file, or rows in memory.
Source = str | os.PathLike[str] | DataFrame | Sequence[Sequence[Any]]


def list_pictures(source: Source, *, to_train: bool = True) -> Listing:
    """The pictures that `source` names, with their classes, without reading one of them.

    Args:
        source: A folder as `list_folder` takes it; a CSV file with a header `path,label` or `path,label,split`, in
            UTF-8, whose paths are relative to the file's folder (a ' before = + - @ or ' is left out: the tables that
            this project writes have it); a pandas or polars data frame with these columns; or a list of (path, label)
            or (path, label, split). Paths in frames and lists are relative to the working directory. split: train, val
            or test, empty or None where it is to be made; other columns are ignored.
        to_train: Also check what training needs: two classes, each with pictures to train on.

    Returns:
        The listing, in the order of the paths.

    Raises:
        InputError: Where the source cannot be used; for a table the message names the row.

    Example:
        >>> list_pictures([("a.jpg", "cat"), ("b.jpg", "dog")])  # doctest: +SKIP
        Listing(...)
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            return list_folder(path, to_train=to_train)
        if path.suffix.lower() not in TABLES:
            raise InputError(f"{path} is neither a folder nor a table: a table ends in {' or '.join(TABLES)}")
        return _listing(path.parent, str(path.resolve()), _rows_of_file(path), to_train)
    rows = _rows_of_frame(source) if isinstance(source, DataFrame) else _rows_of_list(source)
    return _listing(Path.cwd(), IN_MEMORY, rows, to_train)


def read_paths(table: Path) -> Iterator[str]:
    """The column `path` of a CSV file, one row at a time; rows without a path are left out. InputError for a damaged
    table, at the row where it is damaged."""
    return (row.path for row in _rows_of_file(table, ("path",)) if row.path)


@dataclass(frozen=True)
class _Row:
    """A row of a table. `where` names it in errors."""

    where: str
    path: str
    label: str
    split: str


def _listing(root: Path, table: str, rows: Iterable[_Row], to_train: bool) -> Listing:
    samples: dict[str, Sample] = {}
    first: dict[str, _Row] = {}
    repeated = 0
    for row in rows:
        sample = _sample(root, row)
        key = os.path.abspath(root / sample.path)
        if key not in samples:
            samples[key], first[key] = sample, row
            continue
        before = samples[key]
        if (before.label, before.split) != (sample.label, sample.split):
            what = "label" if before.label != sample.label else "split"
            raise InputError(
                f"{first[key].where} and {row.where} name one picture, {sample.path}, with two {what}s: "
                f"{getattr(before, what)!r} and {getattr(sample, what)!r}; keep one of them"
            )
        repeated += 1
    notes = (f"Rows that repeat a picture, ignored: {repeated}.",) if repeated else ()
    listing = Listing(root, tuple(sorted(samples.values(), key=lambda sample: sample.path)), notes, table)
    if not samples:
        raise InputError(f"{listing.name} names no pictures; give rows of {_FORM}")
    check_listing(listing, to_train=to_train)
    return listing


def _sample(root: Path, row: _Row) -> Sample:
    if not row.path:
        raise InputError(f"{row.where} has no path")
    if not row.label:
        raise InputError(f"{row.where} has no label, for {row.path}")
    split = None
    if row.split:
        split = SPLIT_NAMES.get(row.split.casefold())
        if split is None:
            raise InputError(f"{row.where} has the split {row.split!r}; it must be train, val, test or empty")
    path = os.path.normpath(row.path)
    try:
        status = os.stat(root / path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        missing = isinstance(error, FileNotFoundError)
        why = f"{root / path} does not exist" if missing else f"{root / path} cannot be read: {reason}"
        raise InputError(f"{row.where}: {why}") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{row.where}: {root / path} is a folder, not a picture")
    return Sample(Path(path).as_posix(), row.label, split, status.st_size)


def _rows_of_file(path: Path, needed: Sequence[str] = ("path", "label")) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows_of_text(path, file, needed)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {_first_undecodable(path)}); save it as CSV in UTF-8") from error


def _rows_of_text(path: Path, file: TextIO, needed: Sequence[str]) -> Iterator[_Row]:
    header = file.readline()
    file.seek(0)
    # Spreadsheets write semicolons in countries whose decimal sign is a comma.
    reader = csv.reader(file, delimiter=max(_DELIMITERS, key=header.count), strict=True)
    try:
        names = [name.strip().casefold() for name in next(reader, [])]
        _check_columns(str(path), names, needed)
        for number, cells in enumerate(reader, 2):  # as a spreadsheet counts: the header is row 1
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, row {number}"
            if len(cells) > len(names):
                raise InputError(f"{where} has {len(cells)} cells, the header {len(names)}; quote cells with commas")
            found = dict(zip(names, (plain_text(cell.strip()) for cell in cells), strict=False))
            yield _Row(where, *(found.get(column, "") for column in COLUMNS))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}, is not valid CSV: {error}") from error


def _first_undecodable(path: Path) -> int:
    """Position of the first byte that is not UTF-8. Text files report it within what they have read last."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _rows_of_frame(frame: DataFrame) -> Iterator[_Row]:
    names = [str(name) for name in frame.columns]
    _check_columns("the data frame", names, ("path", "label"))
    columns = [list(frame[column]) for column in COLUMNS if column in names]
    for number, cells in enumerate(zip(*columns, strict=True)):
        yield _row(f"row {number} of the data frame (the first is 0)", cells)


def _rows_of_list(rows: Sequence[Sequence[Any]]) -> Iterator[_Row]:
    if not isinstance(rows, Iterable):
        raise InputError(
            f"pictures must be a folder, a CSV file, a data frame or a list of (path, label), not {type(rows).__name__}"
        )
    for number, cells in enumerate(rows):
        where = f"entry {number} of the list (the first is 0)"
        if isinstance(cells, (str, bytes, os.PathLike)) or not isinstance(cells, Sequence) or len(cells) not in (2, 3):
            raise InputError(f"{where} is {cells!r}; it must be (path, label) or (path, label, split)")
        yield _row(where, cells)


def _row(where: str, cells: Sequence[Any]) -> _Row:
    path, label, split = (*(_text(cell) for cell in cells), "")[:3]
    return _Row(where, path, label, split)


def _text(cell: Any) -> str:
    """A cell as text; "" for a missing value of any kind."""
    if isinstance(cell, os.PathLike):
        return os.fsdecode(cell)
    text = str(cell)
    return text.strip() if isinstance(cell, str) or text not in ("None", "nan", "NaN", "<NA>", "NaT") else ""


def _check_columns(what: str, names: Sequence[str], needed: Sequence[str]) -> None:
    for column in needed:
        if column not in names:
            found = ", ".join(map(repr, names)) or "none"
            form = _FORM if "label" in needed else "path, or path and other columns"
            raise InputError(f"{what} has no column {column!r} but {found}; its header must be {form}")
    for column in COLUMNS:
        if list(names).count(column) > 1:
            raise InputError(f"{what} has two columns {column!r}")
