"""Does `finetune fit --minutes N` end within N minutes, and what does more time buy?

    FEWTUNE_DATA=DATA python benchmarks/budget.py [--datasets flowers ...] [--minutes 1 3 10] [--repeats 5]

Of each data set, the pictures of val/, or every second one by the hash of its name where there is none, judge and are
shown to no fit. Each run is a program of its own with an empty cache, `finetune fit FOLDER --minutes N`, and its wall
time is measured outside, from its start to its end. The accuracy is that of the run on the judging pictures, measured
afterwards by `evaluate`. The load of the machine, by other programs too, is written down before and after each run.
Rows are appended one by one to benchmarks/results/budget.json and not made again: stop it and start it as you like.
At the end a table is printed: punctuality, and accuracy against budget.
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
from itertools import product
from pathlib import Path
from typing import Any

from draws import DATASETS, FAST_BACKBONE, judges
from machine import provenance, revision

from finetune import evaluate
from finetune.data.folder import list_folder
from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "budget.json"
HERE = Path(__file__).parent.parent
# A run is on time up to this multiple of its budget.
ALLOWED = 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=["flowers", "textures"])
    parser.add_argument("--backbone", default=FAST_BACKBONE)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--strategy", default="auto")
    args = parser.parse_args()
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"rows": []}
    done = {key_of(row) for row in result["rows"]}
    for repeat, minutes, dataset in product(range(args.repeats), args.minutes, args.datasets):
        key = (dataset, args.backbone, args.strategy, minutes, repeat)
        if key in done:
            continue
        row = dict(zip(("dataset", "backbone", "strategy", "minutes", "repeat"), key, strict=True)) | measured(*key)
        print(json.dumps(row), flush=True)
        result["rows"].append(row)
        write_json(RESULT, result | provenance())
    print(table(result["rows"]))


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("dataset", "backbone", "strategy", "minutes", "repeat"))


def measured(dataset: str, backbone: str, strategy: str, minutes: float, seed: int) -> dict[str, Any]:
    """One run from outside: its wall time, what it planned, and its accuracy on pictures that it has not seen."""
    data = Path(os.environ["FEWTUNE_DATA"])
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        link(data / dataset, place)
        words = ["fit", "pictures", "--out", "run", "--backbone", backbone, "--minutes", str(minutes)]
        words += ["--weights", str(data / "weights" / f"{backbone}.safetensors"), "--seed", str(seed)]
        command = [sys.executable, "-m", "finetune", *words, "--strategy", strategy, "--json"]
        own = {"PYTHONPATH": str(HERE), "FEWTUNE_CACHE": str(place / "cache")}
        load, started = os.getloadavg()[0], time.perf_counter()
        subprocess.run(command, env=os.environ | own, cwd=place, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        loads = [round(load, 1), round(os.getloadavg()[0], 1)]
        metrics = read_json(place / "run" / "metrics.json")
        judged = evaluate(place / "run", place / "judging")
    budget = metrics["budget"]
    return {
        "seconds": round(seconds, 2),
        "on_time": seconds <= ALLOWED * 60 * minutes,
        "accuracy": judged["accuracy"],
        "judging_pictures": judged["n"],
        "head_accuracy_on_test": metrics["baselines"]["head"]["accuracy"],
        "accuracy_on_test": metrics["accuracy"],
        "took": metrics["strategy"],
        "kept": metrics["kept"],
        "epochs": metrics["epochs"],
        "budget": budget,
        "load": loads,
        "revision": revision(),
    }


def link(source: Path, place: Path) -> None:
    """Links below `place`: pictures/ for fit, judging/ for the pictures that judge."""
    for sample in list_folder(source, to_train=False).samples:
        part = "judging" if judges(sample, 0) else "pictures"
        name = place / part / sample.label / Path(sample.path).name
        name.parent.mkdir(parents=True, exist_ok=True)
        name.symlink_to((source / sample.path).absolute())


def summary(rows: list[dict[str, Any]]) -> dict[tuple[str, str, float], list[dict[str, Any]]]:
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if row["strategy"] == "auto":
            groups.setdefault((row["dataset"], row["backbone"], row["minutes"]), []).append(row)
    return dict(sorted(groups.items()))


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| data set | network | minutes | on time | longest, share of the budget | accuracy | took |",
        "|---" * 7 + "|",
    ]
    for (dataset, backbone, minutes), group in summary(rows).items():
        longest = max(row["seconds"] for row in group) / (60 * minutes)
        accuracy = statistics.mean(row["accuracy"] for row in group)
        took = ", ".join(sorted({f"{row['took']} ({row['kept']} kept)" for row in group}))
        on_time = f"{sum(row['on_time'] for row in group)} of {len(group)}"
        lines.append(f"| {dataset} | {backbone} | {minutes:g} | {on_time} | {longest:.2f} | {accuracy:.1%} | {took} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
