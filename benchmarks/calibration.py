"""What temperature scaling does to the calibration of true runs, and how far their ONNX exports are from `predict`.

    FEWTUNE_DATA=DATA python benchmarks/calibration.py [--datasets ...] [--strategies head partial ...] [--sizes 20]

Of each data set, so many pictures of each class are given to `finetune fit`, which sets some aside to fit the
temperature on; the pictures that judge are those of benchmarks/draws.py, and serve for nothing else. Told are the
expected calibration error on it (15 bins) before and after. Each run is then exported to ONNX and compared with
`predict` in float32 on every validation picture: labels, and the largest difference of a probability. Rows are written
one by one to benchmarks/results/calibration.json and not made again. The digits are those of `finetune demo`, which
has a size and strategies of its own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from draws import BACKBONE, link
from machine import provenance
from rich.console import Console

from finetune import fit
from finetune.api.demo import PER_CLASS, run_demo
from finetune.classifier.export import export
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.progress import Display
from finetune.strategies import STRATEGIES

RESULT = Path(__file__).parent / "results" / "calibration.json"
DIGITS = "digits"
DISPLAY = Display(Console(stderr=True))
DATASETS = (DIGITS, "cats-dogs", "flowers", "textures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--strategies", nargs="+", choices=list(STRATEGIES), default=("head", "partial"))
    parser.add_argument("--sizes", nargs="+", default=("20", "50"), help="pictures of each class")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    result: dict[str, Any] = read_json(args.result) if args.result.exists() else {"backbone": BACKBONE, "runs": []}
    done = {(run["dataset"], run["size"], run["strategy"]) for run in result["runs"]}
    demo = DIGITS, str(PER_CLASS), "scratch"
    asked = [(name, size, one) for name in args.datasets for size in args.sizes for one in args.strategies]
    asked = [demo] * (DIGITS in args.datasets) + [job for job in asked if job[0] != DIGITS]
    for job in asked:
        if job not in done:
            with tempfile.TemporaryDirectory() as scratch:
                rows = of_digits(Path(scratch)) if job == demo else [of(*job, Path(scratch))]
            for row in rows:
                print(row, flush=True)
            result["runs"] += rows
            write_json(args.result, result | provenance())


def of_digits(place: Path) -> list[dict[str, Any]]:
    """Every strategy of the demo."""
    found = run_demo(place, display=DISPLAY)
    return [told(DIGITS, str(PER_CLASS), metrics, place / metrics["strategy"]) for metrics in found]


def of(dataset: str, size: str, strategy: str, place: Path) -> dict[str, Any]:
    data = Path(os.environ["FEWTUNE_DATA"])
    link(data / dataset, place / "pictures", size, 0)
    weights = str(data / "weights" / f"{BACKBONE}.safetensors")
    run = place / "run"
    classifier = fit(place / "pictures", run, strategy=strategy, backbone=BACKBONE, weights=weights, display=DISPLAY)
    return told(dataset, size, classifier.metrics, run)


def told(dataset: str, size: str, metrics: dict[str, Any], run: Path) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "size": size,
        "strategy": metrics["strategy"],
        "kept": metrics["kept"],
        "accuracy": metrics["accuracy"],
        **metrics["calibration"],
        "fitted_on": metrics["val"]["n"],
        "export": export(run, run.parent / "exported" / f"{metrics['strategy']}.onnx", display=DISPLAY)["parity"],
    }


if __name__ == "__main__":
    main()
