"""Small indexes of random vectors, and assertions on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from exact_neighbours import disagreements, nearest

from fewshot.search.engines import Vectors
from fewshot.search.index import Index

WIDTH = 8
KINDS = ("exact", "ivf", "hnsw")


def unit(n: int, seed: int = 0, width: int = WIDTH) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def named(n: int, first: int = 0) -> list[str]:
    return [f"key {number}" for number in range(first, first + n)]


def filled(n: int = 50, kind: str = "exact", **options: Any) -> Index:
    index = Index(WIDTH, kind=kind, **options)
    index.add(named(n), unit(n))
    return index


def assert_same(index: Index, other: Index) -> None:
    assert index.keys == other.keys
    assert np.array_equal(index.vectors(index.keys), other.vectors(other.keys))
    assert [index.metadata(key) for key in index.keys] == [other.metadata(key) for key in other.keys]


def assert_exact(index: Index, queries: Vectors, k: int) -> None:
    """The answers are those of a comparison with all vectors, except for the order of ties."""
    found = index.search(queries, k)
    rows = {key: row for row, key in enumerate(index.keys)}
    similarity, expected = nearest(index.vectors(index.keys), queries, min(k, len(index)))
    answered = np.array([[rows[key] for key in keys] for keys in found.keys])
    assert disagreements((found.similarity, answered), (similarity, expected)) == 0
