"""The activation cache: rows by key, in memory or mapped from files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.errors import InputError
from finetune.features.cache_files import Rows, add, default_bound, intact, mark_used, read_shard, shards_of
from finetune.features.cache_keys import FeatureKey
from finetune.files.folders import default_folder
from finetune.progress import Display

# Bytes of activations that one `get` loads into memory. More than that stays in its files.
MEMORY = 2 << 30
# Approximate size of a file in bytes.
SHARD_BYTES = 64 << 20


class Activations:
    """Activations of n pictures in the requested order, in memory or mapped from files.

    Picture i is row `row[i]` of the tensor `parts[part[i]]`.
    """

    def __init__(self, parts: Sequence[Tensor], part: NDArray[np.int64], row: NDArray[np.int64]):
        self._parts, self._part, self._row = parts, part, row

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64] | Tensor) -> Tensor:
        """A copy (m, ...) of the activations at m positions, in the cache's number format."""
        picked = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)]
        return self._gathered(self._part[picked], self._row[picked])

    def entries(self, rows: Sequence[int] | Tensor, entries: Sequence[int] | Tensor) -> Tensor:
        """One entry of the first dimension at each of m positions, (m, ...). Only these entries are read."""
        at, of_row = np.asarray(rows, dtype=np.int64), torch.as_tensor(entries, dtype=torch.int64)
        part, row = self._part[at], torch.from_numpy(self._row[at])
        found = self._parts[0].new_empty((len(at), *self._parts[0].shape[2:]))
        for number in np.unique(part):
            here = torch.from_numpy(np.flatnonzero(part == number))
            found[here] = self._parts[number][row[here], of_row[here]]
        return found

    def loaded(self) -> Activations:
        """The same activations, all in memory."""
        return Activations([self._gathered(self._part, self._row)], np.zeros_like(self._row), np.arange(len(self)))

    def _gathered(self, part: NDArray[np.int64], row: NDArray[np.int64]) -> Tensor:
        """The values in these rows of these parts, (n, ...); (0, 1, 0) without any rows."""
        if not self._parts:
            return torch.empty(0, 1, 0)
        found = self._parts[0].new_empty((len(row), *self._parts[0].shape[1:]))
        for number in np.unique(part):
            at = np.flatnonzero(part == number)
            found[torch.from_numpy(at)] = self._parts[number][torch.from_numpy(row[at])]
        return found


class ActivationCache:
    """Activations in a folder that several runs may share at the same time. For use by one thread.

    Args:
        folder: Folder of the cache. None for `default_folder()`.
        memory: Bytes that one `get` may load; beyond that, rows are read from their files when they are used.
        disk: Bytes that the folder may take. None for `default_bound`; with 0 activations stay in memory.
        display: Shows one line for each damaged file, and one when the folder can no longer be written.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        memory: int = MEMORY,
        disk: int | None = None,
        display: Display,
    ):
        self.folder = folder or default_folder()
        self.memory = memory
        self.disk = default_bound(self.folder) if disk is None else disk
        self._display = display
        self._writes = disk != 0
        self._indices: dict[str, _Index] = {}

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def holds(self, key: FeatureKey) -> bool:
        """Whether the cache holds a row under the key, damaged or not."""
        return bool(self._index(key).where)

    def known(self, key: FeatureKey, row_keys: Sequence[str]) -> NDArray[np.bool_]:
        """Which rows, by `FeatureKey.row_key`, the cache holds: shape (n,).

        Each file is read once to compare its checksums. A damaged file is deleted, and its damaged rows are unknown.
        """
        index = self._index(key)
        wanted = [bytes.fromhex(row_key) for row_key in row_keys]
        while unchecked := index.unchecked(wanted):
            for rows in unchecked:
                self._check(index, rows)
        return np.array([row_key in index.where for row_key in wanted], dtype=np.bool_)

    def get(self, key: FeatureKey, row_keys: Sequence[str]) -> Activations:
        """The activations of these rows, in their order. KeyError for a row that is not `known`."""
        for row_key, known in zip(row_keys, self.known(key, row_keys), strict=True):
            if not known:
                raise KeyError(f"no activations of {row_key}")
        index = self._index(key)
        places = [index.where[bytes.fromhex(row_key)] for row_key in row_keys]
        parts = list(dict.fromkeys(rows for rows, _ in places))
        number = {id(rows): position for position, rows in enumerate(parts)}
        part = np.array([number[id(rows)] for rows, _ in places], dtype=np.int64)
        row = np.array([position for _, position in places], dtype=np.int64)
        found = Activations([rows.values for rows in parts], part, row)
        mapped = any(rows.path is not None for rows in parts)
        return found.loaded() if mapped and len(places) * parts[0].row_bytes <= self.memory else found

    def put(self, key: FeatureKey, row_keys: Sequence[str], values: Tensor) -> None:
        """Add rows (n, ...). A row that the cache holds already stays unchanged.

        Rows are written in files of about SHARD_BYTES, the last ones by `flush` or `close`. ValueError where the shape
        differs from the key's other rows, OverflowError where the number format cannot hold a value.
        """
        fresh: dict[str, int] = {}
        for position, (row_key, known) in enumerate(zip(row_keys, self.known(key, row_keys), strict=True)):
            if not known:
                fresh.setdefault(row_key, position)
        if not fresh:
            return
        index = self._index(key)
        rows = _rows(list(fresh), list(fresh.values()), values, key.dtype)
        if index.form not in (None, rows.form):
            raise ValueError(f"activations under one key have one shape: {index.form}, not {rows.form}")
        at_once = max(1, SHARD_BYTES // max(1, rows.row_bytes))
        for start in range(0, len(rows), at_once):
            index.add(rows.taken(np.arange(start, min(start + at_once, len(rows)))))
            if index.pending_bytes >= SHARD_BYTES:
                self._write(index)

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes fit: on disk, or in memory where nothing is written."""
        if not self._writes:
            return size <= self.memory
        in_use = sum(len(rows) * rows.row_bytes for index in self._indices.values() for rows in index.rows)
        return in_use + size <= self.disk

    def row_bytes(self, key: FeatureKey) -> int | None:
        """Bytes of one row; None while there is none."""
        return next((rows.row_bytes for rows in self._index(key).rows), None)

    def flush(self) -> None:
        """Write the rows that are only in memory."""
        for index in self._indices.values():
            self._write(index)

    def close(self) -> None:
        """Write the rows that are only in memory, and close all files. Activations from `get` stay usable."""
        self.flush()
        self._indices.clear()

    def _index(self, key: FeatureKey) -> _Index:
        name = key.name
        index = self._indices.setdefault(name, _Index(key, name))
        for path in shards_of(self.folder, name):
            if path not in index.mapped and path not in index.refused:
                self._map(index, path)
        return index

    def _map(self, index: _Index, path: Path) -> None:
        try:
            rows = read_shard(path, index.name)
            if rows.values.dtype != index.key.dtype or index.form not in (None, rows.form):
                raise InputError(f"{path} contains rows of another shape or number format; it may be damaged")
        except InputError as error:
            if not isinstance(error.__cause__, OSError):
                self._drop(index, path, f"{error}: it is deleted, and its activations are computed again")
            elif path.exists():  # else another run has just deleted it
                index.refused.add(path)
                self._display.say(f"{error}: its activations are computed again")
            return
        index.add(rows)

    def _check(self, index: _Index, rows: Rows) -> None:
        """Compare the checksums of a file. The good rows of a damaged file are written to another one."""
        assert rows.path is not None
        good = intact(rows, index.name)
        index.checked.add(rows.path)
        if good.all():
            mark_used(rows.path)
            return
        self._drop(
            index, rows.path, f"{rows.path} is damaged: {(~good).sum()} of its {len(good)} rows are computed again"
        )
        index.replace([rows], [rows.taken(np.flatnonzero(good))] if good.any() else [])

    def _drop(self, index: _Index, path: Path, why: str) -> None:
        self._display.say(why)
        index.refused.add(path)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._display.say(f"{path} cannot be deleted: {error.strerror}")

    def _write(self, index: _Index) -> None:
        """Write the pending rows to a file, from which they are then mapped. They stay in memory where that fails."""
        if not index.pending or not self._writes:
            return
        rows = _joined(index.pending)
        in_use = {path for other in self._indices.values() for path in other.mapped}
        try:
            path = add(self.folder, index.name, asdict(index.key), rows, bound=self.disk, in_use=in_use)
            if path is None:
                self._stop(f"the activations in use fill the cache's {self.disk / 1e9:.1f} GB")
                return
            written = read_shard(path, index.name)
        except InputError as error:
            self._stop(str(error))
        except OSError as error:
            self._stop(f"{self.folder} cannot be written: {error.strerror}")
        else:
            index.checked.add(path)
            index.replace(index.pending, [written])

    def _stop(self, why: str) -> None:
        self._writes = False
        self._display.say(f"Activations now stay in memory, for this run only: {why}.")


@dataclass
class _Index:
    """Where the rows of one key are: mapped from files, or pending in memory. where: Place of each row.

    checked: Files whose checksums were compared. refused: Damaged files, of which some could not be deleted.
    """

    key: FeatureKey
    name: str
    mapped: dict[Path, Rows] = field(default_factory=dict)
    pending: list[Rows] = field(default_factory=list)
    where: dict[bytes, tuple[Rows, int]] = field(default_factory=dict)
    checked: set[Path] = field(default_factory=set)
    refused: set[Path] = field(default_factory=set)

    @property
    def rows(self) -> list[Rows]:
        return [*self.pending, *self.mapped.values()]

    @property
    def form(self) -> object:
        """Dtype and shape of a row; None while there is none."""
        return next((rows.form for rows in self.rows), None)

    @property
    def pending_bytes(self) -> int:
        return sum(len(rows) * rows.row_bytes for rows in self.pending)

    def unchecked(self, keys: Sequence[bytes]) -> list[Rows]:
        """The files that contain `keys` and whose checksums were not compared yet."""
        holders = {self.where[key][0] for key in keys if key in self.where}
        return [rows for rows in holders if rows.path is not None and rows.path not in self.checked]

    def add(self, rows: Rows) -> None:
        if rows.path is None:
            self.pending.append(rows)
        else:
            self.mapped[rows.path] = rows
        for position, key in enumerate(rows.keys):
            self.where.setdefault(key.tobytes(), (rows, position))

    def replace(self, old: Sequence[Rows], new: Sequence[Rows]) -> None:
        kept = [rows for rows in self.rows if rows not in old]
        self.mapped, self.pending, self.where = {}, [], {}
        for rows in (*kept, *new):
            self.add(rows)


def _rows(keys: Sequence[str], positions: Sequence[int], values: Tensor, dtype: torch.dtype) -> Rows:
    """The rows at `positions` of `values`, under their keys, in the cache's number format."""
    kept = _converted(values[torch.tensor(positions)], dtype)
    return Rows(np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), -1), kept)


def _joined(parts: Sequence[Rows]) -> Rows:
    return Rows(np.concatenate([rows.keys for rows in parts]), torch.cat([rows.values for rows in parts]))


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kept = tensor.detach().cpu().to(dtype).contiguous()
    if (kept.isinf() & tensor.isfinite().cpu()).any():
        raise OverflowError(f"activations up to {tensor.abs().max():g} do not fit {dtype}; bfloat16 holds them")
    return kept
