"""The folder of the activation cache: immutable files of rows, one sub-folder for each family, within a bound.

<family>/about.json                   what the activations depend on
<family>/rows-<token>.safetensors     keys (n, 32) uint8, checksums (n, 8) uint8, and values.0, values.1, ... (n, ...)

Whoever writes or deletes locks the folder meanwhile; readers need no lock, for a file never changes once it is there.
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
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import InputError
from finetune.files import locked, read_json, read_tensors_and_metadata, write_json, write_tensors

MADE_BY = "fewtune activations"
ABOUT_FILE = "about.json"
_FAMILY = re.compile(r"[0-9a-f]{32}")
_SHARD = re.compile(r"rows-[0-9a-f]{16}\.safetensors")
# What a write that was killed leaves behind; one that is under way is younger than this, in seconds.
_LEFTOVER = re.compile(r"\.(?:rows-[0-9a-f]{16}\.safetensors|about\.json)\.\d+")
_LEFTOVER_AGE = 3600

# A folder that may not be read is as good as none: what is put there will tell that it cannot be.
_NOT_THERE = (FileNotFoundError, NotADirectoryError, PermissionError)

MOST_DISK = 20 << 30
_KEY_BYTES, _CHECKSUM_BYTES = 32, 8
# Room allowed for a file's header and for about.json.
_HEADER_BYTES = 4096


@dataclass(frozen=True, eq=False)
class RowFiles:
    """Activations of n pictures. keys: (n, 32) uint8. values: tensors (n, ...) on the CPU.

    checksums: (n, 8) uint8 and path: of the file that they are mapped from; None for rows in memory.
    """

    keys: NDArray[np.uint8]
    values: tuple[Tensor, ...]
    checksums: NDArray[np.uint8] | None = None
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def form(self) -> tuple[tuple[torch.dtype, tuple[int, ...]], ...]:
        """Dtype and shape of one row."""
        return tuple((tensor.dtype, tuple(tensor.shape[1:])) for tensor in self.values)

    @property
    def row_bytes(self) -> int:
        return sum(math.prod(tensor.shape[1:]) * tensor.element_size() for tensor in self.values)

    def taken(self, rows: NDArray[np.int64]) -> RowFiles:
        """The rows at these positions, in memory."""
        at = torch.from_numpy(rows)
        return RowFiles(self.keys[rows], tuple(tensor[at] for tensor in self.values))


def default_bound(folder: Path) -> int:
    """Bytes that the cache may take: 20 GiB, or a quarter of what the disk has free without it if that is less."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return min(MOST_DISK, (shutil.disk_usage(there).free + size_of(folder)) // 4)


# --- one file ---------------------------------------------------------------------------------------------------------


def shards_of(folder: Path, family: str) -> list[Path]:
    """The files that hold rows of the family called so, oldest first."""
    return [file.path for file in _files_of(folder / family) if _SHARD.fullmatch(file.path.name)]


def read_shard(path: Path, family: str) -> RowFiles:
    """The rows in the file, mapped: what is not looked at is not read. InputError when it is missing or damaged."""
    tensors, metadata = read_tensors_and_metadata(path)
    names = [f"values.{number}" for number in range(len(tensors) - 2)]
    keys, checksums, *values = (tensors.get(name, torch.empty(0)) for name in ("keys", "checksums", *names))
    as_promised = (
        metadata.get("family") == family
        and bool(values)
        and len({tensor.shape[:1] for tensor in (keys, checksums, *values)}) == 1
        and (keys.dtype, keys.shape[1:]) == (torch.uint8, (_KEY_BYTES,))
        and (checksums.dtype, checksums.shape[1:]) == (torch.uint8, (_CHECKSUM_BYTES,))
    )
    if not as_promised:
        raise InputError(f"{path} does not hold what its name promises; it may be damaged")
    # Those that every lookup needs are copied; the values stay where they are.
    return RowFiles(keys.numpy().copy(), tuple(values), checksums.numpy().copy(), path)


def write_shard(folder: Path, family: str, rows: RowFiles) -> Path:
    """The rows in a file of their own. InputError when it cannot be written."""
    path = folder / family / f"rows-{secrets.token_hex(8)}.safetensors"
    tensors = {"keys": torch.from_numpy(rows.keys), "checksums": torch.from_numpy(_checksums(rows, family))}
    tensors |= {f"values.{number}": tensor for number, tensor in enumerate(rows.values)}
    write_tensors(path, tensors, {"family": family})
    return path


def intact(rows: RowFiles, family: str) -> NDArray[np.bool_]:
    """Which rows of a file are, to the last bit, what was written: (n,)."""
    return (_checksums(rows, family) == rows.checksums).all(axis=1)  # type: ignore[no-any-return]


def _checksums(rows: RowFiles, family: str) -> NDArray[np.uint8]:
    """(n, 8), of key and values, and of what else these would mean something different by."""
    start = hashlib.blake2b(f"{family} {rows.form}".encode(), digest_size=_CHECKSUM_BYTES)
    columns = [rows.keys, *(tensor.unsqueeze(-1).flatten(1).view(torch.uint8).numpy() for tensor in rows.values)]
    found = bytearray()
    for row in zip(*columns, strict=True):
        checksum = start.copy()
        for part in row:
            checksum.update(part)
        found += checksum.digest()
    return np.frombuffer(found, np.uint8).reshape(-1, _CHECKSUM_BYTES)


# --- the folder -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CachedFamily:
    """A family as it lies in the folder. about: its fields. last_used: seconds since 1970. pictures: rows there are."""

    name: str
    about: Mapping[str, Any]
    pictures: int
    bytes: int
    last_used: float


@dataclass(frozen=True)
class Freed:
    """What was deleted."""

    families: int
    files: int
    bytes: int


def add(
    folder: Path, family: str, about: Mapping[str, Any], rows: RowFiles, *, bound: int, spare: Collection[Path]
) -> Path | None:
    """The rows kept in a file of their own; the files that nobody used for longest make room for it, `spare` never.

    None when there is no room within `bound` bytes. InputError or OSError when the folder cannot be written.
    """
    size = len(rows) * (rows.row_bytes + _KEY_BYTES + _CHECKSUM_BYTES) + _HEADER_BYTES
    with locked(folder):
        if _trimmed(folder, bound - size, spare) + size > bound:
            return None
        if _about(folder / family) is None:
            write_json(folder / family / ABOUT_FILE, {"made_by": MADE_BY} | dict(about))
        return write_shard(folder, family, rows)


def mark_used(path: Path) -> None:
    """Note that the file is in use; a folder that may only be read keeps no such notes."""
    with suppress(OSError):
        os.utime(path)


def size_of(folder: Path) -> int:
    """Bytes that the cache takes."""
    return sum(file.bytes for family in _families_of(folder) for file in _files_of(family))


def families(folder: Path) -> list[CachedFamily]:
    """What the cache holds, the last used first."""
    found = []
    for path in _families_of(folder):
        files = _files_of(path)
        shards = [file for file in files if _SHARD.fullmatch(file.path.name)]
        if shards:
            found.append(
                CachedFamily(
                    name=path.name,
                    about=_about(path) or {},
                    pictures=sum(_rows_in(file.path) for file in shards),
                    bytes=sum(file.bytes for file in files),
                    last_used=max(file.last_used for file in shards),
                )
            )
    return sorted(found, key=lambda kept: -kept.last_used)


def clear(folder: Path, *, older_than: float = 0.0, backbone: str | None = None) -> Freed:
    """Delete what was not used for `older_than` seconds, of one backbone or of all; whatever is not the cache's stays.

    InputError or OSError when the folder cannot be changed.
    """
    if not folder.is_dir():
        return Freed(0, 0, 0)
    gone = files = size = 0
    with locked(folder):
        latest = time.time() - older_than
        for path in _families_of(folder):
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


def _families_of(folder: Path) -> list[Path]:
    with suppress(*_NOT_THERE):
        return sorted(path for path in folder.iterdir() if _FAMILY.fullmatch(path.name) and path.is_dir())
    return []


def _files_of(family: Path) -> list[_File]:
    """The cache's own files in the folder of a family, the one used last at the end."""
    return sorted(_own_files(family), key=lambda file: (file.last_used, file.path))


def _own_files(family: Path) -> Iterator[_File]:
    # Another process may delete, at any moment, what is listed here.
    with suppress(*_NOT_THERE), os.scandir(family) as entries:
        for entry in entries:
            if entry.name == ABOUT_FILE or _SHARD.fullmatch(entry.name) or _LEFTOVER.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    status = entry.stat()
                    yield _File(Path(entry.path), status.st_size, status.st_mtime)


def _trimmed(folder: Path, bound: int, spare: Collection[Path]) -> int:
    """Bytes left after deleting what was not used for longest, down to `bound`, and what killed writers left."""
    files = [file for family in _families_of(folder) for file in _files_of(family)]
    left = sum(file.bytes for file in files)
    too_old = time.time() - _LEFTOVER_AGE
    for file in sorted(files, key=lambda file: file.last_used):
        leftover = _LEFTOVER.fullmatch(file.path.name) is not None and file.last_used < too_old
        shard = _SHARD.fullmatch(file.path.name) is not None and file.path not in spare
        if leftover or (shard and left > bound):
            with suppress(PermissionError):  # Windows deletes no file that another process has mapped
                file.path.unlink(missing_ok=True)
                left -= file.bytes
                _removed_if_empty(file.path.parent)
    return left


def _removed_if_empty(family: Path) -> bool:
    """Whether nothing but about.json was left in the folder, which is then deleted."""
    about = family / ABOUT_FILE
    if any(path != about for path in family.iterdir()) or (about.exists() and _about(family) is None):
        return False
    about.unlink(missing_ok=True)
    family.rmdir()
    return True


def _about(family: Path) -> dict[str, Any] | None:
    """What about.json says; None where it is missing, damaged or not the cache's."""
    try:
        about = read_json(family / ABOUT_FILE)
    except InputError:
        return None
    return about if isinstance(about, dict) and about.get("made_by") == MADE_BY else None


def _rows_in(path: Path) -> int:
    """Rows in a file, by its header; 0 where that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(file.get_slice("keys").get_shape()[0])
    except (OSError, SafetensorError):
        return 0
