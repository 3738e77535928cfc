"""What class weights do where half of the classes have a tenth of the pictures.

    FEWTUNE_DATA=DATA python benchmarks/rare_classes.py [--datasets ...] [--seeds 0 1 2]

Every second class keeps 6 of its 60 training pictures; `finetune fit` gets them with --class-weights none and balanced.
The pictures that judge are those of benchmarks/draws.py: as many of each class. The accuracy where rare classes stay as
rare is computed from the recall of each class, weighed by 10 for common and 1 for rare classes. Rows are written one by
one to benchmarks/results/rare_classes.json and not made again.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from draws import DATASETS, FAST_BACKBONE, link
from machine import provenance

from finetune import fit
from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "rare_classes.json"
COMMON, RARE = 60, 6
WEIGHTS = ("none", "balanced")
HEADINGS = (
    "data set",
    "class weights",
    "recall, common classes",
    "recall, rare classes",
    "accuracy, all classes as often",
    "accuracy, rare classes as rare as in training",
)
FIGURES = ("recall_common", "recall_rare", "accuracy_balanced", "accuracy_as_rare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2))
    args = parser.parse_args()
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"backbone": FAST_BACKBONE, "runs": []}
    done = {(run["dataset"], run["seed"], run["class_weights"]) for run in result["runs"]}
    for seed in args.seeds:
        for dataset in args.datasets:
            for weights in WEIGHTS:
                if (dataset, seed, weights) in done:
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    result["runs"].append(measured(dataset, seed, weights, Path(scratch)))
                print(result["runs"][-1], flush=True)
                write_json(RESULT, result | provenance())


def measured(dataset: str, seed: int, class_weights: str, place: Path) -> dict[str, Any]:
    data, pictures, run = Path(os.environ["FEWTUNE_DATA"]), place / "pictures", place / "run"
    link(data / dataset, pictures, str(COMMON), seed)
    labels = sorted(folder.name for folder in (pictures / "train").iterdir())
    rare = set(labels[1::2])
    for label in rare:
        for file in sorted((pictures / "train" / label).iterdir())[RARE:]:
            file.unlink()
    weights = str(data / "weights" / f"{FAST_BACKBONE}.safetensors")
    fit(pictures, run, backbone=FAST_BACKBONE, weights=weights, class_weights=class_weights, strategy="head", seed=seed)
    recall = recalls(run / "predictions.csv")
    common = fmean(recall[label] for label in labels if label not in rare)
    of_rare = fmean(recall[label] for label in rare)
    share = COMMON * (len(labels) - len(rare)), RARE * len(rare)
    return {
        "dataset": dataset,
        "seed": seed,
        "class_weights": class_weights,
        "recall_common": common,
        "recall_rare": of_rare,
        "accuracy_balanced": fmean(recall.values()),
        "accuracy_as_rare": (share[0] * common + share[1] * of_rare) / sum(share),
    }


def recalls(predictions: Path) -> dict[str, float]:
    """Recall of each class on the test pictures."""
    right: dict[str, list[bool]] = defaultdict(list)
    with predictions.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["split"] == "test":
                right[row["label"]].append(row["label"] == row["predicted"])
    return {label: fmean(found) for label, found in right.items()}


def rows(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Means over the seeds, two rows for each data set."""
    found = []
    for dataset in dict.fromkeys(run["dataset"] for run in runs):
        for weights in WEIGHTS:
            of_both = [run for run in runs if (run["dataset"], run["class_weights"]) == (dataset, weights)]
            means = [f"{fmean(run[figure] for run in of_both):.1%}" for figure in FIGURES]
            found.append([dataset, f"`{weights}`", *means])
    return found


if __name__ == "__main__":
    main()
