"""How much sooner than the tutorial's loop: what is frozen run once, and fast, and not at all on a warm cache.

    FEWTUNE_DATA=DATA python benchmarks/finetune_speed.py [--measured 1]

flowers, tf_efficientnet_lite0, one machine, one run. benchmarks/tutorial_loop.py is timed for --measured epochs, and 20
of them are taken to last 20 times their mean; once with the classifier alone learning, once with the top two blocks.
Against it whole programs, imports and all: `finetune fit --strategy head` and `--strategy partial --unfreeze blocks.5`,
each with an empty cache (cold) and started again with what that left (warm). Ratios and accuracies on val/, which is
the data set's own, go to benchmarks/results/finetune_speed.json.
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
from pathlib import Path
from typing import Any

from machine import provenance

from finetune.files import write_json

RESULT = Path(__file__).parent / "results" / "finetune_speed.json"
BACKBONE = "tf_efficientnet_lite0"
EPOCHS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", type=int, default=1, help="epochs of the tutorial's loop that are timed")
    args = parser.parse_args()
    data = Path(os.environ["FEWTUNE_DATA"])
    weights = data / "weights" / f"{BACKBONE}.safetensors"
    result: dict[str, Any] = {"dataset": "flowers", "backbone": BACKBONE, "epochs": EPOCHS, **provenance()}
    with tempfile.TemporaryDirectory() as cache:
        for name, options in (("head", []), ("partial", ["--unfreeze", "blocks.5", "--epochs", str(EPOCHS)])):
            for state in ("cold", "warm"):
                result[f"{name}_{state}"] = fitted(data, weights, name, options, cache)
                print(name, state, result[f"{name}_{state}"], flush=True)
    for name, top in (("head", 0), ("partial", 2)):
        found = tutorial(data, weights, args.measured, top)
        result[f"tutorial_{name}"] = found
        print("tutorial", name, found, flush=True)
        twenty = EPOCHS * statistics.mean(found["seconds"])
        for state in ("cold", "warm"):
            result[f"{name}_{state}"]["times_as_fast"] = twenty / result[f"{name}_{state}"]["seconds"]
    write_json(RESULT, result)
    print({name: result[name]["times_as_fast"] for name in result if name.endswith(("cold", "warm"))})


def fitted(data: Path, weights: Path, strategy: str, options: list[str], cache: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(sys.executable).parent / "finetune"
        command = [program, "fit", data / "flowers", "--backbone", BACKBONE, "--weights", weights, "--json"]
        command += ["--strategy", strategy, *options, "--out", Path(scratch) / "run", "--test-fraction", "0"]
        started = time.perf_counter()
        done = subprocess.run(
            [str(word) for word in command],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=os.environ | {"FEWTUNE_CACHE": cache},
        )
        seconds = time.perf_counter() - started
    metrics = json.loads(done.stdout)
    return {"seconds": seconds, "accuracy": metrics["val"]["accuracy"], "interval": metrics["val"]["interval"]}


def tutorial(data: Path, weights: Path, epochs: int, top: int) -> dict[str, Any]:
    program = Path(__file__).with_name("tutorial_loop.py")
    command = [sys.executable, program, BACKBONE, weights, data / "flowers", epochs, "--top", top]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
