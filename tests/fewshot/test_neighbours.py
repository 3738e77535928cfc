from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.neighbours import Vectors, disagreements, nearest
from finetune.errors import InputError


def unit(n: int, d: int = 8, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 2**32))
def test_faiss_and_torch_agree_on_every_neighbour(n: int, m: int, seed: int) -> None:
    gallery, queries = unit(n, seed=seed), unit(m, seed=seed + 1)
    k = min(n, 10)
    one, other = (nearest(gallery, queries, k, engine) for engine in ("torch", "faiss-cpu"))
    assert disagreements(one, other) == 0
    assert (np.diff(one[0], axis=1) <= 0).all()


def test_each_vector_is_its_own_nearest_neighbour() -> None:
    vectors = unit(50)
    similarity, rows = nearest(vectors, vectors, 1)
    assert (rows[:, 0] == np.arange(50)).all()
    assert np.allclose(similarity, 1, atol=1e-6)


def test_ties_may_be_told_in_any_order_but_another_neighbour_is_a_disagreement() -> None:
    similarity = np.array([[0.9, 0.5, 0.5, 0.1]], np.float32)
    rows = np.array([[3, 1, 2, 0]])
    assert disagreements((similarity, rows), (similarity, np.array([[3, 2, 1, 0]]))) == 0
    assert disagreements((similarity, rows), (similarity, np.array([[2, 1, 3, 0]]))) == 1
    assert disagreements((similarity, rows), (similarity - 0.01, rows)) == 1
    # What stands past the last place may tie with it.
    assert disagreements((similarity, rows), (similarity, np.array([[3, 1, 2, 7]]))) == 0


@pytest.mark.parametrize(
    ("gallery", "queries", "k", "engine", "message"),
    [
        (unit(5), unit(2), 6, "torch", "6 neighbours of 5"),
        (unit(5), unit(2), 0, "torch", "0 neighbours of 5"),
        (unit(5), unit(2, 4), 1, "torch", r"shape \(5, 8\) cannot be asked by queries of shape \(2, 4\)"),
        (2 * unit(5), unit(2), 1, "torch", "gallery: vectors of length 1"),
        (unit(5), np.full((1, 8), np.nan, np.float32), 1, "faiss-cpu", "queries: vectors of length 1"),
        (unit(5), unit(2), 1, "annoy", "no engine 'annoy'; there are torch, faiss-cpu, faiss-gpu"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    gallery: Vectors, queries: Vectors, k: int, engine: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        nearest(gallery, queries, k, engine)


def test_a_gpu_that_is_not_there_is_named() -> None:
    faiss = pytest.importorskip("faiss")
    if hasattr(faiss, "get_num_gpus") and faiss.get_num_gpus():
        assert disagreements(nearest(unit(99), unit(9), 5), nearest(unit(99), unit(9), 5, "faiss-gpu")) == 0
    else:
        with pytest.raises(InputError, match="FAISS sees no GPU"):
            nearest(unit(5), unit(2), 1, "faiss-gpu")
