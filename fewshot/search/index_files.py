"""The folder of a saved index.

index.json              format, width, kind, fingerprint, ..., and the current files with their sizes and checksums
vectors-<token>.faiss   the vectors, in FAISS's format
keys-<token>.sqlite     a table of keys, their rows in the FAISS file and metadata, in the order of adding

A save writes both files under a new token, replaces index.json and deletes the older files. A reader finds one whole
state at any moment, also after a crash.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from fewshot.search.engines import import_faiss
from finetune.errors import InputError
from finetune.files.locks import locked
from finetune.files.reading import read_json
from finetune.files.writing import replacing, write_json

FORMAT = 1
ABOUT_FILE = "index.json"
_MADE_BY = "fewtune index"
_OURS = re.compile(r"\.?(?:vectors-[0-9a-f]{16}\.faiss|keys-[0-9a-f]{16}\.sqlite)(?:\.\d+)?|\.index\.json\.\d+")


class Entry(NamedTuple):
    """A key, the row of its vector, and its metadata as JSON text, None without."""

    key: str
    row: int
    metadata: str | None


def write_folder(folder: Path, about: dict[str, Any], faiss_index: Any, entries: Iterable[Entry]) -> None:
    """Save an index; `about` goes into index.json. Writers wait for each other.

    InputError if the folder holds something other than an index, or cannot be written; the old state remains.
    """
    _refuse_paths_faiss_cannot_open(folder)
    with locked(folder):
        _refuse_other_folders(folder)
        token = secrets.token_hex(8)
        vectors, keys = folder / f"vectors-{token}.faiss", folder / f"keys-{token}.sqlite"
        try:
            _write_vectors(vectors, faiss_index)
            _write_entries(keys, entries)
            files = {path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in (vectors, keys)}
            current = {"made_by": _MADE_BY, "format": FORMAT, "token": token, "files": files}
            write_json(folder / ABOUT_FILE, current | about)
        finally:
            _delete_old_files(folder)


def read_folder(folder: Path, memory_mapped: bool) -> tuple[dict[str, Any], Any, list[Entry]]:
    """Read an index: `about`, the FAISS index, the entries.

    memory_mapped: Leave the vectors in their file; their checksum is then not verified, as that reads the whole file.
    InputError, naming the file, if there is no index, or it is damaged or of a newer format.
    """
    _refuse_paths_faiss_cannot_open(folder)
    while True:
        about = _read_about(folder)
        try:
            return about, *_read_files(folder, about, memory_mapped)
        except InputError:
            # A writer may have replaced the files while they were read.
            if _read_about(folder)["token"] == about["token"]:
                raise


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT_FILE
    if not path.is_file():
        raise InputError(f"{folder} is no index: it holds no {ABOUT_FILE}")
    about = read_json(path)
    if not isinstance(about, dict) or about.get("made_by") != _MADE_BY:
        raise InputError(f"{path} is not of an index")
    if about.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {about.get('format')!r}, this version reads {FORMAT}: upgrade fewtune, or embed again"
        )
    if not isinstance(about.get("token"), str) or not isinstance(about.get("files"), dict):
        raise InputError(f"{path} does not say which files are current; it may be damaged")
    return about


def _read_files(folder: Path, about: dict[str, Any], memory_mapped: bool) -> tuple[Any, list[Entry]]:
    vectors, keys = folder / f"vectors-{about['token']}.faiss", folder / f"keys-{about['token']}.sqlite"
    _check(vectors, about["files"].get(vectors.name), by_digest=not memory_mapped)
    _check(keys, about["files"].get(keys.name), by_digest=True)
    return _read_vectors(vectors, memory_mapped), _read_entries(keys)


def _check(path: Path, expected: Any, by_digest: bool) -> None:
    """InputError unless the file is as it was saved."""
    try:
        size = path.stat().st_size
        if not isinstance(expected, dict) or size != expected.get("bytes"):
            raise InputError(f"{path} does not have its saved length; it is damaged")
        if by_digest and _digest(path) != expected.get("sha256"):
            raise InputError(f"{path} does not have its saved checksum; it is damaged")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; the index is not complete") from error


def _write_vectors(path: Path, faiss_index: Any) -> None:
    faiss = import_faiss()
    with replacing(path) as temporary:
        try:
            faiss.write_index(faiss_index, str(temporary))
        except RuntimeError as error:  # FAISS raises no other, also for a full disk
            raise InputError(f"{path} cannot be written: {_reason(error)}") from error


def _read_vectors(path: Path, memory_mapped: bool) -> Any:
    faiss = import_faiss()
    try:
        # IO_FLAG_MMAP_IFC maps all three structures; IO_FLAG_MMAP maps inverted lists alone.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_mapped else 0)
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: {_reason(error)}") from error


def _write_entries(path: Path, entries: Iterable[Entry]) -> None:
    """Keys are stored as bytes: SQLite's text allows no lone surrogates, which file names may contain."""
    rows = ((entry.key.encode(errors="surrogatepass"), entry.row, entry.metadata) for entry in entries)
    with replacing(path) as temporary:
        try:
            temporary.unlink(missing_ok=True)
            with closing(sqlite3.connect(temporary)) as database:
                # No journal: the file is not in use before it is complete and synced.
                database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
                with database:
                    database.execute(
                        "CREATE TABLE entries (place INTEGER PRIMARY KEY, key BLOB NOT NULL, vector INTEGER NOT NULL, "
                        "metadata TEXT)"
                    )
                    database.executemany("INSERT INTO entries (key, vector, metadata) VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be written: {error}") from error


def _read_entries(path: Path) -> list[Entry]:
    # Read-only: a file that a writer has just deleted is an error, not a new, empty database.
    address = f"file:{quote(os.fsencode(path.absolute()))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            found = database.execute("SELECT key, vector, metadata FROM entries ORDER BY place")
            return [Entry(key.decode(errors="surrogatepass"), row, metadata) for key, row, metadata in found]
    except (sqlite3.Error, UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read: {error}; it may be damaged") from error


def _refuse_other_folders(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    if ABOUT_FILE in names:
        _read_about(folder)
        return
    others = [name for name in names if not _OURS.fullmatch(name)]
    if others:
        raise InputError(f"{folder} holds {others[0]} and is no index; choose a new or an empty folder")


def _delete_old_files(folder: Path) -> None:
    """Delete files of older states and of failed saves, and no others."""
    current = _read_about(folder)["files"] if (folder / ABOUT_FILE).is_file() else {}
    for path in folder.iterdir():
        if _OURS.fullmatch(path.name) and path.name not in current:
            path.unlink(missing_ok=True)


def _refuse_paths_faiss_cannot_open(folder: Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{str(folder)!r}: FAISS opens only paths that are valid UTF-8; choose another folder"
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: RuntimeError) -> str:
    """FAISS's message without the position in its source."""
    return str(error).rsplit("failed: ", 1)[-1]
