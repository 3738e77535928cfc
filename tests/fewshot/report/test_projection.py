from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.report.map import METHODS, MOST, project
from finetune.errors import InputError


def clusters(count: int = 4, each: int = 12, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (n, width) in distant clusters, and the cluster of each (n,)."""
    random = np.random.default_rng(0)
    cluster = np.repeat(np.arange(count), each)
    return (10 * np.eye(count, width)[cluster] + random.normal(0, 0.1, (len(cluster), width))).astype(
        np.float32
    ), cluster


@pytest.mark.parametrize("method", METHODS)
def test_separate_clusters_stay_separate(method: str) -> None:
    vectors, cluster = clusters(3)
    found = project(vectors, method)  # type: ignore[arg-type]
    distance = np.linalg.norm(found.places[:, None] - found.places, axis=2)
    np.fill_diagonal(distance, np.inf)
    assert (cluster[distance.argmin(1)] == cluster).all()
    assert found.method == method
    assert found.trust is not None
    assert found.trust > 0.8
    assert (found.variance is not None) == (method == "pca")


@settings(max_examples=30)
@given(rows=st.integers(1, 40), width=st.integers(1, 6), seed=st.integers(0, 9))
def test_places_lie_in_the_unit_square(rows: int, width: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    found = project(vectors, "pca")
    assert found.places.shape == (rows, 2)
    assert np.isfinite(found.places).all()
    assert found.places.min() >= -1e-9
    assert found.places.max() <= 1 + 1e-9


@pytest.mark.parametrize("rows", [4, 5, 9])
def test_few_vectors_are_projected_by_t_sne(rows: int) -> None:
    found = project(np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32))
    assert found.method == "t-sne"
    assert np.isfinite(found.places).all()


def test_equal_vectors_are_placed_in_the_centre() -> None:
    found = project(np.full((30, 4), 0.3, np.float32))
    assert (found.places == 0.5).all()
    assert (found.method, found.trust) == ("pca", None)


def test_a_seed_determines_the_map() -> None:
    vectors, _ = clusters()
    assert (project(vectors, seed=3).places == project(vectors, seed=3).places).all()


@pytest.mark.parametrize(
    "vectors",
    [
        np.zeros((0, 3), np.float32),
        np.zeros(3, np.float32),
        np.zeros((MOST + 1, 2), np.float32),
        np.full((5, 2), np.nan, np.float32),
    ],
)
def test_invalid_vectors_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(InputError, match="the vectors of a map must"):
        project(vectors)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(InputError, match="method must be t-sne or pca"):
        project(np.zeros((5, 2), np.float32), "umap")  # type: ignore[arg-type]
