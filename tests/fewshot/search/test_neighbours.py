from __future__ import annotations

import numpy as np
from exact_neighbours import disagreements, nearest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_index import WIDTH, assert_exact, named, unit

from fewshot.search.index import Index


@settings(max_examples=25)
@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 2**32))
def test_the_index_and_a_plain_product_find_the_same_neighbours(n: int, m: int, seed: int) -> None:
    vectors, queries, index = unit(n, seed), unit(m, seed + 1), Index(WIDTH)
    index.add(named(n), vectors)
    assert_exact(index, queries, 10)
    assert (np.diff(nearest(vectors, queries, min(n, 10))[0], axis=1) <= 0).all()


def test_each_vector_is_its_own_nearest_neighbour() -> None:
    vectors = unit(50)
    similarity, rows = nearest(vectors, vectors, 1)
    assert (rows[:, 0] == np.arange(50)).all()
    assert np.allclose(similarity, 1, atol=1e-6)


def test_disagreements_allow_for_ties_alone() -> None:
    similarity = np.array([[0.9, 0.5, 0.5, 0.1]], np.float32)
    rows = np.array([[3, 1, 2, 0]])
    assert disagreements((similarity, rows), (similarity, np.array([[3, 2, 1, 0]]))) == 0
    assert disagreements((similarity, rows), (similarity, np.array([[2, 1, 3, 0]]))) == 1
    assert disagreements((similarity, rows), (similarity - 0.01, rows)) == 1
    # What stands past the last place may tie with it.
    assert disagreements((similarity, rows), (similarity, np.array([[3, 1, 2, 7]]))) == 0
