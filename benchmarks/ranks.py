"""Throughput of `finetune fit --strategy full` with one and with two processes, one thread each.

    python benchmarks/ranks.py

Both runs take the same steps on the same global batches of synthetic pictures, one after the other, --repeats times.
The throughput is that of the training epochs after the first, validation included, from history.jsonl. Two processes
can be up to twice as fast only where each has a core: the load of the machine at the start of each run is recorded
beside it. Medians, and the best runs, which other programs disturbed least, go to benchmarks/results/ranks.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import provenance
from PIL import Image

from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "ranks.json"
CLASSES, SIDE = 4, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=60, help="of each class")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--backbone", default="fewtune_conv4")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    runs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        write_pictures(folder, args.pictures)
        for repeat in range(args.repeats):
            for processes, found in runs.items():
                found.append(measured(folder, Path(temporary) / f"run{repeat}-{processes}", processes, args))
                print(f"{processes} processes: {found[-1]}", flush=True)
    medians = {n: statistics.median(run["pictures_per_second"] for run in found) for n, found in runs.items()}
    best = {n: max(run["pictures_per_second"] for run in found) for n, found in runs.items()}
    result = {
        **provenance(),
        "options": vars(args),
        "runs": {str(processes): found for processes, found in runs.items()},
        "pictures_per_second": {str(processes): median for processes, median in medians.items()},
        "speed_up": round(medians[2] / medians[1], 3),
        "speed_up_of_the_best_runs": round(best[2] / best[1], 3),
        "largest_difference_of_losses": max(
            abs(one - two)
            for a, b in zip(runs[1], runs[2], strict=True)
            for one, two in zip(a["losses"], b["losses"], strict=True)
        ),
    }
    write_json(RESULT, result)
    print(f"{medians[1]:.1f} and {medians[2]:.1f} pictures/s: {result['speed_up']} times as fast")


def write_pictures(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir(parents=True)
        for picture in range(count):
            pixels = random.normal(100 + 20 * number, 60, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{number}" / f"{picture:03d}.png")


def measured(folder: Path, run: Path, processes: int, args: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second and losses of one run."""
    words = ["fit", folder, "--out", run, "--strategy", "full", "--backbone", args.backbone, "--device", "cpu"]
    words += ["--image-size", args.image_size, "--epochs", args.epochs, "--batch-size", args.batch_size]
    words += ["--workers", 0, "--precision", "float32", "--keep", "trained", "--devices", processes, "--json"]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    load = os.getloadavg()[0]
    subprocess.run(
        [sys.executable, "-m", "finetune", *map(str, words)],
        env=os.environ | threads,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    rows = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    trained = json.loads((run / "metrics.json").read_text())["pictures"]["train"]
    seconds = sum(row["seconds"] for row in rows[1:])
    return {
        "pictures_per_second": round(trained * (len(rows) - 1) / seconds, 2),
        "load": round(load, 1),
        "losses": [row["train_loss"] for row in rows],
    }


if __name__ == "__main__":
    main()
