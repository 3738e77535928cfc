from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_index import WIDTH, assert_exact, named, unit

from fewshot.search.engines import Vectors, disagreements, nearest
from fewshot.search.index import Index
from finetune.errors import InputError


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 2**32))
def test_the_index_and_a_plain_product_agree_on_every_neighbour(n: int, m: int, seed: int) -> None:
    vectors, queries, index = unit(n, seed), unit(m, seed + 1), Index(WIDTH)
    index.add(named(n), vectors)
    assert_exact(index, queries, 10)
    assert (np.diff(nearest(vectors, queries, min(n, 10))[0], axis=1) <= 0).all()


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
    ("gallery", "queries", "k", "message"),
    [
        (unit(5), unit(2), 6, "6 neighbours of 5"),
        (unit(5), unit(2), 0, "0 neighbours of 5"),
        (unit(5), unit(2, width=4), 1, r"shape \(5, 8\) cannot be asked by queries of shape \(2, 4\)"),
        (2 * unit(5), unit(2), 1, "gallery: vectors of length 1"),
        (unit(5), np.full((1, WIDTH), np.nan, np.float32), 1, "queries: vectors of length 1"),
    ],
)
def test_what_cannot_be_answered_is_refused(gallery: Vectors, queries: Vectors, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        nearest(gallery, queries, k)
