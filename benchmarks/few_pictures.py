"""The head as `fit` solves it, against the simple classifiers on the same features, from one picture a class on.

    FEWTUNE_DATA=DATA python benchmarks/few_pictures.py [--backbone NAME] [--datasets ...] [--sizes 1 2 5 10 20 50]
        [--draws 20]

Each draw (benchmarks/draws.py) goes through the product's own path, `finetune.api.prepare.prepare` with strategy head:
pictures audited and divided, activations from the cache, heads solved. The simple classifiers of benchmarks/simple.py
learn from the last features of the same training and validation pictures. The pictures that judge choose nothing. With
activations in the cache, a draw takes about a second. Draws are appended to benchmarks/results/few_pictures.json and
not made again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from draws import BACKBONE, DATASETS, FAST_BACKBONE, link
from machine import provenance, revision
from simple import simple_accuracies

from finetune.api.prepare import prepare
from finetune.config import Config
from finetune.data.folder import list_folder
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.metrics import log_loss
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "few_pictures.json"
SIZES = ("1", "2", "5", "10", "20", "50")
HEADINGS = (
    "data set",
    "pictures a class",
    "head (draws)",
    "best simple classifier, by mean",
    "head above it, points (95 % interval)",
    "worst draw of the head, and of that classifier",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=(FAST_BACKBONE, BACKBONE), default=FAST_BACKBONE)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--again", action="store_true", help="forget the draws of other revisions")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    result: dict[str, Any] = read_json(args.result) if args.result.exists() else {"runs": []}
    if args.again:
        result["runs"] = [run for run in result["runs"] if run["revision"] == revision()]
    done = {(run["backbone"], run["dataset"], run["size"], run["seed"]) for run in result["runs"]}
    for dataset, size in product(args.datasets, args.sizes):
        fresh = [seed for seed in range(args.draws) if (args.backbone, dataset, size, seed) not in done]
        for seed in fresh:
            with tempfile.TemporaryDirectory() as folder:
                link(Path(os.environ["FEWTUNE_DATA"]) / dataset, Path(folder), size, seed)
                found = measured(folder, args.backbone, seed)
            run = {"backbone": args.backbone, "dataset": dataset, "size": size, "seed": seed}
            result["runs"].append(run | found | {"revision": revision()})
        if fresh:
            write_json(args.result, result | provenance())
            (row,) = rows(
                [run for run in result["runs"] if (run["dataset"], run["size"]) == (dataset, size)], args.backbone
            )
            print(" | ".join(row), flush=True)
    for backbone in backbones(result["runs"]):
        print(summary(result["runs"], backbone))


def measured(folder: str, backbone: str, seed: int) -> dict[str, Any]:
    """Accuracy of the head and of every simple classifier on the pictures that judge; log-loss of the head."""
    weights = str(Path(os.environ["FEWTUNE_DATA"]) / "weights" / f"{backbone}.safetensors")
    config = Config(backbone=backbone, weights=weights, strategy="head", seed=seed)
    started = time.perf_counter()
    prepared = prepare(list_folder(Path(folder)), config, None, Display())
    seconds, rows_ = time.perf_counter() - started, prepared.rows
    asked, truth = rows_.of_split("test")
    logits = prepared.heads.kept(asked)
    pooled, labels = (torch.cat(tensors) for tensors in zip(*map(rows_.of_split, ("train", "val")), strict=True))
    features, queries = pooled[:, -rows_.width :], asked[:, -rows_.width :]
    return {
        "pictures": {split: len(rows_.indices(split)) for split in ("train", "val", "test")},
        "head": float((logits.argmax(1) == truth).double().mean()),
        "loss": log_loss(logits, truth),
        "simple": simple_accuracies(features.numpy(), labels.numpy(), queries.numpy(), truth.numpy()),
        "seconds": seconds,
    }


def backbones(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(run["backbone"] for run in runs))


def rows(runs: Sequence[Mapping[str, Any]], backbone: str) -> list[tuple[str, ...]]:
    """A row for each (data set, size): the head, and the simple classifier with the best mean over the draws."""
    table = list[tuple[str, ...]]()
    for (dataset, size), drawn in _cells(runs, backbone).items():
        head = [run["head"] for run in drawn]
        best = _best(drawn)
        over = [100 * (run["head"] - run["simple"][best]) for run in drawn]
        low, high = _interval(over)
        table.append(
            (
                dataset,
                size,
                f"{statistics.mean(head):.1%} ({len(drawn)})",
                f"{best} {_mean(drawn, best):.1%}",
                f"{statistics.mean(over):+.1f} ({low:+.1f} to {high:+.1f})",
                f"{min(head):.1%}, {min(run['simple'][best] for run in drawn):.1%}",
            )
        )
    return table


def summary(runs: Sequence[Mapping[str, Any]], backbone: str) -> str:
    """The smallest and the mean difference from the best simple classifier, as a sentence."""
    over = {}
    for cell, drawn in _cells(runs, backbone).items():
        over[cell] = 100 * (statistics.mean(run["head"] for run in drawn) - _mean(drawn, _best(drawn)))
    (dataset, size), least = min(over.items(), key=lambda item: item[1])
    by_set = defaultdict(list)
    for (name, _), value in over.items():
        by_set[name].append(value)
    means = ", ".join(f"{name} {statistics.mean(values):+.1f}" for name, values in by_set.items())
    return (
        f"{backbone}: the head against the simple classifier that is best by mean (nearest class mean, logistic "
        "regression with four strengths, their average or a chosen one, ridge, shrinkage LDA), in points: "
        f"{statistics.mean(over.values()):+.1f} on average ({means}), {least:+.1f} at least, on {dataset} with {size} "
        "a class."
    )


def _cells(runs: Sequence[Mapping[str, Any]], backbone: str) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for run in runs:
        if run["backbone"] == backbone:
            found[run["dataset"], run["size"]].append(run)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], SIZES.index(item[0][1]))))


def _mean(drawn: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(statistics.mean(run["simple"][name] for run in drawn))


def _best(drawn: Sequence[Mapping[str, Any]]) -> str:
    """The simple classifier with the best mean over the draws."""
    names: list[str] = list(drawn[0]["simple"])
    return max(names, key=lambda name: _mean(drawn, name))


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over draws."""
    drawn = np.random.default_rng(0).choice(values, (4000, len(values))).mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
