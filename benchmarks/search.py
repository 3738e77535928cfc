"""How fast the index searches, against raw FAISS, torch, scikit-learn and what a product of matrices costs.

    python benchmarks/search.py [--budget full|laptop] [--quick]

Exact search, 10 neighbours of 128 numbers, in one process, the engines by turns, --repeats times, medians:

index    fewshot.Index, exact: keys and similarities
faiss    faiss.IndexFlatIP
torch    matmul and topk
sklearn  NearestNeighbors, brute force, cosine; only where it is done in seconds
bound    torch's matmul alone, with its result's memory kept: what exact search cannot do without, but for one query
         at a time, where reading the gallery is

Random unit vectors: what exact search costs does not depend on them. Then the approximate kinds, on vectors that have
neighbours: each is one of CENTRES directions with noise of about the same length, in RANK directions that the centre
has; queries are made likewise and are not in the index. Recall@10 is the share of the true ten that are found.
With a GPU the exact table is made there too, with FAISS's and torch's searches on it.

Results go to benchmarks/results/search.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import provenance
from sklearn.neighbors import NearestNeighbors

from fewshot.search.engines import ROUNDING, Approximate, Vectors, import_faiss, on_gpu
from fewshot.search.index import Index
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "search.json"
WIDTH, K = 128, 10
CENTRES, RANK = 1000, 16
EFFORTS = {"ivf": (1, 2, 4, 8, 16, 32, 64), "hnsw": (16, 32, 64, 128, 256)}
# (vectors, queries at once)
EXACT = {
    "full": ((10_000, 1), (10_000, 100), (10_000, 1000), (1_000_000, 1), (1_000_000, 100), (1_000_000, 1000)),
    "laptop": ((10_000, 1), (10_000, 100), (10_000, 1000), (200_000, 1), (200_000, 100), (200_000, 1000)),
    "quick": ((1000, 1), (1000, 100)),
}
APPROXIMATE = {
    "full": (("ivf", 200_000), ("hnsw", 200_000), ("ivf", 1_000_000)),
    "laptop": (("ivf", 50_000), ("hnsw", 50_000), ("ivf", 200_000)),
    "quick": (("ivf", 5000), ("hnsw", 5000)),
}
PRODUCTS_FOR_SKLEARN = 20_000_000  # similarities; past these it takes too long
AT_LEAST_SECONDS = 0.2  # that one timing takes

Search = Callable[[Vectors], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=["full", "laptop"], default="full")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few thousand vectors, and no result file")
    args = parser.parse_args()
    budget, repeats = ("quick", 2) if args.quick else (args.budget, args.repeats)
    result: dict[str, Any] = {**provenance(), "faiss": import_faiss().__version__, "threads": torch.get_num_threads()}
    for device in ("cpu", *(["cuda"] if on_gpu("auto") and import_faiss().get_num_gpus() else [])):
        result[f"exact_{device}"] = [exact(n, m, device, repeats) for n, m in EXACT[budget]]
    result["approximate"] = [approximate(kind, n, repeats) for kind, n in APPROXIMATE[budget]]
    if not args.quick:
        write_json(RESULT, result)


# ------------------------------------------------------------------------------------------------ exact


def exact(n: int, m: int, device: str, repeats: int) -> dict[str, Any]:
    """Queries a second of every engine, by turns."""
    gallery, queries = unit(n, 0), unit(m, 1)
    engines = exact_engines(gallery, queries, device)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for search in engines.values():
        search(queries)
    for repeat in range(repeats):
        # In another order each time: threads that one has started may still spin when the next begins.
        for name, search in sorted(engines.items(), reverse=bool(repeat % 2)):
            seconds[name].append(timed(lambda search=search: search(queries)))  # type: ignore[misc]
    rate = {name: m / statistics.median(times) for name, times in seconds.items()}
    row = {
        "vectors": n,
        "queries_at_once": m,
        "queries_per_second": {name: round(value, 1) for name, value in rate.items()},
        "index_over_faiss": round(rate["index"] / rate["faiss"], 3),
        "index_over_torch": round(rate["index"] / rate["torch"], 3),
        "index_over_bound": round(rate["index"] / rate["bound"], 3),
        "seconds": seconds,
    }
    print(device, json.dumps({key: value for key, value in row.items() if key != "seconds"}), flush=True)
    return row


def exact_engines(gallery: Vectors, queries: Vectors, device: str) -> dict[str, Search]:
    faiss = import_faiss()
    index = Index(WIDTH, kind="exact", device=device)
    index.add([str(row) for row in range(len(gallery))], gallery)
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(gallery)
    if device == "cuda":
        resources = faiss.StandardGpuResources()
        flat = faiss.index_cpu_to_gpu(resources, 0, flat)
    there = torch.from_numpy(gallery).to(device)
    product = torch.empty(len(queries), len(gallery), device=device)

    def by_torch(queries: Vectors) -> object:
        similarity, rows = (torch.from_numpy(queries).to(device) @ there.T).topk(K, dim=1)
        return similarity.cpu(), rows.cpu()

    def bound(queries: Vectors) -> object:
        torch.matmul(torch.from_numpy(queries).to(device), there.T, out=product)
        return product[0, 0].item()  # waits for a GPU

    engines: dict[str, Search] = {
        "index": lambda queries: index.search(queries, K),
        "faiss": lambda queries: flat.search(queries, K),
        "torch": by_torch,
        "bound": bound,
    }
    if device == "cpu" and len(gallery) * len(queries) <= PRODUCTS_FOR_SKLEARN:
        sklearn = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(gallery)
        engines["sklearn"] = sklearn.kneighbors
    return engines


# ------------------------------------------------------------------------------------------------ approximate


def approximate(kind: str, n: int, repeats: int) -> dict[str, Any]:
    """Building time, recall@10 and queries a second by effort, and those of exact search on the same vectors."""
    gallery, queries = clustered(n + 1000, 0)[:n], clustered(n + 1000, 0)[n:]
    keys = [str(row) for row in range(n)]
    reference, index = Index(WIDTH, kind="exact", device="cpu"), Index(WIDTH, kind=kind)
    reference.add(keys, gallery)
    building = time.perf_counter()
    index.add(keys, gallery)
    building = time.perf_counter() - building
    least = reference.search(queries, K).similarity[:, -1:] - ROUNDING
    engine = index._engine
    assert isinstance(engine, Approximate)
    chosen, settings = engine.effort, []
    for effort in (None, *EFFORTS[kind]):
        engine.effort = chosen if effort is None else effort
        searched = reference if effort is None else index
        found = searched.search(queries, K)
        settings.append(
            {
                "effort": effort or "exact",
                "recall": round(float((found.similarity >= least).mean()), 4),
                "queries_per_second": rates(searched, queries, repeats),
            }
        )
    engine.effort = chosen
    row = {
        "kind": kind,
        "vectors": n,
        "lists": engine.faiss_index.nlist if kind == "ivf" else None,
        "seconds_to_build": round(building, 1),
        "chosen": {"effort": chosen, "least_recall": index.least_recall, "recall_measured_by_index": index.recall},
        "settings": settings,
    }
    print(json.dumps({key: value for key, value in row.items() if key != "settings"}), flush=True)
    for setting in settings:
        print("   ", json.dumps(setting), flush=True)
    return row


def rates(index: Index, queries: Vectors, repeats: int) -> dict[str, float]:
    """Queries a second, by how many are asked at once."""
    found = {}
    for m in (1, len(queries)):
        times = [timed(lambda m=m: index.search(queries[:m], K)) for _ in range(repeats)]  # type: ignore[misc]
        found[str(m)] = round(m / statistics.median(times), 1)
    return found


# ------------------------------------------------------------------------------------------------ both


def timed(act: Callable[[], object]) -> float:
    """Seconds that it takes, the mean over as many times as fill the least time."""
    times, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < AT_LEAST_SECONDS:
        act()
        times += 1
    return passed / times


def unit(n: int, seed: int) -> Vectors:
    vectors: Vectors = np.random.default_rng(seed).standard_normal((n, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def clustered(n: int, seed: int) -> Vectors:
    numbers = np.random.default_rng(seed)
    centres = unit(CENTRES, seed)
    spans = numbers.standard_normal((CENTRES, RANK, WIDTH), dtype=np.float32) / np.sqrt(RANK * WIDTH)
    chosen = numbers.integers(0, CENTRES, n)
    vectors = centres[chosen]
    for centre in range(CENTRES):
        rows = np.flatnonzero(chosen == centre)
        vectors[rows] += numbers.standard_normal((len(rows), RANK), dtype=np.float32) @ spans[centre]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


if __name__ == "__main__":
    main()
