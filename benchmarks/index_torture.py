"""An index changed, searched, saved and killed at random, and held against a plain model of what it must hold.

    python benchmarks/index_torture.py [--kinds exact ivf hnsw pq lance] [--quick]

OPERATIONS says how many each kind gets, drawn by a seed: add, remove, replace and merge of one to many keys, search,
compact; and saves. A worker process does them on an index that it loads from the folder at its start; it journals,
synced, which save it is about to begin and which has returned. This process kills it (SIGKILL) at random moments, opens
the folder, works out the model of the state it finds by doing the same draws on a dict of numpy arrays, and compares:

lost         states that a save had returned from and that are gone, or folders that do not open
differences  keys, order, vectors or metadata other than the model's; and in the worker, which keeps a model of its own,
             answers that are not the model's: for exact, the k most similar, ties aside; for approximate kinds, keys
             that are not there, wrong similarities, fewer than k

Lance tables (`--kinds lance`) are the subject of table_torture.py. Results go to
benchmarks/results/index_torture.json, those of Lance tables to table_torture.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import table_torture
from machine import provenance

from fewshot.search.engines import ROUNDING, Vectors
from fewshot.search.index import Index
from finetune.errors import InputError
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "index_torture.json"
WIDTH = 24
OPERATIONS = {"exact": 100_000, "ivf": 20_000, "hnsw": 20_000, "pq": 20_000, "lance": 100_000}
FULL = 1500  # keys; from there on more is removed than added
SAVE_EVERY = 25  # operations
SECONDS_TO_LIVE = (0.0, 10.0)  # of a worker, from its first operation on

Model = dict[str, tuple[Vectors, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(OPERATIONS), default=["exact", "ivf", "hnsw"])
    parser.add_argument("--quick", action="store_true", help="2,000 operations of each kind, and no result file")
    parser.add_argument("--operations", type=int, help="number of operations of each kind, instead of the usual one")
    parser.add_argument("--minutes", type=float, default=60, help="of lance; the result counts what was done")
    parser.add_argument("--work", nargs=3, metavar=("FOLDER", "KIND", "OPERATIONS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(Path(args.work[0]), args.work[1], int(args.work[2]))
        return
    kinds = {}
    for kind in args.kinds:
        operations = 2000 if args.quick else args.operations or OPERATIONS[kind]
        if kind == "lance":
            laws = (WIDTH, change, same, answered, SECONDS_TO_LIVE, 60 * args.minutes)
            found = table_torture.torture(operations, *laws)
            if not args.quick:
                write_json(RESULT.with_name("table_torture.json"), {**provenance(), "width": WIDTH, "lance": found})
            print(kind, json.dumps(found), flush=True)
            continue
        kinds[kind] = torture(kind, operations)
        print(kind, json.dumps(kinds[kind]), flush=True)
    if kinds and not args.quick:
        write_json(RESULT, {**provenance(), "width": WIDTH, "kinds": kinds})


def torture(kind: str, operations: int) -> dict[str, Any]:
    """Start, kill and check workers until all operations are in a saved state."""
    moments, started = random.Random(operations), time.perf_counter()
    told: Counter[str] = Counter()
    model, done = Model(), 0
    with tempfile.TemporaryDirectory() as scratch:
        folder, journal = Path(scratch) / "index", Path(scratch) / "journal"
        save(Index(WIDTH, kind=kind), folder, 0)
        while done < operations:
            command = [sys.executable, __file__, "--work", scratch, kind, str(operations)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
                kill_later(worker, moments)
            told["killed"] += worker.returncode == -signal.SIGKILL
            if worker.returncode not in (0, -signal.SIGKILL):
                raise SystemExit(f"the worker failed with {worker.returncode}")
            lines = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
            returned = max((int(number) for what, number in lines if what == "saved"), default=0)
            told["differences"] += sum(int(number) for what, number in lines if what == "differences")
            told["searches"] += sum(int(number) for what, number in lines if what == "searched")
            journal.write_text("")
            try:
                index = Index.load(folder)
                reached = int(index.about.get("operations", 0))
            except InputError as error:
                raise SystemExit(f"{kind}: after {done} operations: {error}") from error
            told["lost"] += reached < max(returned, done)
            told["killed_in_a_save"] += bool(lines) and lines[-1][0] == "saving"
            for number in range(done + 1, reached + 1):
                change(model, None, number)
            told["differences"] += not same(index, model)
            done = reached
    return {
        "operations": done,
        **{name: told[name] for name in ("searches", "killed", "killed_in_a_save", "differences", "lost")},
        "keys_at_the_end": len(model),
        "seconds": round(time.perf_counter() - started),
    }


def kill_later(worker: subprocess.Popen[str], moments: random.Random) -> None:
    """Wait for the worker's first operation, let it go on for a random while, kill it."""
    assert worker.stdout is not None
    worker.stdout.readline()
    try:
        worker.wait(moments.uniform(*SECONDS_TO_LIVE))
    except subprocess.TimeoutExpired:
        worker.send_signal(signal.SIGKILL)


def work(scratch: Path, kind: str, operations: int) -> None:
    """The worker: go on from the saved state, journalling."""
    folder = scratch / "index"
    index, model = Index.load(folder), Model()
    done = int(index.about.get("operations", 0))
    for key in index.keys:
        model[key] = (index.vectors([key])[0], index.metadata(key)["made"])
    searched = wrong = 0
    print("ready", flush=True)
    with (scratch / "journal").open("a") as journal:
        for number in range(done + 1, operations + 1):
            if query := change(model, index, number):
                searched += 1
                wrong += not answered(index, model, *query)
            if number % SAVE_EVERY == 0 or number == operations:
                note(journal, f"searched {searched}\ndifferences {wrong}\nsaving {number}\n")
                searched = wrong = 0
                save(index, folder, number)
                note(journal, f"saved {number}\n")


def note(journal: TextIO, text: str) -> None:
    journal.write(text)
    journal.flush()
    os.fsync(journal.fileno())


def save(index: Index, folder: Path, number: int) -> None:
    index.about["operations"] = number  # which state this is
    index.save(folder)


def change(model: Model, index: Index | None, number: int) -> tuple[Vectors, int] | None:
    """Operation `number`, on the model and on the index where there is one; for a search, its queries and k.

    What it is depends on the number and the model alone, so that two processes do the same.
    """
    draw = random.Random(number)
    room = len(model) < FULL
    what = draw.choices(
        ["add", "remove", "replace", "merge", "compact", "search"],
        [30 if room else 10, 15 if room else 35, 20, 3, 0.3, 30],
    )[0]
    many = draw.choice([1, 1, 1, 2, 5, draw.randint(1, 60)])
    vectors = unit(many, number)
    if what == "search":
        return vectors, draw.choice([1, 5, 10, 50])
    if what == "compact":
        if index is not None:
            index.compact()
        return None
    if what in ("add", "merge"):
        keys = [f"{number} {place}" for place in range(many)]
    else:
        keys = draw.sample(list(model), min(many, len(model)))
        vectors = vectors[: len(keys)]
    if index is not None:
        apply(index, what, keys, vectors, number)
    for key, vector in zip(keys, vectors, strict=True):
        if what == "remove":
            del model[key]
        else:
            model[key] = (vector, number)
    return None


def apply(index: Index, what: str, keys: list[str], vectors: Vectors, number: int) -> None:
    metadata = [{"made": number}] * len(keys)
    if what == "remove":
        index.remove(keys)
    elif what == "merge":
        other = Index(WIDTH)
        other.add(keys, vectors, metadata)
        index.merge(other)
    else:
        (index.add if what == "add" else index.replace)(keys, vectors, metadata)


def answered(index: Index, model: Model, queries: Vectors, k: int) -> bool:
    """Whether a search answers as the model does."""
    found, k = index.search(queries, k), min(k, len(model))
    if found.keys.shape != (len(queries), k):
        return False
    if not k:
        return True
    everything = dict(zip(model, np.stack([vector for vector, _ in model.values()]) @ queries.T, strict=True))
    for query, (keys, similarity) in enumerate(zip(found.keys, found.similarity, strict=True)):
        if len(set(keys)) != k or not set(keys) <= set(model):
            return False
        true = np.array([everything[key][query] for key in keys])
        if np.abs(true - similarity).max() > ROUNDING or (np.diff(similarity) > 0).any():
            return False
        if index.structure == "exact":
            best = np.sort([of_key[query] for of_key in everything.values()])[::-1][:k]
            if np.abs(best - similarity).max() > ROUNDING:
                return False
    return True


def same(index: Index, model: Model) -> bool:
    """Whether keys, their order, vectors and metadata are the model's."""
    if index.keys != tuple(model):
        return False
    expected = np.stack([vector for vector, _ in model.values()]) if model else np.empty((0, WIDTH), np.float32)
    texts = index.metadata_texts(index.keys)
    made = [json.loads(texts[key])["made"] for key in model]
    return np.array_equal(index.vectors(index.keys), expected) and made == [number for _, number in model.values()]


def unit(n: int, seed: int) -> Vectors:
    """(n, WIDTH) unit vectors, of which some come again under other seeds."""
    vectors: Vectors = np.random.default_rng(seed % 5000).standard_normal((n, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


if __name__ == "__main__":
    main()
