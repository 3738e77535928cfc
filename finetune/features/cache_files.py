"""The folder of the activation cache: immutable files of rows, one sub-folder for each key, bounded in size.

<key>/about.json                   the fields of the key
<key>/rows-<token>.safetensors     keys (n, 32) uint8, checksums (n, 8) uint8, values (n, ...)

Writing and deleting lock the folder. Reading needs no lock, because a file never changes.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.errors import InputError
from finetune.files.locks import locked
from finetune.files.reading import read_json, read_tensors_and_metadata, read_tensors_header
from finetune.files.writing import write_json, write_tensors

MADE_BY = "fewtune activations"
ABOUT_FILE = "about.json"
_ENTRY = re.compile(r"[0-9a-f]{32}")
_SHARD = re.compile(r"rows-[0-9a-f]{16}\.safetensors")
# A temporary file. One that is older than this, in seconds, was left by a killed process.
_LEFTOVER = re.compile(r"\.(?:rows-[0-9a-f]{16}\.safetensors|about\.json)\.\d+")
_LEFTOVER_AGE = 3600

# A folder without permission to read counts as missing. Writing to it then shows the reason.
_NOT_THERE = (FileNotFoundError, NotADirectoryError, PermissionError)

MOST_DISK = 20 << 30
_KEY_BYTES, _CHECKSUM_BYTES = 32, 8
# Bytes allowed for a file's header and for about.json.
_HEADER_BYTES = 4096
_MOST_ABOUT_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class Rows:
    """Activations of n pictures: keys (n, 32), values (n, ...) on the CPU, checksums (n, 8).

    checksums, path: None for rows in memory; else of the file that the values are mapped from.
    """

    keys: NDArray[np.uint8]
    values: Tensor
    checksums: NDArray[np.uint8] | None = None
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def form(self) -> tuple[torch.dtype, tuple[int, ...]]:
        """Dtype and shape of one row."""
        return self.values.dtype, tuple(self.values.shape[1:])

    @property
    def row_bytes(self) -> int:
        return math.prod(self.values.shape[1:]) * self.values.element_size()

    def taken(self, rows: NDArray[np.int64]) -> Rows:
        """The rows at these positions, in memory."""
        return Rows(self.keys[rows], self.values[torch.from_numpy(rows)])


def default_bound(folder: Path) -> int:
    """Bytes that the cache may take: 20 GiB, or a quarter of the disk's free space without the cache if less."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return min(MOST_DISK, (shutil.disk_usage(there).free + size_of(folder)) // 4)


# --- one file ---------------------------------------------------------------------------------------------------------


def shards_of(folder: Path, key: str) -> list[Path]:
    """The files with rows under the key of this name, least recently used first."""
    return [file.path for file in _files_of(folder / key) if _SHARD.fullmatch(file.path.name)]


def read_shard(path: Path, key: str) -> Rows:
    """The rows in a file, mapped, so that only used values are read. InputError for a missing or damaged file."""
    tensors, metadata = read_tensors_and_metadata(path)
    keys, checksums, values = (tensors.get(name, torch.empty(0)) for name in ("keys", "checksums", "values"))
    valid = (
        metadata.get("key") == key
        and "values" in tensors
        and len({tensor.shape[:1] for tensor in (keys, checksums, values)}) == 1
        and (keys.dtype, keys.shape[1:]) == (torch.uint8, (_KEY_BYTES,))
        and (checksums.dtype, checksums.shape[1:]) == (torch.uint8, (_CHECKSUM_BYTES,))
        and (values.ndim > 1 and math.prod(values.shape[1:]) > 0)
    )
    if not valid:
        raise InputError(f"{path} does not contain the rows that its name stands for; it may be damaged")
    # Every lookup needs keys and checksums, so these are copied into memory.
    return Rows(keys.numpy().copy(), values, checksums.numpy().copy(), path)


def write_shard(folder: Path, key: str, rows: Rows) -> Path:
    """Write rows to a new file, and return its path. InputError when it cannot be written."""
    path = folder / key / f"rows-{secrets.token_hex(8)}.safetensors"
    checksums = torch.from_numpy(_checksums(rows, key))
    write_tensors(
        path, {"keys": torch.from_numpy(rows.keys), "checksums": checksums, "values": rows.values}, {"key": key}
    )
    return path


def intact(rows: Rows, key: str) -> NDArray[np.bool_]:
    """Which rows of a file are undamaged, to the last bit: shape (n,)."""
    same: NDArray[np.bool_] = (_checksums(rows, key) == rows.checksums).all(axis=1)
    return same


def _checksums(rows: Rows, key: str) -> NDArray[np.uint8]:
    """(n, 8): a checksum of each row's key and values, and of everything that their meaning depends on."""
    start = hashlib.blake2b(f"{key} {rows.form}".encode(), digest_size=_CHECKSUM_BYTES)
    values = rows.values.unsqueeze(-1).flatten(1).view(torch.uint8).numpy()
    found = bytearray()
    for row_key, row in zip(rows.keys, values, strict=True):
        checksum = start.copy()
        checksum.update(row_key)
        checksum.update(row)
        found += checksum.digest()
    return np.frombuffer(found, np.uint8).reshape(-1, _CHECKSUM_BYTES)


# --- the folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CacheEntry:
    """The activations under one key: its name and fields, and how many they are. last_used: In seconds since 1970."""

    name: str
    about: Mapping[str, Any]
    pictures: int
    bytes: int
    last_used: float


@dataclass(frozen=True)
class Freed:
    """Numbers of deleted entries, files and bytes."""

    entries: int
    files: int
    bytes: int


def add(
    folder: Path, key: str, about: Mapping[str, Any], rows: Rows, *, bound: int, in_use: Collection[Path]
) -> Path | None:
    """Write rows to a new file; the least recently used files, except those `in_use`, are deleted to make room.

    Returns None when there is no room within `bound` bytes. InputError or OSError when the folder cannot be written.
    """
    size = len(rows) * (rows.row_bytes + _KEY_BYTES + _CHECKSUM_BYTES) + _HEADER_BYTES
    with locked(folder):
        if _trimmed(folder, bound - size, in_use) + size > bound:
            return None
        if _about(folder / key) is None:
            write_json(folder / key / ABOUT_FILE, {"made_by": MADE_BY} | dict(about))
        return write_shard(folder, key, rows)


def mark_used(path: Path) -> None:
    """Record that the file was used now, where the folder can be written."""
    with suppress(OSError):
        os.utime(path)


def size_of(folder: Path) -> int:
    """Bytes that the cache takes."""
    return sum(file.bytes for entry in _entries_of(folder) for file in _files_of(entry))


def entries(folder: Path) -> list[CacheEntry]:
    """What the cache contains, most recently used first."""
    found = []
    for path in _entries_of(folder):
        files = _files_of(path)
        shards = [file for file in files if _SHARD.fullmatch(file.path.name)]
        if shards:
            found.append(
                CacheEntry(
                    name=path.name,
                    about=_about(path) or {},
                    pictures=sum(_rows_in(file.path) for file in shards),
                    bytes=sum(file.bytes for file in files),
                    last_used=max(file.last_used for file in shards),
                )
            )
    return sorted(found, key=lambda entry: -entry.last_used)


def clear_cache(folder: Path, *, older_than: float = 0.0, backbone: str | None = None) -> Freed:
    """Delete cached activations.

    Args:
        folder: Folder of the cache. Other files in it stay.
        older_than: Delete only activations that were not used for so many seconds.
        backbone: timm's name of the backbone whose activations are deleted. None for all.

    Returns:
        Number of deleted files and their bytes.

    Raises:
        InputError: If the folder cannot be changed.

    Example:
        >>> from finetune import clear_cache
        >>> clear_cache(Path("no-cache-here")).bytes
        0
    """
    if not folder.is_dir():
        return Freed(0, 0, 0)
    gone = files = size = 0
    with locked(folder):
        latest = time.time() - older_than
        for path in _entries_of(folder):
            if backbone is not None and (_about(path) or {}).get("backbone") != backbone:
                continue
            for file in _files_of(path):
                if file.path.name != ABOUT_FILE and file.last_used <= latest:
                    file.path.unlink(missing_ok=True)
                    files, size = files + 1, size + file.bytes
            gone += _removed_if_empty(path)
    return Freed(gone, files, size)


@dataclass(frozen=True)
class _File:
    path: Path
    bytes: int
    last_used: float


def _entries_of(folder: Path) -> list[Path]:
    with suppress(*_NOT_THERE):
        return sorted(path for path in folder.iterdir() if _ENTRY.fullmatch(path.name) and path.is_dir())
    return []


def _files_of(entry: Path) -> list[_File]:
    """The cache's own files in the folder of an entry, least recently used first."""
    return sorted(_own_files(entry), key=lambda file: (file.last_used, file.path))


def _own_files(entry: Path) -> Iterator[_File]:
    # Another process may delete files while they are listed here.
    with suppress(*_NOT_THERE), os.scandir(entry) as listed:
        for file in listed:
            if file.name == ABOUT_FILE or _SHARD.fullmatch(file.name) or _LEFTOVER.fullmatch(file.name):
                with suppress(FileNotFoundError):
                    status = file.stat()
                    yield _File(Path(file.path), status.st_size, status.st_mtime)


def _trimmed(folder: Path, bound: int, in_use: Collection[Path]) -> int:
    """Bytes left after deleting temporary files of killed processes, and the least recently used files down to
    `bound`."""
    files = [file for entry in _entries_of(folder) for file in _files_of(entry)]
    left = sum(file.bytes for file in files)
    too_old = time.time() - _LEFTOVER_AGE
    for file in sorted(files, key=lambda file: file.last_used):
        leftover = _LEFTOVER.fullmatch(file.path.name) is not None and file.last_used < too_old
        shard = _SHARD.fullmatch(file.path.name) is not None and file.path not in in_use
        if leftover or (shard and left > bound):
            with suppress(PermissionError):  # Windows does not delete a file that another process has mapped
                file.path.unlink(missing_ok=True)
                left -= file.bytes
                _removed_if_empty(file.path.parent)
    return left


def _removed_if_empty(entry: Path) -> bool:
    """Delete the folder of an entry where only about.json is left in it; whether it was deleted."""
    about = entry / ABOUT_FILE
    if any(path != about for path in entry.iterdir()) or (about.exists() and _about(entry) is None):
        return False
    about.unlink(missing_ok=True)
    entry.rmdir()
    return True


def _about(entry: Path) -> dict[str, Any] | None:
    """The content of about.json; None where it is missing, damaged or not the cache's."""
    try:
        about = read_json(entry / ABOUT_FILE, most_bytes=_MOST_ABOUT_BYTES)
    except InputError:
        return None
    return about if isinstance(about, dict) and about.get("made_by") == MADE_BY else None


def _rows_in(path: Path) -> int:
    """Number of rows in a file by its header; 0 where the header cannot be read."""
    try:
        keys = read_tensors_header(path).tensors.get("keys")
    except InputError:
        return 0
    return 0 if keys is None or not keys.shape else keys.shape[0]
