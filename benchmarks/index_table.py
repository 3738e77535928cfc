"""Every structure of an index on embeddings of real pictures, beside raw FAISS, hnswlib and usearch, in one run.

    python -m pip install --target TOOLS --no-deps hnswlib==0.8.0 usearch==2.26.6 numkong==7.8.6
    PYTHONPATH=TOOLS OMP_NUM_THREADS=1 python benchmarks/index_table.py --data DATA --cache FOLDER
        [--vectors 10000 100000 1000000] [--kinds drawings photos] [--only ENGINE ...]

FOLDER, outside the repository, holds the embeddings; benchmarks/real_vectors.py says which, and makes them where they
are missing. One thread for every engine. Each row, an engine on a gallery, is built in a process of its own, written to
benchmarks/results/index_table.json when it is done, and not made again:

queries a second   of 1, 100 and 1000 queries at once, 10 neighbours: the best of at least three times
recall             share of the 10 true neighbours that are found; ties count
build_seconds      from vectors to an index that answers, in seconds
memory_mb          resident memory that the built index added, where the vectors that it was built from are not counted
disk_mb            of the saved index

exact, ivf, hnsw, pq, auto are kinds of `Index` (answers are keys), at least recall 0.99 for the approximate; lance is a
`LanceIndex` of kind pq. faiss and torch are exact search without keys. hnswlib and usearch have the links and building
effort of hnsw here, and the effort of a search that one set of queries needs for 0.99; the reported figures are of
the other set. They stand for an engine only where its package can be imported.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import provenance
from numpy.typing import NDArray
from real_vectors import KINDS, Vectors, cached

from fewshot.search.engines import ROUNDING, import_faiss
from fewshot.search.index import Index
from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "index_table.json"
K, AT_ONCE = 10, (1, 100, 1000)
RECALL = 0.99
OURS = ("exact", "ivf", "hnsw", "pq", "auto")
ENGINES = (*OURS, "lance", "faiss", "torch", "hnswlib", "usearch")
EFFORTS = (16, 32, 64, 128, 256, 512, 1024)
LINKS, BUILD_EFFORT = 32, 80  # as hnsw here
AT_LEAST_SECONDS = 0.5  # that the timings of one number take together

Search = Callable[[Vectors], tuple[NDArray[np.float32], Any]]  # similarities (m, K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the embeddings, outside the repository")
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        kind, n, engine = args.row
        print(json.dumps(row(engine, *cached(kind, int(n), args.data, args.cache))))
        return
    table: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"rows": {}}
    for n in args.vectors:
        for kind in args.kinds:
            cached(kind, n, args.data, args.cache)
            for engine in args.only:
                name = f"{kind} {n} {engine}"
                if name in table["rows"] or not available(engine):
                    continue
                found = in_process(kind, n, engine, args.data, args.cache)
                table["rows"][name] = found | {"kind": kind, "vectors": n, "engine": engine}
                write_json(RESULT, table | provenance() | {"threads": 1, "faiss": import_faiss().__version__})
                print(name, json.dumps(found), flush=True)


def available(engine: str) -> bool:
    return importlib.util.find_spec(engine) is not None if engine in ("lance", "hnswlib", "usearch") else True


def in_process(kind: str, n: int, engine: str, data: Path, cache: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--data", str(data), "--cache", str(cache), "--row", kind, str(n), engine]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "LANCE_CPU_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} {n} {engine}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(engine: str, gallery: Vectors, choosing: Vectors, queries: Vectors) -> dict[str, Any]:
    """All figures of an engine. choosing: Queries that may set its effort."""
    torch.set_num_threads(1)
    import_faiss().omp_set_num_threads(1)
    flat = import_faiss().IndexFlatIP(gallery.shape[1])
    flat.add(gallery)
    truth = [flat.search(asked, K)[0][:, -1:] - ROUNDING for asked in (choosing, queries)]
    del flat
    with tempfile.TemporaryDirectory() as scratch:
        before, started = resident(), time.perf_counter()
        search, about, size = BUILDERS.get(engine, of_index)(engine, gallery, choosing, truth[0], Path(scratch))
        seconds = time.perf_counter() - started
        rates = {str(m): round(m / fastest(lambda m=m: search(queries[:m])), 1) for m in AT_ONCE}  # type: ignore[misc]
        return {
            "queries_per_second": rates,
            "recall": round(recall(search, queries, truth[1]), 4),
            "build_seconds": round(seconds, 1),
            "memory_mb": round((resident() - before) / 1e6, 1),
            "disk_mb": round(size() / 1e6, 1),
            **about,
        }


def recall(search: Search, queries: Vectors, least: NDArray[np.float32]) -> float:
    return float((search(queries)[0] >= least).mean())


def fastest(act: Callable[[], object]) -> float:
    """Seconds of the fastest of at least three calls, after one that is not counted."""
    act()
    times: list[float] = []
    while len(times) < 3 or sum(times) < AT_LEAST_SECONDS:
        started = time.perf_counter()
        act()
        times.append(time.perf_counter() - started)
    return min(times)


def resident() -> int:
    """Bytes of this process in memory that are in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------ engines

Built = tuple[Search, dict[str, Any], Callable[[], int]]


def of_index(engine: str, gallery: Vectors, _: Vectors, __: object, scratch: Path) -> Built:
    index = Index(gallery.shape[1], kind=engine, device="cpu", least_recall=RECALL)
    index.add([f"picture {row}" for row in range(len(gallery))], gallery)

    def search(queries: Vectors) -> tuple[NDArray[np.float32], Any]:
        found = index.search(queries, K)
        return found.similarity, found.keys

    def size() -> int:
        index.save(scratch / "index")
        return size_of(scratch / "index")

    about = {"structure": index.structure, "effort": index._engine.effort, "recall_by_index": round(index.recall, 4)}
    if index.structure == "pq":
        about["candidates_for_each"] = index._engine.factor  # type: ignore[union-attr]
    return search, about, size


def of_lance(_: str, gallery: Vectors, __: Vectors, ___: object, scratch: Path) -> Built:
    from fewshot.search.table.lance_index import LanceIndex

    keys = [f"picture {row}" for row in range(len(gallery))]
    index = LanceIndex.create(str(scratch / "index.lance"), gallery.shape[1], kind="pq", least_recall=RECALL)
    index.add(keys, gallery)
    index.compact()

    def search(queries: Vectors) -> tuple[NDArray[np.float32], Any]:
        found = index.search(queries, K)
        return found.similarity, found.keys

    return search, {"structure": index.structure}, lambda: size_of(scratch)


def of_faiss(_: str, gallery: Vectors, __: Vectors, ___: object, ____: Path) -> Built:
    flat = import_faiss().IndexFlatIP(gallery.shape[1])
    flat.add(gallery)
    return lambda queries: flat.search(queries, K), {}, lambda: gallery.nbytes


def of_torch(_: str, gallery: Vectors, __: Vectors, ___: object, ____: Path) -> Built:
    vectors = torch.from_numpy(gallery)

    def search(queries: Vectors) -> tuple[NDArray[np.float32], Any]:
        similarity, rows = (torch.from_numpy(queries) @ vectors.T).topk(K, dim=1)
        return similarity.numpy(), rows.numpy()

    return search, {}, lambda: gallery.nbytes


def of_hnswlib(_: str, gallery: Vectors, choosing: Vectors, least: NDArray[np.float32], scratch: Path) -> Built:
    graph = importlib.import_module("hnswlib").Index(space="ip", dim=gallery.shape[1])
    graph.init_index(len(gallery), M=LINKS, ef_construction=BUILD_EFFORT)
    graph.set_num_threads(1)
    graph.add_items(gallery, num_threads=1)

    def search(queries: Vectors) -> tuple[NDArray[np.float32], Any]:
        rows, distances = graph.knn_query(queries, K, num_threads=1)
        return 1 - distances, rows

    def size() -> int:
        graph.save_index(str(scratch / "graph"))
        return size_of(scratch)

    return search, tuned(graph.set_ef, search, choosing, least), size


def of_usearch(_: str, gallery: Vectors, choosing: Vectors, least: NDArray[np.float32], scratch: Path) -> Built:
    graph = importlib.import_module("usearch.index").Index(
        ndim=gallery.shape[1], metric="ip", dtype="f32", connectivity=LINKS, expansion_add=BUILD_EFFORT, multi=False
    )
    graph.add(np.arange(len(gallery)), gallery, threads=1)

    def search(queries: Vectors) -> tuple[NDArray[np.float32], Any]:
        found = graph.search(queries, K, threads=1)
        return 1 - found.distances.reshape(len(queries), -1), found.keys

    def set_effort(effort: int) -> None:
        graph.expansion_search = effort

    def size() -> int:
        graph.save(str(scratch / "graph"))
        return size_of(scratch)

    return search, tuned(set_effort, search, choosing, least), size


def tuned(
    set_effort: Callable[[int], None], search: Search, choosing: Vectors, least: NDArray[np.float32]
) -> dict[str, Any]:
    """The least effort that finds RECALL."""
    for effort in EFFORTS:
        set_effort(effort)
        if recall(search, choosing, least) >= RECALL:
            break
    return {"effort": effort}


BUILDERS: dict[str, Callable[..., Built]] = {
    "lance": of_lance,
    "faiss": of_faiss,
    "torch": of_torch,
    "hnswlib": of_hnswlib,
    "usearch": of_usearch,
}


if __name__ == "__main__":
    main()
