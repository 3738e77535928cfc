"""The classic lecture table on 2,000 cats and dogs: every strategy, and scratch, with interval and time.

    python benchmarks/cats_dogs.py --data DATA --runs runs/cats-dogs

DATA holds cats-dogs/{train,val}/{cats,dogs} and weights/tf_efficientnet_lite0.safetensors. Runs that are in --runs
already are not made again, and a run that was killed goes on; Ctrl-C ends a strategy with its best weights so far.
Measured on 2 cores of an AMD EPYC, seed 0: benchmarks/results/cats_dogs.json.

Every figure is on the 1,000 pictures of val/, which the strategies use to choose the head's L2 strength and the epoch
to keep, and on some 300 pictures of train/ which are made the test set by hash and choose nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from machine import provenance

from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.strategies import STRATEGIES

BACKBONE = "tf_efficientnet_lite0"
RESULT = Path(__file__).parent / "results" / "cats_dogs.json"
KEPT = ("accuracy", "interval", "loss", "n", "split", "val", "kept", "epochs", "best_epoch", "interrupted", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEWTUNE_DATA", "data")))
    parser.add_argument("--runs", type=Path, default=Path("runs/cats-dogs"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=list(STRATEGIES))
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()

    for name in args.strategies:
        metrics = fit(args.data, args.runs / f"{name}-{args.seed}", name, args.seed)
        row: dict[str, Any] = {"strategy": name, "seed": args.seed, **{key: metrics[key] for key in KEPT}}
        if name == "head":
            row["baselines"] = metrics["baselines"]
        append(args.result, row)
        print(
            f"{name:8} val {metrics['val']['accuracy']:.1%} test {metrics['accuracy']:.1%} {metrics['seconds']:.0f} s",
            flush=True,
        )


def fit(data: Path, run: Path, strategy: str, seed: int) -> dict[str, Any]:
    """metrics.json of the command that a user would type."""
    weights = data / "weights" / f"{BACKBONE}.safetensors"
    command = [
        "finetune",
        "fit",
        data / "cats-dogs",
        "--backbone",
        BACKBONE,
        "--weights",
        weights,
        "--strategy",
        strategy,
    ]
    words = [*command, "--seed", seed, "--out", run, "--resume", "--json"]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(word) for word in words], stdout=subprocess.PIPE, text=True, check=False, env=environment
    )
    if done.returncode not in (0, 130):  # 130: stopped by Ctrl-C, with the best weights so far
        raise SystemExit(f"finetune fit --strategy {strategy} failed with exit code {done.returncode}")
    metrics: dict[str, Any] = json.loads(done.stdout)
    return metrics


def append(path: Path, row: dict[str, Any]) -> None:
    """Put `row` in the place of the one with its strategy and seed, or at the end."""
    result = read_json(path) if path.exists() else {"rows": []}
    others = [old for old in result["rows"] if (old["strategy"], old["seed"]) != (row["strategy"], row["seed"])]
    write_json(path, {**provenance(), "backbone": BACKBONE, "rows": [*others, row]})


if __name__ == "__main__":
    main()
