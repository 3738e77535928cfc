"""The SQLite file of an index: a table of keys, their rows in the FAISS file and metadata, in the order of adding."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from finetune.errors import InputError
from finetune.files.writing import replacing

_TABLE = "CREATE TABLE entries (place INTEGER PRIMARY KEY, key BLOB NOT NULL, vector INTEGER NOT NULL, metadata TEXT)"
# Steps of SQLite's virtual machine: a row takes 7, and the schema some hundreds.
_STEPS_A_ROW, _MORE_STEPS, _STEPS_AT_ONCE = 20, 100_000, 10_000


class Entry(NamedTuple):
    """A key, the row of its vector, and its metadata as JSON text, None without."""

    key: str
    row: int
    metadata: str | None


def write_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Keys are stored as bytes: SQLite's text allows no lone surrogates, which file names may contain."""
    rows = ((entry.key.encode(errors="surrogatepass"), entry.row, entry.metadata) for entry in entries)
    with replacing(path) as temporary:
        try:
            temporary.unlink(missing_ok=True)
            with closing(sqlite3.connect(temporary)) as database:
                # No journal: the file is not in use before it is complete and synced.
                database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
                with database:
                    database.execute(_TABLE)
                    database.executemany("INSERT INTO entries (key, vector, metadata) VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be written: {error}; make room for it and start again") from error


def read_entries(path: Path, rows: int) -> list[Entry]:
    """The entries of an index with this number of rows in its FAISS file.

    The file may have been made to harm. It must hold the one table that is written here, so no views and no triggers.
    Reading stops at more steps, rows or bytes than an honest file of its size takes.

    Raises:
        InputError: If it cannot be read, or holds anything else.
    """
    # Read-only: a file that a writer has just deleted is an error, not a new, empty database.
    address = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
    try:
        size = path.stat().st_size
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, max(size, 4096))
            left = repeat(0, (_MORE_STEPS + _STEPS_A_ROW * rows) // _STEPS_AT_ONCE + 1)
            database.set_progress_handler(lambda: next(left, 1), _STEPS_AT_ONCE)  # 1 ends the statement
            schema = database.execute("SELECT type, name, sql FROM sqlite_master LIMIT 2").fetchall()
            if schema != [("table", "entries", _TABLE)]:
                raise ValueError("it does not hold the one table of an index")
            found = database.execute("SELECT key, vector, metadata FROM entries ORDER BY place LIMIT ?", (rows + 1,))
            return list(_checked(found, rows, size))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (sqlite3.Error, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; it may be damaged") from error


def _checked(found: Iterable[tuple[Any, Any, Any]], rows: int, size: int) -> Iterator[Entry]:
    """Entries from what the table holds. ValueError for other types, rows out of bounds, or too much of it."""
    total = 0
    for number, (key, row, metadata) in enumerate(found, 1):
        if type(key) is not bytes or not key:
            raise ValueError("a key is not text")
        if type(row) is not int or not 0 <= row < rows:
            raise ValueError("a row is not in the FAISS file")
        if metadata is not None and type(metadata) is not str:
            raise ValueError("the metadata of a key are not text")
        total += len(key) + (0 if metadata is None else len(metadata))
        # Pages of a damaged file can be reached many times, and a few of them give endless rows.
        if number > rows or total > size:
            raise ValueError("it holds more than its size allows")
        yield Entry(key.decode(errors="surrogatepass"), row, metadata)
