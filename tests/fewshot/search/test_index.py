from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from made_index import KINDS, WIDTH, assert_exact, assert_same, filled, named, unit

from fewshot.search.index import Index
from fewshot.search.neighbours import Neighbour
from finetune.errors import InputError

# ------------------------------------------------------------------------------------------------ search


@pytest.mark.parametrize("m", [1, 3, 15, 16, 200])
def test_exact_search_equals_a_plain_comparison(m: int) -> None:
    assert_exact(filled(300), unit(m, seed=1), 10)


def test_neighbours_are_sorted_by_similarity() -> None:
    index = filled()
    found = index.search(unit(4), 3)
    assert found.similarity.shape == found.keys.shape == (4, 3)
    assert found.similarity.dtype == np.float32
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    assert len(found) == 4
    assert [answers[0].key for answers in found] == named(4)
    assert found[0][0] == Neighbour("key 0", pytest.approx(1, abs=1e-6))


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_returns_at_most_the_size_of_the_index(kind: str) -> None:
    assert filled(3, kind).search(unit(2), 10).keys.shape == (2, 3)


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_an_empty_index_returns_no_neighbours(kind: str) -> None:
    index = Index(WIDTH, kind=kind)
    assert list(index.search(unit(2))) == [[], []]
    index.compact()
    assert index.keys == ()
    assert index.vectors([]).shape == (0, WIDTH)
    assert list(filled(3, kind).search(unit(0))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_at_least_leaves_out_less_similar_neighbours(kind: str) -> None:
    index = filled(50, kind)
    found = index.search(unit(5), 10, at_least=0.5)
    assert [[answer.similarity >= 0.5 for answer in answers] for answers in found] == [
        [True] * len(answers) for answers in found
    ]
    everything = index.search(unit(5), 10)
    assert [len(answers) for answers in found] == (everything.similarity >= 0.5).sum(1).tolist()
    assert (found.similarity[found.keys == None] == -np.inf).all()  # noqa: E711  by element


def test_a_result_does_not_change_with_the_index() -> None:
    index = filled()
    found = index.search(unit(1), 2)
    before = found[0]
    index.remove(named(50))
    index.add(["other"], unit(1))
    assert found[0] == before


def test_searches_run_in_parallel() -> None:
    index, queries = filled(500), unit(40, seed=1)
    expected = index.search(queries, 5)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: index.search(queries, 5), range(40)):
            assert (found.keys == expected.keys).all()


# ------------------------------------------------------------------------------------------------ changes


@pytest.mark.parametrize("kind", KINDS)
def test_keys_keep_their_order_and_vectors_every_bit(kind: str) -> None:
    index, vectors = Index(WIDTH, kind=kind), unit(20)
    index.add(named(20), vectors)
    index.remove(["key 3", "key 0", "key 19"])
    index.replace(["key 5"], vectors[:1])
    left = [number for number in range(20) if number not in (0, 3, 19)]
    assert index.keys == tuple(f"key {number}" for number in left)
    vectors[5] = vectors[0]
    assert np.array_equal(index.vectors(index.keys), vectors[left])
    assert len(index) == 17
    assert "key 5" in index
    assert "key 3" not in index
    assert 3 not in index


def test_metadata_is_stored_as_json_and_copied() -> None:
    index, entry = Index(WIDTH), {"label": "cow", "box": [1, 2]}
    index.add(["a", "b"], unit(2), [entry, {}])
    entry["label"] = "cat"
    index.metadata("a")["box"].append(3)
    assert index.metadata("a") == {"label": "cow", "box": [1, 2]}
    assert index.metadata("b") == {}
    index.replace(["a"], unit(1, seed=1))
    assert index.metadata("a")["label"] == "cow"
    index.replace(["a"], unit(1, seed=1), [{}])
    assert index.metadata("a") == {}
    index.remove(["b"])
    index.add(["b"], unit(1))
    assert index.metadata("b") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_two_indexes_of_one_embedder_merge(kind: str) -> None:
    index, other = filled(5, kind, fingerprint="abc"), Index(WIDTH, fingerprint="abc")
    other.add(["x", "y"], unit(2, seed=1), [{"a": 1}, {}])
    index.merge(other)
    assert index.keys == (*named(5), "x", "y")
    assert index.metadata("x") == {"a": 1}
    assert index.search(unit(2, seed=1), 1).keys[:, 0].tolist() == ["x", "y"]


@pytest.mark.parametrize("kind", KINDS)
def test_compact_keeps_the_content(kind: str) -> None:
    index = filled(200, kind)
    index.remove(named(90))
    keys, vectors = index.keys, index.vectors(index.keys)
    index.compact()
    assert index.keys == keys
    assert np.array_equal(index.vectors(keys), vectors)
    assert index.search(vectors, 1).keys[:, 0].tolist() == list(keys)


def test_removing_takes_time_proportional_to_the_removed_vectors() -> None:
    n, width = 100_000, 4
    index = Index(width)
    index.add(named(n), np.tile(np.eye(1, width, dtype=np.float32), (n, 1)))
    started = time.perf_counter()
    for number in range(500):
        index.remove([f"key {number}"])
    # A pass over all would take hundreds of times as long.
    assert (time.perf_counter() - started) / 500 < 1e-3
    assert len(index) == n - 500


# ------------------------------------------------------------------------------------------------ refusals


TWICE = np.repeat(unit(1), 2, axis=0)
NAN = np.full((1, WIDTH), np.nan, np.float32)
WRONG = [
    (["a"], NAN, None, "vector 0, of key 'a', holds a number that is not finite"),
    (["a"], np.full((1, WIDTH), np.inf, np.float32), None, "number that is not finite"),
    (["a"], np.full((1, WIDTH), 1e300), None, "number that is not finite"),
    (["a", "b"], TWICE * [[1], [2]], None, "vector 1, of key 'b', has length 2; .* divide each vector by its length"),
    (["a"], unit(1) * np.float32(1.002), None, "has length 1.002"),
    (["a"], np.zeros((1, WIDTH), np.float32), None, "has length 0"),
    (["a"], unit(1, width=3), None, r"shape \(n, 8\), not float32 of shape \(1, 3\)"),
    (["a"], unit(1)[0], None, r"not float32 of shape \(8,\)"),
    (["a"], [["x"] * WIDTH], None, "must be numbers of shape"),
    (["a", "b"], unit(1), None, "1 vectors for 2 keys"),
    (["a", "a"], unit(2), None, "key 'a' is given twice"),
    (["a", "key 1"], unit(2), None, "key 'key 1' is in the index already; use replace"),
    (["a", ""], unit(2), None, "key 1 is ''; a key must be a str that is not empty"),
    ([3], unit(1), None, "key 0 is 3"),
    ("a", unit(1), None, "keys must be a list, not the single key 'a'"),
    (["a"], unit(1), [], "0 entries of metadata for 1 keys"),
    (["a"], unit(1), [{"x": object()}], "metadata of key 'a' cannot be written as JSON"),
    (["a"], unit(1), [{"x": float("nan")}], "metadata of key 'a' cannot be written as JSON"),
    (["a"], unit(1), ["x"], "metadata of key 'a': it must be a mapping, not str"),
]


@pytest.mark.parametrize(("keys", "vectors", "metadata", "message"), WRONG)
def test_invalid_additions_are_refused_and_change_nothing(keys: Any, vectors: Any, metadata: Any, message: str) -> None:
    index = filled(5)
    with pytest.raises(InputError, match=message):
        index.add(keys, vectors, metadata)
    assert_same(index, filled(5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_with_an_unknown_key_changes_nothing(kind: str) -> None:
    index = filled(5, kind)
    for change in (
        lambda: index.remove(["key 1", "x"]),
        lambda: index.replace(["key 1", "x"], unit(2, seed=1)),
        lambda: index.vectors(["x"]),
        lambda: index.metadata("x"),
    ):
        with pytest.raises(InputError, match="key 'x' is not in the index"):
            change()
    with pytest.raises(InputError, match="key 'key 1' is given twice"):
        index.remove(["key 1", "key 1"])
    with pytest.raises(InputError, match="number that is not finite"):
        index.replace(["key 1"], NAN)
    assert_same(index, filled(5, kind))


def test_indexes_that_do_not_match_are_not_merged() -> None:
    index = filled(5, fingerprint="abc")
    for other, message in (
        (Index(3, fingerprint="abc"), "widths differ: 3 and 8"),
        (Index(WIDTH, fingerprint="def"), "the vectors are of different embedders, def and abc: embed again"),
        (filled(1, fingerprint="abc"), "key 'key 0' is in both indexes"),
    ):
        with pytest.raises(InputError, match=message):
            index.merge(other)
    assert_same(index, filled(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be >= 1, not 0"),
        ({"at_least": float("nan")}, "at_least must be a similarity, not nan"),
        ({"vectors": NAN}, "vector 0 holds a number that is not finite"),
        ({"vectors": unit(2, width=3)}, r"not float32 of shape \(2, 3\)"),
        ({"vectors": 2 * unit(2)}, "vector 0 has length 2"),
    ],
)
def test_invalid_searches_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        filled(5).search(**{"vectors": unit(2)} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be >= 1, not 0"),
        ({"kind": "flat"}, "kind must be one of auto, exact, ivf, hnsw, pq, not 'flat'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, not 'tpu'"),
        ({"least_recall": 95}, "least_recall must be above 0"),
    ],
)
def test_invalid_options_of_an_index_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Index(**{"width": WIDTH} | options)
