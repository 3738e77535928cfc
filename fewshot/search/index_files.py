"""The folder of a saved index.

index.json              format, width, kind, fingerprint, ..., and the current files with their sizes and checksums
vectors-<token>.faiss   the vectors, in FAISS's format
keys-<token>.sqlite     a table of keys, their rows in the FAISS file and metadata, in the order of adding

A save writes both files under a new token, replaces index.json and deletes the older files. A reader finds one whole
state at any moment, also after a crash.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import getsizeof
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from fewshot.search.choice import KEY_BYTES, memory_of
from fewshot.search.engines import Engine, Structure, effort_bounds
from fewshot.search.faiss_format import MOST_WIDTH, Layout, check_file
from fewshot.search.key_table import Entry, read_entries, write_entries
from fewshot.search.vector_file import read_vectors, write_vectors
from finetune.errors import InputError
from finetune.files.locks import LOCK_FILE, locked
from finetune.files.reading import as_type, read_json
from finetune.files.writing import write_json

if TYPE_CHECKING:
    from fewshot.search.index import Index

FORMAT = 1
ABOUT_FILE = "index.json"
Kind = Literal["auto", "exact", "ivf", "hnsw", "pq"]
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
_SIZES_DIFFER = "the width or the number of vectors differs"
_MADE_BY = "fewtune index"
_OURS = re.compile(r"\.?(?:vectors-[0-9a-f]{16}\.faiss|keys-[0-9a-f]{16}\.sqlite)(?:\.\d+)?|\.index\.json\.\d+")


@dataclass(frozen=True, kw_only=True)
class IndexHeader:
    """What index.json says about an index.

    Attributes:
        width: Length of a vector.
        vectors: Number of keys.
        kind, fingerprint, about, least_recall: As for `Index`.
        structure: The engine's.
        recall: Measured when the engine was built.
        effort: Of a search; see `Approximate`.
        rows: Number of vectors in the FAISS file, with removed ones.
        memory: Most bytes that searches may take, as for `Index`.
        built_at: Number of vectors when the engine was built.
        changed: Number of vectors added and removed since then.
    """

    width: Annotated[int, Meta(ge=1, le=MOST_WIDTH)]
    vectors: Count
    kind: Kind
    structure: Structure
    fingerprint: str | None
    about: dict[str, Any]
    recall: Annotated[float, Meta(ge=0, le=1)]
    least_recall: Annotated[float, Meta(gt=0, le=1)]
    effort: Count
    rows: Count
    built_at: Count
    changed: Count
    memory: Annotated[int, Meta(ge=1, lt=1 << 53)] | None = None

    @classmethod
    def of(cls, index: Index, engine: Engine, built_at: int, changed: int) -> IndexHeader:
        return cls(
            width=index.width,
            vectors=len(index),
            kind=index.kind,
            structure=engine.structure,
            fingerprint=index.fingerprint,
            about=index.about,
            recall=engine.recall,
            least_recall=index.least_recall,
            effort=engine.effort,
            rows=engine.faiss_index.ntotal,
            built_at=built_at,
            changed=changed,
            memory=index.memory,
        )


@dataclass(frozen=True)
class FileRecord:
    """Size and checksum of a file when it was saved."""

    bytes: Count
    sha256: str


@dataclass(frozen=True)
class CurrentFiles:
    """Which files are current."""

    token: Annotated[str, Meta(pattern="^[0-9a-f]{16}$")]
    files: dict[str, FileRecord]


def is_free(folder: Path) -> bool:
    """Whether an index can be made in `folder`: it is missing, empty, or holds only what failed saves have left."""
    return not folder.exists() or (
        folder.is_dir() and not (folder / ABOUT_FILE).exists() and all(map(_ours, folder.iterdir()))
    )


def write_folder(
    folder: Path,
    header: IndexHeader,
    faiss_index: Any,
    entries: Iterable[Entry],
    check: Callable[[Mapping[str, Any]], None] | None = None,
) -> None:
    """Save an index. Writers wait for each other.

    check: Called with the `about` of an index that is there, before it is replaced; it may raise.

    InputError if the folder holds something other than an index, or cannot be written; the old state remains.
    """
    _refuse_paths_faiss_cannot_open(folder)
    with locked(folder):
        _refuse_other_folders(folder)
        if check is not None and (folder / ABOUT_FILE).exists():
            check(as_type(_read_about(folder), IndexHeader, str(folder / ABOUT_FILE)).about)
        token = secrets.token_hex(8)
        vectors, keys = folder / f"vectors-{token}.faiss", folder / f"keys-{token}.sqlite"
        try:
            digests = {vectors: write_vectors(vectors, faiss_index)}
            write_entries(keys, entries)
            digests[keys] = _digest(keys)
            files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256} for path, sha256 in digests.items()}
            current = {"made_by": _MADE_BY, "format": FORMAT, "token": token, "files": files}
            write_json(folder / ABOUT_FILE, current | asdict(header))
        finally:
            _delete_old_files(folder)


def read_folder(
    folder: Path, memory_mapped: bool, fingerprint: str | None = None
) -> tuple[IndexHeader, Any, list[Entry]]:
    """Read an index: its header, the FAISS index, the entries. InputError if it is of another embedder than the
    fingerprint's.

    memory_mapped: Leave the vectors in their file; neither their checksum nor their lengths are then verified, as that
    reads the whole file. InputError, naming the file, if there is no index, or it is damaged or of a newer format.
    """
    _refuse_paths_faiss_cannot_open(folder)
    while True:
        about = _read_about(folder)
        try:
            header, faiss_index, entries = _read_files(folder, about, memory_mapped)
            break
        except InputError:
            # A writer may have replaced the files while they were read.
            if _read_about(folder)["token"] == about["token"]:
                raise
    if fingerprint is not None and fingerprint != header.fingerprint:
        raise InputError(
            f"{folder} holds vectors of embedder {header.fingerprint}, not of {fingerprint}: embed again, or open it "
            "with its own embedder"
        )
    return header, faiss_index, entries


def beyond_memory(folder: Path) -> bool:
    """Whether vectors and keys of an index do not fit in the memory that it was made for. InputError as for reading."""
    about, source = _read_about(folder), str(folder / ABOUT_FILE)
    header, current = as_type(about, IndexHeader, source), as_type(about, CurrentFiles, source)
    if header.memory is None or header.structure != "pq":
        return False
    texts = sum(record.bytes for name, record in current.files.items() if name.startswith("keys-"))
    return (
        memory_of("pq", header.rows, header.width) + (KEY_BYTES + getsizeof("")) * header.vectors + texts
        > header.memory
    )


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


def _read_files(folder: Path, about: dict[str, Any], memory_mapped: bool) -> tuple[IndexHeader, Any, list[Entry]]:
    source = str(folder / ABOUT_FILE)
    header, current = as_type(about, IndexHeader, source), as_type(about, CurrentFiles, source)
    vectors, keys = folder / f"vectors-{current.token}.faiss", folder / f"keys-{current.token}.sqlite"
    _check(vectors, current.files.get(vectors.name), by_digest=not memory_mapped)
    _check(keys, current.files.get(keys.name), by_digest=True)
    layout = check_file(vectors, values=not memory_mapped)
    problem = _mismatch(header, layout)
    if problem is not None:
        raise InputError(f"{source} does not match {vectors.name} ({problem}); the index is damaged")
    entries = read_entries(keys, layout.rows)
    if len(entries) != header.vectors:
        raise InputError(f"{source} does not match {keys.name} ({_SIZES_DIFFER}); the index is damaged")
    return header, read_vectors(vectors, memory_mapped), entries


def _mismatch(header: IndexHeader, layout: Layout) -> str | None:
    """Why index.json cannot belong to the FAISS file; None if it can."""
    if header.structure != layout.structure:
        return "the structure differs"
    if (header.width, header.rows) != (layout.width, layout.rows):
        return _SIZES_DIFFER
    least, most = effort_bounds(layout.structure, layout.lists)
    if not least <= header.effort <= most:
        return f"the effort is {header.effort}"
    # A small index of kind pq is exact.
    if header.kind not in ("auto", header.structure) and (header.kind, header.structure) != ("pq", "exact"):
        return f"the kind is {header.kind}"
    if layout.structure != "exact" and header.built_at > layout.rows:
        return f"built_at is {header.built_at}"
    return None


def _check(path: Path, expected: FileRecord | None, by_digest: bool) -> None:
    """InputError unless the file is as it was saved."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path} is not a file; the index is damaged")
        if expected is None or found.st_size != expected.bytes:
            raise InputError(f"{path} does not have its saved length; it is damaged")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; the index is not complete") from error
    if by_digest and _digest(path) != expected.sha256:
        raise InputError(f"{path} does not have its saved checksum; it is damaged")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _refuse_other_folders(folder: Path) -> None:
    if (folder / ABOUT_FILE).exists():
        _read_about(folder)
        return
    others = sorted(path.name for path in folder.iterdir() if not _ours(path))
    if others:
        raise InputError(f"{folder} holds {others[0]} and is no index; choose a new or an empty folder")


def _ours(path: Path) -> bool:
    """Whether it is the lock, or a file that a save has made."""
    return path.name == LOCK_FILE or _OURS.fullmatch(path.name) is not None


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
