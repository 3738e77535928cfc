"""Checks of the keys, vectors and metadata that an index is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from fewshot.search.engines import Vectors
from fewshot.search.faiss_format import SQUARED_WITHIN
from finetune.errors import InputError

if TYPE_CHECKING:
    from fewshot.search.index import Index
    from fewshot.search.table.lance_index import LanceIndex

Metadata = Mapping[str, Any]  # JSON values


class Mergeable(Protocol):
    """What decides whether the vectors of two indexes can be mixed."""

    @property
    def width(self) -> int: ...

    @property
    def fingerprint(self) -> str | None: ...


def check_keys(keys: Sequence[str]) -> None:
    """InputError unless the keys are different strings that are not empty."""
    if isinstance(keys, str):
        raise InputError(f"keys must be a list, not the single key {keys!r}")
    seen: set[str] = set()
    for at, key in enumerate(keys):
        if not isinstance(key, str) or not key:
            raise InputError(f"key {at} is {key!r}; a key must be a str that is not empty")
        if key in seen:
            raise InputError(f"key {key!r} is given twice")
        seen.add(key)


def check_new_keys(keys: Sequence[str], index: Index) -> None:
    """As `check_keys`; InputError also for a key that is in the index."""
    check_keys(keys)
    for key in keys:
        if key in index:
            raise InputError(f"key {key!r} is in the index already; use replace for another vector")


def check_search(k: int, at_least: float | None) -> None:
    """InputError for a number of neighbours below 1, or a similarity that is not a number."""
    if k < 1:
        raise InputError(f"k must be >= 1, not {k}")
    if at_least is not None and not -np.inf <= at_least <= np.inf:
        raise InputError(f"at_least must be a similarity, not {at_least}")


def check_same_vectors(index: Mergeable, other: Mergeable) -> None:
    """InputError unless both have vectors of one embedder."""
    if other.width != index.width:
        raise InputError(f"widths differ: {other.width} and {index.width}")
    if other.fingerprint != index.fingerprint:
        raise InputError(
            f"the vectors are of different embedders, {other.fingerprint} and {index.fingerprint}: embed again"
        )


def check_mergeable(index: Index, other: Index | LanceIndex) -> None:
    """InputError unless both have vectors of one embedder, and no key is in both."""
    check_same_vectors(index, other)
    for key in other.keys:
        if key in index:
            raise InputError(f"key {key!r} is in both indexes; remove it from one of them")


def checked_vectors(vectors: ArrayLike, width: int, keys: Sequence[str] | None = None) -> Vectors:
    """Vectors as FAISS takes them. InputError unless (n, width), one for each of `keys`, and each of length 1."""
    given = np.asarray(vectors)
    if given.ndim != 2 or given.shape[1] != width or given.dtype.kind not in "fiu":
        shape = f"{given.dtype} of shape {given.shape}"
        raise InputError(f"vectors must be numbers of shape (n, {width}), not {shape}")
    if keys is not None and len(given) != len(keys):
        raise InputError(f"{len(given)} vectors for {len(keys)} keys; give one for each")
    with np.errstate(over="ignore"):  # an overflow is refused below
        checked = np.ascontiguousarray(given, np.float32)
        squared = np.vecdot(checked, checked)
    good = np.abs(squared - 1) <= SQUARED_WITHIN
    if not good.all():
        at = int(np.argmin(good))
        length = float(np.sqrt(squared[at]))
        name = f"vector {at}" if keys is None else f"vector {at}, of key {keys[at]!r},"
        what = f"has length {length:.6g}" if np.isfinite(length) else "holds a number that is not finite"
        raise InputError(f"{name} {what}; the length must be 1: divide each vector by its length")
    return checked


def as_json(keys: Sequence[str], metadata: Sequence[Metadata] | None) -> dict[str, str]:
    """Key -> JSON text of its metadata; keys without metadata are absent."""
    if metadata is None:
        return {}
    if len(metadata) != len(keys):
        raise InputError(f"{len(metadata)} entries of metadata for {len(keys)} keys; give one for each")
    texts = {}
    for key, entry in zip(keys, metadata, strict=True):
        if not isinstance(entry, Mapping):
            raise InputError(f"metadata of key {key!r}: it must be a mapping, not {type(entry).__name__}")
        try:
            text = json.dumps(dict(entry), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"metadata of key {key!r} cannot be written as JSON: {error}") from error
        if entry:
            texts[key] = text
    return texts


def parsed_metadata(text: str, key: str) -> dict[str, Any]:
    """Metadata from their JSON text, which may be empty. InputError where it is something else."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"metadata of key {key!r} are not valid JSON ({error}); the index is damaged") from error
    if not isinstance(found, dict):
        raise InputError(f"metadata of key {key!r} are not a mapping; the index is damaged")
    return found
