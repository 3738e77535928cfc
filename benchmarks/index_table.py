"""Every structure of an index on embeddings of real pictures, beside raw FAISS, torch, hnswlib and usearch.

    python -m pip install --target TOOLS --no-deps hnswlib==0.8.0 usearch==2.26.6 numkong==7.8.6
    PYTHONPATH=TOOLS OMP_NUM_THREADS=1 python benchmarks/index_table.py --data DATA --cache FOLDER
        [--vectors 10000 100000 1000000] [--kinds drawings photos] [--only ENGINE ...] [--queries report]

FOLDER, outside the repository, holds the embeddings; benchmarks/real_vectors.py says which, and makes them where they
are missing. One thread for every engine. Each row, an engine on a gallery, is built in a process of its own, written to
benchmarks/results/index_table.json when it is done, and not made again:

queries_per_second  of 1, 100 and 1000 queries at once, 10 neighbours, by processor time: the median of at least 3 times
recall              share of the 10 true neighbours that are found; ties count
build_seconds       of processor time, from vectors to an index that answers
memory_mb           resident memory, in no file, of another process that opens the saved index and answers one query
counted_mb          what `Index` counts for the same, which a limit of memory (`memory=`) is compared with
disk_mb             of the saved index
ratio               of exact: its rate over the faster of FAISS's and torch's, by turns in one process

exact, ivf, hnsw, pq, auto are kinds of `Index` (answers are keys), at least recall 0.99 for the approximate; mapped is
pq with so little memory that its vectors stay on disk; lance is a `LanceIndex` of kind pq. faiss and torch are exact
search without keys. hnswlib and usearch have the links and building effort of hnsw here, and the effort of a search
that the "rule" queries need for 0.99. They stand for an engine only where its package can be imported.

Reported are figures of the "report" queries, which have set nothing; --queries rule gives those by which the constants
of fewshot/search were chosen, under "rule" in the result.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import statistics
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
from real_vectors import KINDS, PURPOSES, Vectors, gallery, make_gallery, queries

from fewshot.search.choice import memory_of, memory_of_keys
from fewshot.search.engines import ROUNDING, Quantised, import_faiss
from fewshot.search.index import Index
from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "index_table.json"
K, AT_ONCE = 10, (1, 100, 1000)
RECALL = 0.99
OURS = ("exact", "ivf", "hnsw", "pq", "auto", "mapped")
ENGINES = (*OURS, "lance", "faiss", "torch", "hnswlib", "usearch")
MAPPED_MEMORY = 600  # bytes a vector, with its key: no room for a vector
EFFORTS = (16, 32, 64, 128, 256, 512, 1024)
LINKS, BUILD_EFFORT = 32, 80  # as hnsw here
AT_LEAST_SECONDS = 0.5  # that the timings of one number take together, or TIMES times
TIMES = 50

Search = Callable[[Vectors], tuple[NDArray[np.float32], Any]]  # similarities (m, K)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the embeddings, outside the repository")
    parser.add_argument("--vectors", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--queries", choices=list(PURPOSES), default="report")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--opened", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        kind, n, engine = args.row
        print(json.dumps(row(kind, int(n), engine, args.queries, args.data, args.cache)))
    elif args.opened:
        kind, engine, saved = args.opened
        print(json.dumps(opened(kind, engine, saved, args.data, args.cache)))
    else:
        make_rows(args)


def make_rows(args: argparse.Namespace) -> None:
    for n in args.vectors:
        for kind in args.kinds:
            make_gallery(kind, n, args.data, args.cache)
            for engine in args.only:
                name = f"{kind} {n} {engine}"
                if name in rows_of(read(), args.queries) or not available(engine):
                    continue
                found = in_process(args, "--row", kind, str(n), engine)
                table = read()  # again: another process may have made rows meanwhile
                rows_of(table, args.queries)[name] = {"kind": kind, "vectors": n, "engine": engine, **found}
                # Paths of a machine are no part of a result.
                about = provenance() | {"command": "python benchmarks/index_table.py --data DATA --cache FOLDER"}
                write_json(RESULT, table | about | {"threads": 1, "faiss": import_faiss().__version__})
                print(name, json.dumps(found), flush=True)


def read() -> dict[str, Any]:
    table: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {}
    return table


def rows_of(table: dict[str, Any], purpose: str) -> dict[str, Any]:
    rows: dict[str, Any] = table.setdefault(purpose, {})
    return rows


def available(engine: str) -> bool:
    return importlib.util.find_spec(engine) is not None if engine in ("lance", "hnswlib", "usearch") else True


def in_process(args: argparse.Namespace, *task: str) -> dict[str, Any]:
    where = ["--data", str(args.data), "--cache", str(args.cache), "--queries", args.queries]
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LANCE_CPU_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, __file__, *where, *task], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(task)}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(kind: str, n: int, engine: str, purpose: str, data: Path, cache: Path) -> dict[str, Any]:
    """All figures of an engine."""
    one_thread()
    vectors = gallery(kind, n, data, cache)
    asked, choosing = (queries(kind, name, data, cache) for name in (purpose, "rule"))
    flat = import_faiss().IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    least, least_choosing = (flat.search(each, K)[0][:, -1:] - ROUNDING for each in (asked, choosing))
    del flat
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "saved"
        saved.mkdir()
        started = time.process_time()
        search, about = BUILDERS.get(engine, of_index)(engine, vectors, choosing, least_choosing, saved)
        seconds = time.process_time() - started
        searches = {engine: search}
        if engine == "exact":
            for name, build in (("faiss", of_faiss), ("torch", of_torch)):
                beside = Path(scratch) / name
                beside.mkdir()
                searches[name] = build(name, vectors, choosing, least_choosing, beside)[0]
        rates: dict[str, dict[str, float]] = {name: {} for name in searches}
        for m in AT_ONCE:
            for name, taken in by_turns(searches, asked[:m]).items():
                rates[name][str(m)] = round(m / taken, 1)
        found = {"queries_per_second": rates[engine], "recall": round(recall(search, asked, least), 4)}
        if engine == "exact":
            best = {m: max(rates["faiss"][m], rates["torch"][m]) for m in rates[engine]}
            found["ratio"] = {m: round(rate / best[m], 2) for m, rate in rates[engine].items()}
        found |= {"build_seconds": round(seconds, 1), **about}
        del search, searches
        where = argparse.Namespace(data=data, cache=cache, queries=purpose)
        found["memory_mb"] = in_process(where, "--opened", kind, engine, str(saved))["memory_mb"]
        found["disk_mb"] = megabytes(sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()))
        return found


def opened(kind: str, engine: str, saved: str, data: Path, cache: Path) -> dict[str, Any]:
    """Memory that the saved index of an engine takes, beyond what its libraries take with an index of few vectors."""
    one_thread()
    asked = queries(kind, "rule", data, cache)
    opener, builder = OPENERS.get(engine, open_index), BUILDERS.get(engine, of_index)
    with tempfile.TemporaryDirectory() as scratch:
        least = np.full((len(asked), 1), -1, np.float32)
        builder("pq" if engine == "mapped" else engine, asked, asked, least, Path(scratch))
        opener(Path(scratch), asked.shape[1])(asked[:1])
    before = resident()
    search = opener(Path(saved), asked.shape[1])
    search(asked[:1])
    return {"memory_mb": megabytes(resident() - before)}


def one_thread() -> None:
    torch.set_num_threads(1)
    import_faiss().omp_set_num_threads(1)


def megabytes(size: int) -> float:
    return round(size / 1e6, 1)


def recall(search: Search, queries: Vectors, least: NDArray[np.float32]) -> float:
    return float((search(queries)[0] >= least).mean())


def by_turns(searches: dict[str, Search], asked: Vectors) -> dict[str, float]:
    """Median seconds of processor time of each; the first call is not counted."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    for search in searches.values():
        search(asked)
    while not all(enough(taken) for taken in times.values()):
        for name in sorted(searches, reverse=len(times[next(iter(times))]) % 2 == 1):
            started = time.process_time()
            searches[name](asked)
            times[name].append(time.process_time() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def enough(taken: list[float]) -> bool:
    return len(taken) >= 3 and (sum(taken) >= AT_LEAST_SECONDS or len(taken) >= TIMES)


def resident() -> int:
    """Bytes of this process in memory that are in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


# ------------------------------------------------------------------------------------------------ engines

Built = tuple[Search, dict[str, Any]]


def of_index(engine: str, vectors: Vectors, _: Vectors, __: object, saved: Path) -> Built:
    kind, memory = ("pq", MAPPED_MEMORY * len(vectors)) if engine == "mapped" else (engine, None)
    index = Index(vectors.shape[1], kind=kind, device="cpu", least_recall=RECALL, memory=memory)
    index.add([f"picture {row}" for row in range(len(vectors))], vectors)
    index.save(saved)
    about: dict[str, Any] = {"structure": index.structure, "recall_by_index": round(index.recall, 4)}
    if index.structure != "exact":
        about["effort"] = index._engine.effort
    if isinstance(index._engine, Quantised):
        about |= {"factor": index._engine.factor, "share": round(index._engine.share_compared(), 4)}
    counted = memory_of(index.structure, len(index), index.width, mapped=engine == "mapped")
    about["counted_mb"] = megabytes(counted + memory_of_keys(index.keys))
    return open_index(saved, index.width) if engine == "mapped" else answers(index), about


def open_index(saved: Path, _: int) -> Search:
    return answers(Index.load(saved, memory_mapped=None, device="cpu"))


def answers(index: Any) -> Search:
    def search(asked: Vectors) -> tuple[NDArray[np.float32], Any]:
        found = index.search(asked, K)
        return found.similarity, found.keys

    return search


def of_lance(_: str, vectors: Vectors, __: Vectors, ___: object, saved: Path) -> Built:
    from fewshot.search.table.lance_index import LanceIndex

    keys = [f"picture {row}" for row in range(len(vectors))]
    index = LanceIndex.build(str(saved / "index.lance"), keys, vectors, kind="pq", least_recall=RECALL)
    return answers(index), {"structure": index.structure, "recall_by_index": round(index.recall, 4)}


def open_lance(saved: Path, _: int) -> Search:
    return answers(Index.open(saved / "index.lance"))


def of_faiss(_: str, vectors: Vectors, __: Vectors, ___: object, saved: Path) -> Built:
    flat = import_faiss().IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    import_faiss().write_index(flat, str(saved / "flat"))
    return lambda asked: flat.search(asked, K), {}


def open_faiss(saved: Path, _: int) -> Search:
    flat = import_faiss().read_index(str(saved / "flat"))
    return lambda asked: flat.search(asked, K)


def of_torch(_: str, vectors: Vectors, __: Vectors, ___: object, saved: Path) -> Built:
    np.save(saved / "vectors.npy", vectors)
    return of_tensor(torch.from_numpy(vectors)), {}


def open_torch(saved: Path, _: int) -> Search:
    return of_tensor(torch.from_numpy(np.load(saved / "vectors.npy")))


def of_tensor(vectors: torch.Tensor) -> Search:
    def search(asked: Vectors) -> tuple[NDArray[np.float32], Any]:
        similarity, rows = (torch.from_numpy(asked) @ vectors.T).topk(K, dim=1)
        return similarity.numpy(), rows.numpy()

    return search


def of_hnswlib(_: str, vectors: Vectors, choosing: Vectors, least: NDArray[np.float32], saved: Path) -> Built:
    graph = importlib.import_module("hnswlib").Index(space="ip", dim=vectors.shape[1])
    graph.init_index(len(vectors), M=LINKS, ef_construction=BUILD_EFFORT)
    graph.add_items(vectors, num_threads=1)
    search = of_hnsw_graph(graph)
    about = tuned(graph.set_ef, search, choosing, least)
    graph.save_index(str(saved / "graph"))
    return search, about


def open_hnswlib(saved: Path, width: int) -> Search:
    graph = importlib.import_module("hnswlib").Index(space="ip", dim=width)
    graph.load_index(str(saved / "graph"))
    return of_hnsw_graph(graph)


def of_hnsw_graph(graph: Any) -> Search:
    def search(asked: Vectors) -> tuple[NDArray[np.float32], Any]:
        rows, distances = graph.knn_query(asked, K, num_threads=1)
        return 1 - distances, rows

    return search


def of_usearch(_: str, vectors: Vectors, choosing: Vectors, least: NDArray[np.float32], saved: Path) -> Built:
    graph = importlib.import_module("usearch.index").Index(
        ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=LINKS, expansion_add=BUILD_EFFORT, multi=False
    )
    graph.add(np.arange(len(vectors)), vectors, threads=1)
    search = of_usearch_graph(graph)
    about = tuned(lambda effort: setattr(graph, "expansion_search", effort), search, choosing, least)
    graph.save(str(saved / "graph"))
    return search, about


def open_usearch(saved: Path, _: int) -> Search:
    return of_usearch_graph(importlib.import_module("usearch.index").Index.restore(str(saved / "graph")))


def of_usearch_graph(graph: Any) -> Search:
    def search(asked: Vectors) -> tuple[NDArray[np.float32], Any]:
        found = graph.search(asked, K, threads=1)
        return 1 - found.distances.reshape(len(asked), -1), found.keys

    return search


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
OPENERS: dict[str, Callable[[Path, int], Search]] = {
    "lance": open_lance,
    "faiss": open_faiss,
    "torch": open_torch,
    "hnswlib": open_hnswlib,
    "usearch": open_usearch,
}


if __name__ == "__main__":
    main()
