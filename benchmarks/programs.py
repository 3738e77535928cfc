"""Whole programs side by side: `finetune fit`, which chooses for itself, and fastai's `fine_tune`; accuracy and time.

    FEWTUNE_DATA=DATA python benchmarks/programs.py --fastai PYTHON-WITH-FASTAI [--dataset flowers] [--size 100]
        [--backbones NAME NAME] [--seeds 0 1 2] [--epochs 8]

Both start from the same weights and get the same drawn pictures (benchmarks/draws.py). Both set 15 % of them aside for
validation, and both are measured on the same other pictures by the program itself. Each program is a process of its
own, imports and report included, with an empty cache; the two take turns on one machine. A program runs once before the
clock, so that pictures and libraries are in the memory of the system for both. Each pair of runs is appended to
benchmarks/results/programs.json and not made again; the load of the machine before each run is kept beside its time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from draws import BACKBONE, DATASETS, FAST_BACKBONE, link
from machine import provenance, revision

from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "programs.json"
HEADINGS = (
    "backbone, pictures",
    "program",
    "accuracy, mean (each seed)",
    "seconds, mean (each seed)",
    "what `auto` took",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fastai", required=True, help="a Python that has fastai")
    parser.add_argument("--dataset", choices=DATASETS, default="flowers")
    parser.add_argument("--size", default="100", help="pictures of each class")
    parser.add_argument("--backbones", nargs="+", default=[FAST_BACKBONE, BACKBONE])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8, help="of fine_tune, after its frozen epoch")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    data = Path(os.environ["FEWTUNE_DATA"])
    result: dict[str, Any] = read_json(args.result) if args.result.exists() else {"runs": []}
    done = {(run["backbone"], run["dataset"], run["size"], run["epochs"], run["seed"]) for run in result["runs"]}
    warmed = False
    for seed, backbone in product(args.seeds, args.backbones):
        if (backbone, args.dataset, args.size, args.epochs, seed) in done:
            continue
        weights = data / "weights" / f"{backbone}.safetensors"
        with tempfile.TemporaryDirectory() as folder:
            link(data / args.dataset, Path(folder), args.size, seed)
            if not warmed:
                fitted(Path(folder), backbone, weights, seed, ["--strategy", "head"])
                warmed = True
            found = {}
            for program in ("fewtune", "fastai") if seed % 2 == 0 else ("fastai", "fewtune"):
                if program == "fewtune":
                    found[program] = fitted(Path(folder), backbone, weights, seed, [])
                else:
                    found[program] = fine_tuned(args.fastai, Path(folder), backbone, weights, seed, args.epochs)
        run = {"backbone": backbone, "dataset": args.dataset, "size": args.size, "epochs": args.epochs, "seed": seed}
        result["runs"].append(run | found | {"revision": revision()})
        print(run, found, flush=True)
        write_json(args.result, result | provenance())
    print(summary(result["runs"]))


def fitted(folder: Path, backbone: str, weights: Path, seed: int, options: Sequence[str]) -> dict[str, Any]:
    """`finetune fit` as a user runs it."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        command = [Path(sys.executable).parent / "finetune", "fit", folder, "--out", run, "--backbone", backbone]
        command += ["--weights", weights, "--seed", seed, *options]
        timed, _ = _timed(command, os.environ | {"FEWTUNE_CACHE": str(Path(scratch) / "cache")})
        metrics = read_json(run / "metrics.json")
    taken = {name: metrics[name] for name in ("accuracy", "interval", "n", "strategy", "kept", "reason", "pictures")}
    return timed | taken


def fine_tuned(python: str, folder: Path, backbone: str, weights: Path, seed: int, epochs: int) -> dict[str, Any]:
    """fastai's `fine_tune`, by benchmarks/fastai_loop.py."""
    program = Path(__file__).with_name("fastai_loop.py")
    timed, printed = _timed([python, program, backbone, weights, folder, epochs, seed], os.environ)
    found = json.loads(printed)
    return timed | {"accuracy": found["accuracy"][-1], "seconds_of_epochs": found["seconds"]}


def _timed(command: Sequence[object], environment: Mapping[str, str]) -> tuple[dict[str, float], str]:
    """Seconds of a whole program, the load of the machine before it, and what it prints."""
    load = os.getloadavg()[0]
    started = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(done.stderr)
    return {"seconds": seconds, "load_before": load}, done.stdout


def rows(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row for each program with each backbone and draw size."""
    table = list[tuple[str, ...]]()
    for (backbone, dataset, size, epochs), group in _groups(runs).items():
        for program, name in (("fewtune", "`finetune fit`"), ("fastai", f"fastai `fine_tune({epochs})`")):
            accuracies = [run[program]["accuracy"] for run in group]
            seconds = [run[program]["seconds"] for run in group]
            each = ", ".join(f"{value:.1%}" for value in accuracies)
            took = ", ".join(run[program]["strategy"] for run in group) if program == "fewtune" else ""
            table.append(
                (
                    f"{backbone}, {dataset}, {size} a class",
                    name,
                    f"{statistics.mean(accuracies):.1%} ({each})",
                    f"{statistics.mean(seconds):.0f} ({', '.join(f'{value:.0f}' for value in seconds)})",
                    took,
                )
            )
    return table


def summary(runs: Sequence[Mapping[str, Any]]) -> str:
    """Difference in accuracy and ratio of times, with each backbone."""
    told = []
    for (backbone, dataset, size, epochs), group in _groups(runs).items():
        more = [100 * (run["fewtune"]["accuracy"] - run["fastai"]["accuracy"]) for run in group]
        ratio = statistics.mean(run["fastai"]["seconds"] / run["fewtune"]["seconds"] for run in group)
        told.append(
            f"{backbone} on {dataset} with {size} a class, {len(group)} draws: the accuracy of `finetune "
            f"fit` differs by {statistics.mean(more):+.1f} points ({min(more):+.1f} to {max(more):+.1f}) from fastai's "
            f"`fine_tune({epochs})`; it takes 1/{ratio:.1f} of the time."
        )
    return "\n\n".join(told)


def _groups(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, int], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str, str, int], list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault((run["backbone"], run["dataset"], run["size"], run["epochs"]), []).append(run)
    return found


if __name__ == "__main__":
    main()
