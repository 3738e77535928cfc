"""An index whose searches may take a number of bytes: what it chooses, what it refuses, and how it is opened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_index import assert_same, named, unit

from fewshot.search.choice import AUTO_FROM, Choice, memory_of, memory_of_keys, shown
from fewshot.search.index import Index
from finetune.errors import InputError

WIDTH, N = 64, 2000
KEYS = memory_of_keys(named(N))
EXACT = memory_of("exact", N, WIDTH) + KEYS
CODES = memory_of("pq", N, WIDTH, mapped=True) + KEYS


def limited(memory: int | None, kind: str = "auto") -> Index:
    index = Index(WIDTH, kind=kind, memory=memory, device="cpu")
    index.add(named(N), unit(N, width=WIDTH))
    return index


def test_auto_takes_codes_where_vectors_do_not_fit() -> None:
    assert limited(None).structure == limited(EXACT).structure == "exact"
    index = limited(EXACT - 1)
    assert index.structure == "pq"
    assert index.recall >= 0.99
    assert "more than the" in index.memory_use()
    assert "read the vectors of the best candidates from disk" in index.memory_use()
    assert "of the 2 MB allowed" in limited(2 * 10**6).memory_use()
    assert limited(CODES).structure == "pq"


def test_a_memory_that_is_too_little_is_one_line_and_changes_nothing() -> None:
    index = Index(WIDTH, memory=CODES - 1)
    index.add(named(1), unit(1, width=WIDTH))
    with pytest.raises(
        InputError, match=r"too little: 2,001 vectors .* as codes.*pip install 'fewtune\[lance\]'"
    ) as caught:
        index.add(named(N, first=1), unit(N, width=WIDTH))
    assert "\n" not in str(caught.value)
    assert index.keys == ("key 0",)
    with pytest.raises(InputError, match=r"in kind exact; give more, take kind auto, or"):
        limited(EXACT - 1, "exact")
    with pytest.raises(InputError, match="memory must be >= 1 byte, not 0"):
        Index(WIDTH, memory=0)


def test_an_index_that_grows_beyond_its_memory_changes_its_structure() -> None:
    index = Index(WIDTH, memory=EXACT - 1, device="cpu")
    for first in range(0, N, 500):
        index.add(named(500, first=first), unit(500, seed=first, width=WIDTH))
        assert index.structure == ("pq" if first == N - 500 else "exact")
    index.remove(named(N - 10))
    assert index.structure == "exact"


def test_a_limit_is_saved_and_the_vectors_stay_on_disk(tmp_path: Path) -> None:
    index = limited(EXACT - 1)
    index.save(tmp_path / "small")
    opened = Index.load(tmp_path / "small", memory_mapped=None)
    assert (opened.memory, opened.structure) == (EXACT - 1, "pq")
    assert_same(opened, index)
    queries = unit(50, seed=1, width=WIDTH)
    assert (opened.search(queries).keys == index.search(queries).keys).all()
    with pytest.raises(InputError, match="memory-mapped and cannot be changed"):
        opened.remove(["key 1"])
    limited(10**7).save(tmp_path / "large")
    Index.load(tmp_path / "large", memory_mapped=None).remove(["key 1"])


def test_choices_by_number_and_memory() -> None:
    free = Choice("auto", 256, 0.95, None, False)
    assert free.structure(AUTO_FROM - 1, 0) == "exact"
    assert free.structure(AUTO_FROM, 0) == "pq"
    assert Choice("auto", 256, 0.95, None, True).structure(AUTO_FROM, 0) == "exact"
    assert Choice("auto", 256, 0.95, 2 * 10**9, False).structure(10**7, 0) == "pq"
    with pytest.raises(InputError, match=r"memory 2 GB is too little: 100,000,000 vectors .* take 4 GB as codes"):
        Choice("auto", 256, 0.95, 2 * 10**9, False).structure(10**8, 0)
    assert [shown(size) for size in (999, 1001, 2 * 10**9, 2_000_000_001)] == ["999 bytes", "1.1 KB", "2 GB", "2.1 GB"]


@pytest.mark.parametrize("n", [1, 50, 5000, 30_000])
@pytest.mark.parametrize("m", [1, 3, 300])
def test_products_find_what_a_comparison_finds(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from exact_neighbours import disagreements, nearest

    from fewshot.search.engines.products import search_product

    monkeypatch.setattr("fewshot.search.engines.products._AT_ONCE", 1 << 16)
    gallery, queries = unit(n, width=4), unit(m, seed=1, width=4)
    gallery[n // 2 :] = gallery[: n - n // 2]  # ties
    queries.flags.writeable = False
    k = min(10, n)
    similarity, rows = search_product(gallery, queries, k)
    assert all(len(set(row)) == k for row in rows.tolist())
    assert (np.diff(similarity, axis=1) <= 0).all()
    np.testing.assert_allclose((gallery[rows] * queries[:, None]).sum(2), similarity, atol=1e-6)
    expected = nearest(gallery, queries, k)
    np.testing.assert_allclose(similarity, expected[0], atol=1e-6)
    assert disagreements((similarity, rows), expected) <= m // 50


def test_products_in_blocks_of_queries_and_of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    from fewshot.search.engines import products

    monkeypatch.setattr(products, "_AT_ONCE", 1 << 10)
    monkeypatch.setattr(products, "_LEAST_ROWS", 1 << 8)
    gallery, queries = unit(1000, width=4), unit(7, seed=1, width=4)  # 4 blocks by 2
    similarity, rows = products.search_product(gallery, queries, 10)
    expected = np.argsort(-(queries @ gallery.T), axis=1)[:, :10]
    assert (rows == expected).all()
    np.testing.assert_allclose(similarity, np.take_along_axis(queries @ gallery.T, expected, 1), atol=1e-6)


def test_faiss_compares_one_query_alone_and_multiplies_many() -> None:
    from fewshot.search.engines.products import by_product

    assert [by_product(queries, 256) for queries in (1, 2, 100, 499, 500)] == [False, True, True, True, False]


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="large pages are Linux's")
def test_vectors_stay_as_they_are_in_large_pages() -> None:
    from fewshot.search.engines.pages import use_large_pages

    vectors = unit(30_000, width=64)[1:]  # begins within a page
    before = vectors.copy()
    use_large_pages(vectors)
    assert (vectors == before).all()
