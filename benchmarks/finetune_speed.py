"""How much sooner than the tutorial's loop: what is frozen run once, and fast, and not at all on a warm cache.

    FEWTUNE_DATA=DATA python benchmarks/finetune_speed.py [--measured 1] [--rounds 3] [--fastai PYTHON-WITH-FASTAI]

flowers, tf_efficientnet_lite0, one machine, one run. benchmarks/tutorial_loop.py is timed for --measured epochs, and 20
of them are taken to last 20 times their mean; once with the classifier alone learning, once with the top two blocks.
Against it whole programs, imports and all: `finetune fit --strategy head` and `--strategy partial --unfreeze blocks.5`,
each with an empty cache (cold) and started again with what that left (warm). The head and its loop are timed in turn,
--rounds times, and the median of each is told: machines are not equally fast all the time. With --fastai also fastai's
fine_tune, the frozen epoch and one more timed, for 20 of which the second is taken 19 times. Ratios, accuracies on
val/, which is the data set's own, pictures per second of each step and peak memory go to
benchmarks/results/finetune_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import provenance

from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "finetune_speed.json"
BACKBONE = "tf_efficientnet_lite0"
EPOCHS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=int, default=1, help="epochs of the tutorial's loop that are timed")
    parser.add_argument("--rounds", type=int, default=3, help="of the head, cold and warm, and the loop, in turn")
    parser.add_argument("--fastai", help="a Python that has fastai")
    args = parser.parse_args()
    data = Path(os.environ["FEWTUNE_DATA"])
    weights = data / "weights" / f"{BACKBONE}.safetensors"
    result: dict[str, Any] = {"dataset": "flowers", "backbone": BACKBONE, "epochs": EPOCHS, **provenance()}
    with tempfile.TemporaryDirectory() as cache:
        fitted(data, weights, "head", [], cache)  # before the clock: programs and pictures are then in memory for all
    for name, options, top, rounds in (
        ("head", [], 0, args.rounds),
        ("partial", ["--unfreeze", "blocks.5", "--epochs", str(EPOCHS)], 2, 1),
    ):
        timed: dict[str, list[dict[str, Any]]] = {f"{name}_cold": [], f"{name}_warm": [], f"tutorial_{name}": []}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                for state in ("cold", "warm"):
                    timed[f"{name}_{state}"].append(fitted(data, weights, name, options, cache))
            timed[f"tutorial_{name}"].append(tutorial(data, weights, args.measured, top))
            print({program: runs[-1] for program, runs in timed.items()}, flush=True)
        result |= {program: median(runs) for program, runs in timed.items()}
        twenty = EPOCHS * statistics.mean(result[f"tutorial_{name}"]["seconds"])
        for state in ("cold", "warm"):
            result[f"{name}_{state}"]["times_as_fast"] = twenty / result[f"{name}_{state}"]["seconds"]
    if args.fastai:
        program = Path(__file__).with_name("fastai_loop.py")
        found = printed([args.fastai, program, BACKBONE, weights, data / "flowers", 1])
        twenty = found["seconds"][0] + (EPOCHS - 1) * found["seconds"][1]
        fits = {name: result[name]["seconds"] for name in result if name.endswith(("_cold", "_warm"))}
        result["fastai"] = found | {"ours_as_fast": {name: twenty / seconds for name, seconds in fits.items()}}
        print("fastai", result["fastai"], flush=True)
    write_json(RESULT, result)
    print({name: result[name]["times_as_fast"] for name in result if name.endswith(("cold", "warm"))})


def median(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run that took the middle time, with the times of all."""
    by_time = sorted(runs, key=lambda run: run["seconds"])
    return by_time[len(runs) // 2] | {"every_time": [run["seconds"] for run in runs]}


def fitted(data: Path, weights: Path, strategy: str, options: list[str], cache: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        run, said = Path(scratch) / "run", Path(scratch) / "said"
        program = Path(sys.executable).parent / "finetune"
        command = [program, "fit", data / "flowers", "--backbone", BACKBONE, "--weights", weights]
        command += ["--strategy", strategy, *options, "--out", run, "--test-fraction", "0"]
        started = time.perf_counter()
        with said.open("w") as file:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdout=subprocess.DEVNULL,
                stderr=file,
                env=os.environ | {"FEWTUNE_CACHE": cache},
            )
            _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        if status:
            sys.exit(said.read_text())
        metrics = read_json(run / "metrics.json")
        steps = re.findall(r"^(.+?): ([\d,]+) pictures in ([\d.]+) s", said.read_text(), re.MULTILINE)
    return {
        "seconds": seconds,
        "accuracy": metrics["val"]["accuracy"],
        "interval": metrics["val"]["interval"],
        "pictures_per_second": {
            name: int(count.replace(",", "")) / max(0.1, float(took)) for name, count, took in steps
        },
        "peak_memory": used.ru_maxrss * 1024,
    }


def tutorial(data: Path, weights: Path, epochs: int, top: int) -> dict[str, Any]:
    program = Path(__file__).with_name("tutorial_loop.py")
    return printed([sys.executable, program, BACKBONE, weights, data / "flowers", epochs, "--top", top])


def printed(command: Sequence[object]) -> dict[str, Any]:
    """What a program prints, as JSON."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
