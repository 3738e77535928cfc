"""The activation cache as a run uses it: rows looked up, put and given back, in memory or mapped from files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.errors import InputError
from finetune.features.cache_files import RowFiles, add, default_bound, intact, mark_used, read_shard, shards_of
from finetune.features.cache_keys import FeatureKey
from finetune.files import default_folder

# One value for each picture, (n, ...), or several where several cross a cut.
Values = Tensor | tuple[Tensor, ...]

# Bytes of activations that one `get` loads; what is more stays in its files.
MEMORY = 2 << 30
# Bytes in a file, about.
SHARD_BYTES = 64 << 20


class Activations:
    """Activations of n pictures, in the order in which they were asked for, in memory or mapped from files."""

    def __init__(self, parts: Sequence[tuple[Tensor, ...]], part: NDArray[np.int64], row: NDArray[np.int64]):
        self._parts, self._part, self._row = parts, part, row

    def __len__(self) -> int:
        return len(self._row)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64] | Tensor) -> Values:
        """(m, ...) of the pictures at these m positions, copied, in the dtype in which they are kept."""
        picked = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)]
        found = self._gathered(self._part[picked], self._row[picked])
        return found if len(found) > 1 else found[0]

    def entries(self, rows: Sequence[int] | Tensor, entries: Sequence[int] | Tensor) -> Tensor:
        """(m, ...): of the picture at each of these m positions one entry of its first dimension, and no other read."""
        at, of_row = np.asarray(rows, dtype=np.int64), torch.as_tensor(entries, dtype=torch.int64)
        part, row = self._part[at], torch.from_numpy(self._row[at])
        (first, *_), *_ = self._parts
        found = first.new_empty((len(at), *first.shape[2:]))
        for number in np.unique(part):
            here = torch.from_numpy(np.flatnonzero(part == number))
            found[here] = self._parts[number][0][row[here], of_row[here]]
        return found

    def loaded(self) -> Activations:
        """The same, all of it in memory."""
        return Activations([self._gathered(self._part, self._row)], np.zeros_like(self._row), np.arange(len(self)))

    def _gathered(self, part: NDArray[np.int64], row: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """The values in these rows of these parts, (n, ...) each; (0, 1, 0) where nothing tells their shape."""
        if not self._parts:
            return (torch.empty(0, 1, 0),)
        found = tuple(tensor.new_empty((len(row), *tensor.shape[1:])) for tensor in self._parts[0])
        for number in np.unique(part):
            at = np.flatnonzero(part == number)
            for whole, values in zip(found, self._parts[number], strict=True):
                whole[torch.from_numpy(at)] = values[torch.from_numpy(row[at])]
        return found


class ActivationCache:
    """Activations kept in a folder that several runs may share at any time, and in memory where that cannot be.

    folder: `default_folder()` when None. memory: bytes that one `get` may load, beyond which rows are read from their
    files as they are asked for. disk: bytes that the folder may take, `default_bound` when None; 0 writes nothing.
    announce: told, in one line each, of damage and of why nothing is kept any more. For one thread.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        memory: int = MEMORY,
        disk: int | None = None,
        announce: Callable[[str], None],
    ):
        self.folder = folder or default_folder()
        self.memory = memory
        self.disk = default_bound(self.folder) if disk is None else disk
        self._announce = announce
        self._keeps = disk != 0
        self._indices: dict[str, _Index] = {}

    def __enter__(self) -> ActivationCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def holds(self, family: FeatureKey) -> bool:
        """Whether anything of `family` is there, damaged or not."""
        return bool(self._index(family).where)

    def known(self, family: FeatureKey, keys: Sequence[str]) -> NDArray[np.bool_]:
        """(n,): which of `keys`, sha256 in hex as `family.row_key` gives them, `get` can be asked for.

        The files that hold them are read to compare checksums, each once; what is damaged is deleted and not known.
        """
        index = self._index(family)
        wanted = [bytes.fromhex(key) for key in keys]
        while unchecked := index.unchecked(wanted):
            for rows in unchecked:
                self._check(index, rows)
        return np.array([key in index.where for key in wanted], dtype=np.bool_)

    def get(self, family: FeatureKey, keys: Sequence[str]) -> Activations:
        """The activations under `keys`, in their order. KeyError for one that is not `known`."""
        for key, known in zip(keys, self.known(family, keys), strict=True):
            if not known:
                raise KeyError(f"no activations of {key}")
        index = self._index(family)
        places = [index.where[bytes.fromhex(key)] for key in keys]
        parts = list(dict.fromkeys(rows for rows, _ in places))
        number = {id(rows): position for position, rows in enumerate(parts)}
        part = np.array([number[id(rows)] for rows, _ in places], dtype=np.int64)
        row = np.array([position for _, position in places], dtype=np.int64)
        found = Activations([rows.values for rows in parts], part, row)
        mapped = any(rows.path is not None for rows in parts)
        return found.loaded() if mapped and len(places) * parts[0].row_bytes <= self.memory else found

    def put(self, family: FeatureKey, keys: Sequence[str], values: Values) -> None:
        """Keep `values`, (n, ...) or several such, under n keys; those that are known already stay as they are.

        They are written in files of about SHARD_BYTES, the last ones by `flush` or `close`. ValueError where shapes
        differ from those of the family's other rows, OverflowError for a number that `family.kept_as` cannot hold.
        """
        fresh: dict[str, int] = {}
        for position, (key, known) in enumerate(zip(keys, self.known(family, keys), strict=True)):
            if not known:
                fresh.setdefault(key, position)
        if not fresh:
            return
        index = self._index(family)
        rows = _rows(list(fresh), list(fresh.values()), values, family.dtype)
        if index.form not in (None, rows.form):
            raise ValueError(f"activations of one family have one shape: {index.form}, not {rows.form}")
        at_once = max(1, SHARD_BYTES // max(1, rows.row_bytes))
        for start in range(0, len(rows), at_once):
            index.add(rows.taken(np.arange(start, min(start + at_once, len(rows)))))
            if index.pending_bytes >= SHARD_BYTES:
                self._write(index)

    def has_room(self, size: int) -> bool:
        """Whether `size` bytes more can be kept: in files, or in memory where nothing is written (any more)."""
        if not self._keeps:
            return size <= self.memory
        in_use = sum(len(rows) * rows.row_bytes for index in self._indices.values() for rows in index.rows)
        return in_use + size <= self.disk

    def row_bytes(self, family: FeatureKey) -> int | None:
        """Bytes of one picture's activations; None while there are none."""
        return next((rows.row_bytes for rows in self._index(family).rows), None)

    def flush(self) -> None:
        """Write what was put and is in memory alone."""
        for index in self._indices.values():
            self._write(index)

    def close(self) -> None:
        """As `flush`, and let go of all files. What `get` gave stays usable."""
        self.flush()
        self._indices.clear()

    def _index(self, family: FeatureKey) -> _Index:
        name = family.name
        index = self._indices.setdefault(name, _Index(family, name))
        for path in shards_of(self.folder, name):
            if path not in index.mapped and path not in index.refused:
                self._map(index, path)
        return index

    def _map(self, index: _Index, path: Path) -> None:
        try:
            rows = read_shard(path, index.name)
            if index.form not in (None, rows.form):
                raise InputError(f"{path} holds rows of another shape; it may be damaged")
        except InputError as error:
            if not isinstance(error.__cause__, OSError):
                self._drop(index, path, f"{error}: it is deleted, and its activations are computed again")
            elif path.exists():  # else another run has just deleted it
                index.refused.add(path)
                self._announce(f"{error}: its activations are computed again")
            return
        index.add(rows)

    def _check(self, index: _Index, rows: RowFiles) -> None:
        """Compare the checksums of a file; of a damaged one the good rows go on to another file."""
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
        self._announce(why)
        index.refused.add(path)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            self._announce(f"{path} cannot be deleted: {error.strerror}")

    def _write(self, index: _Index) -> None:
        """Put what is pending into a file, and from then on read it there; where that fails it stays in memory."""
        if not index.pending or not self._keeps:
            return
        rows = _joined(index.pending)
        spare = {path for other in self._indices.values() for path in other.mapped}
        try:
            path = add(self.folder, index.name, asdict(index.family), rows, bound=self.disk, spare=spare)
            if path is None:
                self._stop(f"{self.disk / 1e9:.1f} GB hold no more than what is in use")
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
        self._keeps = False
        self._announce(f"from here on activations are kept in memory, for this run only: {why}")


@dataclass
class _Index:
    """Where a family's rows are. mapped: by file. pending: rows in memory. where: key -> rows and position in them.

    checked: files whose checksums were compared. refused: damaged ones, which it may not have been possible to delete.
    """

    family: FeatureKey
    name: str
    mapped: dict[Path, RowFiles] = field(default_factory=dict)
    pending: list[RowFiles] = field(default_factory=list)
    where: dict[bytes, tuple[RowFiles, int]] = field(default_factory=dict)
    checked: set[Path] = field(default_factory=set)
    refused: set[Path] = field(default_factory=set)

    @property
    def rows(self) -> list[RowFiles]:
        return [*self.pending, *self.mapped.values()]

    @property
    def form(self) -> object:
        """Dtypes and shapes of a row, None while there is none."""
        return next((rows.form for rows in self.rows), None)

    @property
    def pending_bytes(self) -> int:
        return sum(len(rows) * rows.row_bytes for rows in self.pending)

    def unchecked(self, keys: Sequence[bytes]) -> list[RowFiles]:
        """The files among those that hold `keys` whose checksums were not compared yet."""
        holders = {self.where[key][0] for key in keys if key in self.where}
        return [rows for rows in holders if rows.path is not None and rows.path not in self.checked]

    def add(self, rows: RowFiles) -> None:
        if rows.path is None:
            self.pending.append(rows)
        else:
            self.mapped[rows.path] = rows
        for position, key in enumerate(rows.keys):
            self.where.setdefault(key.tobytes(), (rows, position))

    def replace(self, old: Sequence[RowFiles], new: Sequence[RowFiles]) -> None:
        kept = [rows for rows in self.rows if rows not in old]
        self.mapped, self.pending, self.where = {}, [], {}
        for rows in (*kept, *new):
            self.add(rows)


def _rows(keys: Sequence[str], positions: Sequence[int], values: Values, dtype: torch.dtype) -> RowFiles:
    """Those at `positions` of `values`, under their keys, as they are kept."""
    tensors = values if isinstance(values, tuple) else (values,)
    kept = tuple(_converted(tensor[torch.tensor(positions)], dtype) for tensor in tensors)
    return RowFiles(np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), -1), kept)


def _joined(parts: Sequence[RowFiles]) -> RowFiles:
    values = tuple(torch.cat(tensors) for tensors in zip(*(rows.values for rows in parts), strict=True))
    return RowFiles(np.concatenate([rows.keys for rows in parts]), values)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    kept = tensor.detach().cpu().to(dtype).contiguous()
    if (kept.isinf() & tensor.isfinite().cpu()).any():
        raise OverflowError(f"activations up to {tensor.abs().max():g} do not fit {dtype}; keep them as bfloat16")
    return kept
