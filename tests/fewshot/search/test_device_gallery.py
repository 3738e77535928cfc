"""Exact search on a device, by the same code on the CPU, against FAISS."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fewshot.search.engines import ROUNDING, Exact, device_gallery
from fewshot.search.engines.device_gallery import DeviceGallery
from fewshot.search.engines.exact import DeviceMirror

CPU = torch.device("cpu")


def unit(n: int, seed: int, width: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("n", [1, 63, 64, 65, 1000, 1283])
@pytest.mark.parametrize("k", [1, 10, 700])
def test_the_nearest_are_those_of_faiss(n: int, k: int) -> None:
    gallery, queries, k = unit(n, 0), unit(9, 1), min(k, n)
    similarity, rows = DeviceGallery(gallery, CPU).search(queries, k)
    expected, expected_rows = Exact.of(gallery).search(queries, k)
    np.testing.assert_allclose(similarity, expected, atol=ROUNDING)
    assert (np.diff(similarity, axis=1) <= 0).all()
    # Without ties, the rows are the same but where rounding changes the order of two that are almost equal.
    assert (rows == expected_rows).mean() > 0.99
    assert all(len(set(row)) == k for row in rows.tolist())


def test_negative_similarities_are_found_beside_the_rows_that_fill_a_group() -> None:
    gallery = -unit(70, 0) * np.sign(unit(70, 0)[:, :1])
    gallery[:, 0] = -np.abs(gallery[:, 0])
    queries = np.eye(1, 16, dtype=np.float32)
    similarity, rows = DeviceGallery(gallery, CPU).search(queries, 70)
    assert sorted(rows[0].tolist()) == list(range(70))
    assert (similarity < 0).all()


def test_equal_vectors_are_all_found() -> None:
    gallery = np.repeat(unit(1, 0), 300, axis=0)
    _, rows = DeviceGallery(gallery, CPU).search(gallery[:2], 4)
    assert all(len(set(row)) == 4 for row in rows.tolist())


def test_blocks_of_queries_give_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, queries = unit(500, 0), unit(20, 1)
    whole = DeviceGallery(gallery, CPU).search(queries, 5)[1]
    monkeypatch.setattr(device_gallery, "AT_ONCE_CPU", 3 * 512)
    assert (DeviceGallery(gallery, CPU).search(queries, 5)[1] == whole).all()


def test_a_mirror_follows_the_changes_of_its_engine() -> None:
    engine = Exact.of(unit(200, 0))
    engine._mirror = DeviceMirror(CPU)
    queries = unit(3, 1)
    before = engine.search(queries, 4)[1]
    added = unit(5, 2)
    engine.add(added)
    assert engine.search(added, 1)[1].tolist() == [[row] for row in range(200, 205)]
    engine.replace([200], added[4:])
    assert engine.search(added[4:], 2)[1][0].tolist() in ([200, 204], [204, 200])
    engine.remove(list(range(200, 205)))
    assert (engine.search(queries, 4)[1] == before).all()
    engine.remove(list(range(200)))
    engine.add(added)
    assert engine.search(added, 1)[1].tolist() == [[row] for row in range(5)]
