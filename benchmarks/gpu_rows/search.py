"""Exact search: `Index` on the device against the product of the matrices alone, with FAISS beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fewshot.search.engines import ROUNDING, Found, Vectors, import_faiss
from fewshot.search.engines.device_gallery import AT_ONCE_CPU, AT_ONCE_GPU, DeviceGallery
from fewshot.search.index import Index
from gpu_rows.setting import Setting, seconds_of

WIDTH, K = 128, 10


def measure(setting: Setting) -> dict[str, Any]:
    device = setting.device()
    n, m = setting.of_size(1_000_000, 20_000), setting.of_size(10_000, 200)
    gallery, queries = _unit(n, 0), _unit(m, 1)
    searched = DeviceGallery(gallery, device)
    # `Index` adds the names of the rows. It needs FAISS; without, the search of the rows alone is timed.
    search: Callable[[Vectors, int], object] = searched.search
    if there_is_faiss := importlib.util.find_spec("faiss") is not None:
        index = Index(WIDTH, kind="exact", device=device.type)
        index.add([str(row) for row in range(n)], gallery)
        search = index.search
    there, asked = torch.from_numpy(gallery).to(device), torch.from_numpy(queries).to(device)
    height = max(1, (AT_ONCE_GPU if device.type == "cuda" else AT_ONCE_CPU) // n)
    product = torch.empty(min(height, m), n, device=device)

    def bound() -> None:
        for part in asked.split(height):
            torch.matmul(part, there.T, out=product[: len(part)])

    seconds = {
        "index": seconds_of(lambda: search(queries, K), device),
        "device_gallery": seconds_of(lambda: searched.search(queries, K), device),
        "matrix_product": seconds_of(bound, device),
        "torch_topk": seconds_of(lambda: [(part @ there.T).topk(K) for part in asked.split(height)], device),
    }
    beyond = seconds["index"] / seconds["matrix_product"]
    compared = queries[: min(m, 200)]
    similarity, rows = searched.search(compared, K)
    expected, expected_rows = _nearest(gallery, compared)
    difference = float(np.abs(similarity - expected).max())
    agrees = {
        "queries": len(compared),
        "largest_difference_of_similarity": difference,
        "share_of_equal_rows": float((rows == expected_rows).mean()),
    }
    measured = {
        "vectors": n,
        "queries": m,
        "seconds": seconds,
        "queries_per_second": round(m / seconds["index"]),
        "with_names": there_is_faiss,
        "index_over_product": beyond,
        "faiss_on_gpu": _faiss(gallery, queries) if device.type == "cuda" else "no GPU was used",
    }
    reached = difference <= ROUNDING and beyond <= 2
    return setting.row("at most twice the time of the product of the matrices", reached, measured, agrees)


def _faiss(gallery: Vectors, queries: Vectors) -> Any:
    if importlib.util.find_spec("faiss") is None:
        return "FAISS is not installed"
    faiss = import_faiss()
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        return "this FAISS finds no GPU"
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(gallery)
    resources = faiss.StandardGpuResources()
    there = faiss.index_cpu_to_gpu(resources, 0, flat)
    return {"seconds": seconds_of(lambda: there.search(queries, K), torch.device("cuda"))}


def _nearest(gallery: Vectors, queries: Vectors) -> Found:
    """The nearest, by numpy."""
    product = queries @ gallery.T
    rows = np.argsort(-product, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(product, rows, 1), rows


def _unit(n: int, seed: int) -> Vectors:
    vectors: Vectors = np.random.default_rng(seed).standard_normal((n, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
