"""Rows of a table by their keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fewshot.search.engines import Vectors
from fewshot.search.table.columns import KEY, PLACE, TEXT, VECTOR, as_vectors, has_key, key_of, stored_key
from fewshot.search.table.library import lance_errors
from finetune.errors import InputError

_KEYS_AT_ONCE = 1000  # in a condition
_WORTH_A_PASS = 4 * _KEYS_AT_ONCE  # from this number on, one pass over the table is faster
_MOST_BUFFERED = 64 << 20


def batches_of(dataset: Any, keys: Sequence[str], columns: Sequence[str]) -> Iterator[Any]:
    """Batches of the rows with these keys, in any order; the first of `columns` must be the key."""
    with lance_errors("the table cannot be read"):
        if len(keys) < _WORTH_A_PASS:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                some = has_key(keys[start : start + _KEYS_AT_ONCE])
                yield from dataset.scanner(columns=list(columns), filter=some).to_batches()
            return
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array([stored_key(key) for key in keys], pa.string())
        scanner = dataset.scanner(columns=list(columns), io_buffer_size=_MOST_BUFFERED, batch_readahead=2)
        for batch in scanner.to_batches():
            found = batch.filter(pc.is_in(batch.column(KEY), value_set=wanted))
            if len(found):
                yield found


def found_keys(dataset: Any, keys: Sequence[str]) -> set[str]:
    """Which of the keys are in the table."""
    return {key_of(key) for batch in batches_of(dataset, keys, [KEY]) for key in batch.column(KEY).to_pylist()}


def refuse_missing(dataset: Any, keys: Sequence[str]) -> None:
    """InputError for the first key that is not in the table."""
    found = found_keys(dataset, keys)
    for key in keys:
        if key not in found:
            raise InputError(f"key {key!r} is not in the index")


def vectors_of(dataset: Any, keys: Sequence[str], width: int) -> Vectors:
    """Vectors (n, width). InputError for a key that is not in the table."""
    at, found = {stored_key(key): row for row, key in enumerate(keys)}, np.zeros(len(keys), bool)
    vectors = np.empty((len(keys), width), np.float32)
    for batch in batches_of(dataset, keys, [KEY, VECTOR]):
        here = [at[key] for key in batch.column(KEY).to_pylist()]
        vectors[here], found[here] = as_vectors(batch, width), True
    if not found.all():
        raise InputError(f"key {keys[int(np.argmin(found))]!r} is not in the index")
    return vectors


def texts_of(dataset: Any, keys: Sequence[str]) -> dict[str, str]:
    """Key -> JSON text of its metadata. InputError for a key that is not in the table."""
    texts: dict[str, str] = {}
    for batch in batches_of(dataset, keys, [KEY, TEXT]):
        names = [key_of(key) for key in batch.column(KEY).to_pylist()]
        texts.update(zip(names, batch.column(TEXT).to_pylist(), strict=True))
    for key in keys:
        if key not in texts:
            raise InputError(f"key {key!r} is not in the index")
    return texts


def keys_in_order(dataset: Any) -> tuple[str, ...]:
    """All keys in the order of adding. Two that were added at once by two processes are in the order of their names."""
    with lance_errors("the table cannot be read"):
        table = dataset.scanner(columns=[PLACE, KEY], io_buffer_size=_MOST_BUFFERED).to_table()
        table = table.sort_by([(PLACE, "ascending"), (KEY, "ascending")])
    return tuple(key_of(key) for key in table[KEY].to_pylist())
