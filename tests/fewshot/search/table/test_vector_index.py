"""The vector index of a table: built, tuned, extended, and used where it is faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_index import named, unit

from fewshot.search.engines import Vectors
from fewshot.search.table import lance_index, searching, vector_index
from finetune.errors import InputError

pytest.importorskip("lance", reason="pylance is not installed: pip install 'fewtune[lance]'")

from fewshot.search.table.header import Tuning
from fewshot.search.table.lance_index import LanceIndex
from fewshot.search.table.vector_index import codes, structure_for

WIDTH = 8


def clustered(n: int, seed: int = 0) -> Vectors:
    draw = np.random.default_rng(seed)
    vectors = unit(40, width=WIDTH)[draw.integers(0, 40, n)] + 0.3 * draw.standard_normal((n, WIDTH), dtype=np.float32)
    found: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def recall(table: LanceIndex, vectors: Vectors, queries: Vectors) -> float:
    least = np.sort(queries @ vectors.T, axis=1)[:, -10:-9] - 2e-6
    return float((table.search(queries, k=10).similarity >= least).mean())


@pytest.fixture
def by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of any size are searched by their vector index."""
    monkeypatch.setattr(searching, "BY_INDEX", 0)


def test_the_structure_suits_the_number_of_vectors() -> None:
    assert [structure_for("auto", n) for n in (0, 99_999, 100_000)] == ["exact", "exact", "pq"]
    assert [structure_for("pq", n) for n in (100, 1000, 65_535, 65_536)] == ["exact", "ivf", "ivf", "pq"]
    assert [structure_for("ivf", n) for n in (511, 512, 10**9)] == ["exact", "ivf", "ivf"]
    assert structure_for("exact", 10**9) == "exact"
    assert [codes(width) for width in (1, 3, 8, 10, 13, 128, 768)] == [1, 1, 2, 2, 1, 32, 192]


@pytest.mark.parametrize(
    ("rows", "width", "probes", "few", "many"),  # as measured; the pass over a million vectors wins with none
    [
        (10_000, 256, 8, 1, 10),
        (100_000, 256, 4, 10, 100),
        (100_000, 1024, 64, 10, 100),
        (1_000_000, 256, 4, 100, None),
    ],
)
def test_few_queries_go_to_the_index_and_many_are_answered_by_one_pass(
    rows: int, width: int, probes: int, few: int, many: int | None
) -> None:
    structure: Any = structure_for("pq", rows)
    lists = max(1, min(int(rows**0.5), rows // 256))
    tuning = Tuning(structure=structure, lists=lists, probes=probes, refine=4, recall=0.99, rows=rows)
    assert searching.pays_index(1, rows, width, tuning)
    assert searching.pays_index(few, rows, width, tuning)
    assert many is None or not searching.pays_index(many, rows, width, tuning)


@pytest.mark.slow
@pytest.mark.usefixtures("by_index")
def test_inverted_lists_reach_the_recall_and_find_new_and_changed_rows(tmp_path: Path) -> None:
    vectors = clustered(3000)
    metadata = [{"n": n} for n in range(3000)]
    table = LanceIndex.build(tmp_path / "t.lance", named(3000), vectors, metadata, kind="ivf", least_recall=0.98)
    assert table.structure == "ivf"
    assert table.recall >= 0.98
    assert recall(table, vectors, clustered(50, seed=1)) >= 0.95
    new = unit(3, seed=77, width=WIDTH)
    table.add(["new"], new[:1])
    table.replace(named(1), new[1:2])
    table.remove(named(2)[1:])
    assert [found[0].key for found in table.search(new[:2], k=1)] == ["new", named(1)[0]]
    assert named(2)[1] not in [each.key for each in table.search(vectors[1:2], k=50)[0]]
    # Fewer than k in the lists that are compared: all vectors are.
    assert [each.key for each in table.search(new, k=5, where="n = 7")[2]] == [named(8)[7]]
    assert len(table.search(new[:1], k=3000)[0]) == 3000
    opened = LanceIndex.open(tmp_path / "t.lance")
    assert (opened.structure, opened.recall) == (table.structure, table.recall)
    assert not table.needs_compaction
    table.add([f"more {n}" for n in range(3000)], clustered(3000, seed=2))
    assert table.needs_compaction
    table.compact(keep=1)
    assert not table.needs_compaction
    assert recall(table, table.vectors(table.keys), clustered(50, seed=1)) >= 0.95
    table.remove(table.keys[400:])
    table.compact()
    assert table.structure == "exact"


@pytest.mark.slow
@pytest.mark.usefixtures("by_index")
def test_quantised_lists_rank_their_candidates_by_exact_similarity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector_index, "PQ_FROM", 2000)  # the real one takes minutes
    vectors = clustered(2000)
    table = LanceIndex.build(tmp_path / "t.lance", named(2000), vectors, kind="pq")
    assert table.structure == "pq"
    assert table.recall >= 0.95
    queries = clustered(20, seed=1)
    found = table.search(queries, k=10)
    again = np.einsum("mkd,md->mk", [table.vectors(keys) for keys in found.keys], queries)
    assert np.allclose(found.similarity, again, atol=1e-6)
    assert recall(table, vectors, queries) >= 0.9


def test_many_small_changes_are_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lance_index, "MANY_FILES", 5)
    table = LanceIndex.create(tmp_path / "t.lance", WIDTH)
    for key, vector in zip(named(6), unit(6, width=WIDTH), strict=True):
        table.add([key], vector[None])
    assert table.needs_compaction
    table.compact(keep=1)
    assert not table.needs_compaction
    assert len(list((tmp_path / "t.lance" / "data").iterdir())) == 1
    assert table.keys == tuple(named(6))


@pytest.mark.slow
def test_ray_workers_build_the_index(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'fewtune[lance-ray]'")
    pytest.importorskip("lance_ray", reason="lance-ray is not installed: pip install 'fewtune[lance-ray]'")
    vectors = clustered(66_000)
    table = LanceIndex.create(tmp_path / "t.lance", WIDTH, kind="pq", least_recall=0.3)
    table.add(named(66_000), vectors)
    ray.init(num_cpus=2, object_store_memory=200_000_000, include_dashboard=False)
    try:
        table.compact(engine="ray", workers=2)
    finally:
        ray.shutdown()
    assert table.structure == "pq"
    assert table.recall >= 0.3
    assert table.search(vectors[5:6], k=1)[0][0].similarity > 0.999


def test_ray_without_a_cluster_is_one_line(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'fewtune[lance-ray]'")
    assert not ray.is_initialized()
    table = LanceIndex.create(tmp_path / "t.lance", WIDTH)
    with pytest.raises(InputError, match="Ray"):
        table.compact(engine="ray")
