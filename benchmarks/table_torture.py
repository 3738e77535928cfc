"""The part of index_torture.py for Lance tables, in which every change is written at once.

A block of BLOCK operations is drawn as for the other kinds, and made as the few commits that have its result: one that
adds, one that replaces, one that removes; then its searches, a tenth of them by the vector index, and its compactions.
The worker journals the commit that it is about to make and the one that has returned. After a kill, the table must be
the model after the last commit that returned, or after the one that was under way.

Workers and checks are forked from a process that has imported Lance and never used it: an import takes seconds.
"""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.search.engines import Vectors
from fewshot.search.index import Index
from fewshot.search.table import searching
from fewshot.search.table.lance_index import LanceIndex

BLOCK = 250  # operations
KEPT = 3  # versions that a compaction keeps

Model = dict[str, tuple[Vectors, int]]
Change = Callable[[Model, None, int], "tuple[Vectors, int] | None"]
Step = tuple[str, list[str]]


def torture(
    operations: int,
    width: int,
    change: Change,
    same: Callable[[Any, Model], bool],
    answered: Callable[[Any, Model, Vectors, int], bool],
    seconds_to_live: tuple[float, float],
    most_seconds: float,
) -> dict[str, Any]:
    """Start, kill and check workers until all blocks are in the table, or the time is over.

    The functions are those of index_torture.py.
    """
    import lance  # noqa: F401  # for the processes that are forked from this one

    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    moments, started = random.Random(operations), time.perf_counter()
    told: Counter[str] = Counter()
    model, block, done = Model(), 0, 0  # the model before the block, whose first `done` steps are in the table
    with tempfile.TemporaryDirectory() as scratch:
        place, journal = Path(scratch) / "index.lance", Path(scratch) / "journal"
        run_forked(partial(make, place, width), None)
        while block * BLOCK < operations and time.perf_counter() - started < most_seconds:
            worker = partial(work, place, journal, operations, model, block, done, change, answered)
            code = run_forked(worker, moments.uniform(*seconds_to_live))
            told["killed"] += code == -signal.SIGKILL
            if code not in (0, -signal.SIGKILL):
                raise SystemExit(f"the worker failed with {code}")
            lines = [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []
            journal.write_text("")
            for what, *numbers in lines:
                told[what] += int(numbers[0]) if what in ("searches", "differences", "commits") else 0
            states = [tuple(map(int, line[1:])) for line in lines if line[0] in ("making", "made")]
            reached = states[-1] if states else (block, done)
            under_way = bool(lines) and lines[-1][0] == "making"
            told["killed_in_a_commit"] += under_way
            while block < reached[0]:
                model, block = after_block(model, block, change)[0], block + 1
            possible = [reached[1] - 1, reached[1]] if under_way else [reached[1]]
            models = [after_steps(model, block, number, change) for number in possible]
            found = run_forked(partial(check, place, models, same), None) - 1
            if found not in range(len(models)):
                raise SystemExit(f"lance: in block {block}: the table is not in one of the states {possible}")
            done = possible[found]
            if done == len(steps_of(model, block, change)):
                model, block, done = after_block(model, block, change)[0], block + 1, 0
            print(f"{block * BLOCK} operations, {told['killed']} kills", file=sys.stderr, flush=True)
        sizes = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return {
        "operations": block * BLOCK,
        **{name: told[name] for name in ("commits", "searches", "killed", "killed_in_a_commit", "differences")},
        "keys_at_the_end": len(model),
        "megabytes_at_the_end": round(sizes / 1e6, 1),
        "seconds": round(time.perf_counter() - started),
    }


def run_forked(task: Callable[[Any], object], seconds: float | None) -> int:
    """Run a task in a forked process and return its exit code; kill it these seconds after it is ready."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=task, args=(ready,))
    process.start()
    if seconds is not None:
        while not ready.wait(0.1) and process.is_alive():
            pass
        process.join(seconds)
        if process.is_alive():
            process.kill()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def make(place: Path, width: int, ready: Any) -> None:
    LanceIndex.create(place, width, kind="ivf")


def check(place: Path, models: list[Model], same: Callable[[Any, Model], bool], ready: Any) -> None:
    """End with the number, from 1 on, of the model that the table is; 0 for none."""
    table = Index.open(place)
    sys.exit(next((number for number, model in enumerate(models, 1) if same(table, model)), 0))


def after_block(model: Model, block: int, change: Change) -> tuple[Model, list[tuple[Vectors, int]]]:
    """The model after a block, and the block's searches."""
    after, searches = dict(model), []
    for number in range(block * BLOCK + 1, (block + 1) * BLOCK + 1):
        if query := change(after, None, number):
            searches.append(query)
    return after, searches


def steps_of(model: Model, block: int, change: Change) -> list[Step]:
    """The commits of a block: what, and the keys."""
    after, _ = after_block(model, block, change)
    steps = [
        ("add", [key for key in after if key not in model]),
        ("replace", [key for key, (_, made) in model.items() if key in after and after[key][1] != made]),
        ("remove", [key for key in model if key not in after]),
    ]
    return [(what, keys) for what, keys in steps if keys]


def after_steps(model: Model, block: int, done: int, change: Change) -> Model:
    """The model after the first steps of a block."""
    after, _ = after_block(model, block, change)
    now = dict(model)
    for what, keys in steps_of(model, block, change)[:done]:
        for key in keys:
            if what == "remove":
                del now[key]
            else:
                now[key] = after[key]
    return now


def work(
    place: Path,
    journal_path: Path,
    operations: int,
    model: Model,
    block: int,
    done: int,
    change: Change,
    answered: Callable[[Any, Model, Vectors, int], bool],
    ready: Any,
) -> None:
    """The worker: go on from a step of a block, journalling."""
    table = Index.open(place)
    assert isinstance(table, LanceIndex)
    ready.set()
    with journal_path.open("a", buffering=1) as journal:
        while block * BLOCK < operations:
            after, searches = after_block(model, block, change)
            for number, (what, keys) in enumerate(steps_of(model, block, change)[done:], done + 1):
                journal.write(f"making {block} {number}\n")
                apply(table, what, keys, after)
                journal.write(f"commits 1\nmade {block} {number}\n")
            model, block, done = after, block + 1, 0
            wrong = 0
            for number, (queries, k) in enumerate(searches):
                # By the vector index where there is one, or by a pass over all vectors, which is faster at this size.
                searching.BY_INDEX = 1e9 * (number % 10 > 0)
                wrong += not answered(table, model, queries, k)
            journal.write(f"searches {len(searches)}\ndifferences {wrong}\n")
            if block % 4 == 0:
                table.compact(keep=KEPT)
            journal.write(f"made {block} 0\n")


def apply(table: LanceIndex, what: str, keys: list[str], after: Model) -> None:
    if what == "remove":
        table.remove(keys)
        return
    vectors = np.stack([after[key][0] for key in keys])
    metadata = [{"made": after[key][1]} for key in keys]
    (table.add if what == "add" else table.replace)(keys, vectors, metadata)
