"""The keys of an index: which row of the engine each has, their order, their metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.search.arguments import check_keys
from fewshot.search.choice import memory_of_keys
from fewshot.search.key_table import Entry
from finetune.errors import InputError


class KeyRows:
    """Keys in the order of adding, each with a row of the engine and perhaps metadata, as JSON text.

    rows: Number of rows of the engine, with removed ones. ValueError if two entries have one key.
    """

    def __init__(self, rows: int, entries: Sequence[Entry]):
        self.row_of = {entry.key: entry.row for entry in entries}
        self.metadata = {entry.key: entry.metadata for entry in entries if entry.metadata is not None}
        if len(self.row_of) != len(entries):
            raise ValueError("two keys are the same")
        self._by_row = np.full(rows, None, object)  # None for a removed one
        self._by_row[list(self.row_of.values())] = list(self.row_of)

    def entries(self) -> Iterator[Entry]:
        return (Entry(key, row, self.metadata.get(key)) for key, row in self.row_of.items())

    def bytes(self) -> int:
        """Memory that keys and metadata take."""
        return memory_of_keys(key + self.metadata.get(key, "") for key in self.row_of)

    def rows(self, keys: Sequence[str]) -> list[int]:
        """InputError for a key that is not in the index."""
        check_keys(keys)
        try:
            return [self.row_of[key] for key in keys]
        except KeyError as error:
            raise InputError(f"key {error.args[0]!r} is not in the index") from error

    def at(self, rows: NDArray[np.int64]) -> NDArray[np.object_]:
        """The keys of rows, of the same shape."""
        keys: NDArray[np.object_] = self._by_row[rows]
        return keys

    def assign(self, first: int, keys: Sequence[str]) -> None:
        """Give keys the rows from `first` on. Keys that had other rows keep their place in the order."""
        end = first + len(keys)
        if end > len(self._by_row):
            more = np.full(max(end, 2 * first) - len(self._by_row), None, object)
            self._by_row = np.concatenate([self._by_row, more])
        for key in keys:
            if (row := self.row_of.get(key)) is not None:
                self._by_row[row] = None
        self._by_row[first:end] = keys
        self.row_of.update(zip(keys, range(first, end), strict=True))

    def remove(self, keys: Sequence[str], moved: Sequence[tuple[int, int]]) -> None:
        """Remove keys. moved: Rows that the engine has moved, (from, to), in order."""
        for key in keys:
            self._by_row[self.row_of.pop(key)] = None
            self.metadata.pop(key, None)
        for source, target in moved:
            key = self._by_row[source]
            self._by_row[source], self._by_row[target], self.row_of[key] = None, key, target

    def describe(self, keys: Sequence[str], metadata: Mapping[str, str]) -> None:
        """Replace the metadata of keys; those that `metadata` leaves out have none."""
        for key in keys:
            self.metadata.pop(key, None)
        self.metadata.update(metadata)

    def renumbered(self, keys: Sequence[str], rows: Sequence[int], metadata: Mapping[str, str]) -> list[Entry]:
        """Entries of these keys with other rows. metadata: Of new keys."""
        texts: dict[str, Any] = self.metadata | dict(metadata)
        return [Entry(key, row, texts.get(key)) for key, row in zip(keys, rows, strict=True)]
