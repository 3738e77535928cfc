from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_neighbours import nearest
from made_index import WIDTH, assert_exact, filled, named, unit

from fewshot.search.engines import Approximate
from fewshot.search.index import Index
from finetune.errors import InputError


def test_a_gpu_gives_the_same_answers_or_is_reported_missing() -> None:
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device cuda: torch sees no CUDA device"):
            Index(WIDTH, device="cuda")
        return
    index = filled(3000, device="cuda")
    for change in (lambda: None, lambda: index.remove(named(7)), lambda: index.replace(["key 9"], unit(1))):
        change()
        assert_exact(index, unit(50, seed=1), 10)
        assert_exact(index, unit(2, seed=1), 2500)  # more neighbours than FAISS finds on a GPU


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ivf", "hnsw", "pq"])
def test_an_approximate_index_reaches_and_reports_its_recall(kind: str) -> None:
    index = Index(32, kind=kind, least_recall=0.97)
    vectors, queries = unit(4000, width=32), unit(300, seed=1, width=32)
    index.add(named(4000), vectors)
    found = index.search(queries, 10)
    _, rows = nearest(vectors, queries, 10)
    hits = [len({f"key {row}" for row in true} & set(keys)) for true, keys in zip(rows, found.keys, strict=True)]
    assert index.structure == kind
    assert 0.97 <= index.recall <= 1
    assert np.mean(hits) / 10 > index.recall - 0.03
    assert f"{kind}, recall {index.recall:.3f}" in repr(index)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "pq"])
def test_an_approximate_index_skips_removed_vectors_and_finds_k(kind: str) -> None:
    index, vectors = Index(WIDTH, kind=kind), unit(1000)
    index.add(named(1000), vectors)
    index.remove(named(498, first=2))
    found = index.search(vectors[:300], 10)
    assert not set(found.keys.flat) & set(named(498, first=2))
    index.remove(named(1000)[500:993])
    left = ["key 0", "key 1", *named(7, first=993)]
    assert all(sorted(keys) == sorted(left) for keys in index.search(vectors[:20], 9).keys)


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "pq"])
def test_an_approximate_index_grown_from_one_vector_keeps_its_recall(kind: str) -> None:
    index, vectors = Index(WIDTH, kind=kind), unit(2000)
    index.add(["key 0"], vectors[:1])
    for first in range(1, 2000, 100):
        index.add(named(2000)[first : first + 100], vectors[first : first + 100])
    assert index.recall >= 0.95
    assert (index.search(vectors, 1).keys[:, 0] == named(2000)).mean() >= 0.95


def test_repeated_replacing_does_not_fill_memory() -> None:
    index = filled(20, "hnsw")
    for seed in range(20):
        index.replace(named(20), unit(20, seed))
    assert index._engine.faiss_index.ntotal <= 60


def test_equal_vectors_do_not_lower_the_recall() -> None:
    index = Index(WIDTH, kind="ivf")
    index.add(named(300), np.repeat(unit(3), 100, axis=0))
    assert index.recall == 1


@pytest.mark.slow
def test_auto_is_exact_until_codes_are_much_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot.search.choice.AUTO_FROM", 10_000)
    monkeypatch.setattr("fewshot.search.choice.AUTO_SHARE", 0.9)
    random_numbers = np.random.default_rng(0)
    near = unit(1000, width=32).repeat(12, 0) + 0.05 * random_numbers.standard_normal((12_000, 32), dtype=np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    gains, does_not = Index(32, device="cpu"), Index(32, device="cpu")
    gains.add(named(6000), near[::2])
    assert gains.structure == "exact"
    gains.add(named(6000, first=6000), near[1::2])
    assert (gains.kind, gains.structure) == ("auto", "pq")
    assert gains.recall >= 0.99
    gains.remove(named(5000))
    gains.compact()
    assert gains.structure == "exact"
    # Where vectors have no near neighbours, codes do not help.
    does_not.add(named(12_000), unit(12_000, width=32))
    assert does_not.structure == "exact"
    assert does_not.recall == 1


def test_a_measured_recall_counts_less_its_uncertainty() -> None:
    """Without it, about half of the tunings would promise a recall that other queries do not reach."""
    engine = Approximate.of("ivf", unit(2000), 0.5)
    engine.effort = 8
    queries = unit(100, seed=1)
    least = engine._last_similarity(queries)
    engine._reaches(0, queries, least)
    assert 0.2 < engine.recall < 0.98
    assert not engine._reaches(engine.recall - 0.005, queries, least)
    assert engine._reaches(engine.recall - 0.15, queries, least)


def test_vectors_in_large_pages_grow_and_shrink() -> None:
    vectors = unit(40_000, width=64)  # 10 MB
    exact = Index(64, kind="exact", device="cpu")
    exact.add(named(100), vectors[:100])
    exact.search(vectors[:1], 1)
    exact.add(named(39_900, first=100), vectors[100:])
    assert exact.search(vectors[-1:], 1)[0][0].key == named(1, first=39_999)[0]
    exact.remove(named(39_999))
    assert exact.search(vectors[:2], 5).keys.tolist() == [named(1, first=39_999)] * 2
