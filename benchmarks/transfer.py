"""Regret of `auto`: its accuracy against every strategy as trained, the head and the simple classifiers, in hindsight.

    FEWTUNE_DATA=DATA python benchmarks/transfer.py [--backbone NAME] [--datasets ...] [--sizes 1 2 5 10 20 50 all]
        [--methods auto head simple partial full train scratch] [--seeds 0 1 2]

So many pictures of each class, drawn by the seed (benchmarks/draws.py), are given to `finetune fit`; the pictures that
judge choose nothing. `auto` runs as users run it, with `keep="best"`. partial, full, train and scratch run with
`keep="trained"`, so that a training that harms shows in the table. `simple` are the classifiers of
benchmarks/simple.py on the frozen features of the same training and validation pictures. From one picture of each class
nothing is trained by gradient.

GRID holds the draws of each method; it fits two cores in about an hour with tf_mobilenetv3_small_100. --seeds replaces
these draws, --datasets, --sizes and --methods select among them. The cheap methods run first. Each run is appended to
benchmarks/results/transfer.json and not made again, so that the program can be stopped and started at any time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from draws import BACKBONE, DATASETS, FAST_BACKBONE, UNDIVIDED, link
from machine import provenance, revision
from regret import TRAINED, summary
from rich.console import Console
from simple import simple_accuracies

from finetune import fit
from finetune.api.prepare import prepare
from finetune.config import Config
from finetune.data.folder import list_folder
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "transfer.json"
SIZES = ("1", "2", "5", "10", "20", "50", "all")
METHODS = ("auto", "head", "simple", "partial", "full", "train", "scratch")

# Seeds of each method by size. At "all" the undivided sets have two draws, the others one. What wins nowhere takes
# longest: partial and full from 2 and 10 pictures, train and scratch have one draw of few sizes.
_EVERY, _ONE = (0, 1, 2), (0,)
_CHEAP: dict[str, tuple[int, ...]] = dict.fromkeys(SIZES, _EVERY) | {"all": (0, 1)}
_TRAINED: dict[str, tuple[int, ...]] = {"2": _ONE, "5": _EVERY, "10": _ONE, "20": _EVERY, "50": _EVERY, "all": (0, 1)}
GRID: dict[str, dict[str, tuple[int, ...]]] = {
    "auto": _CHEAP,
    "head": _CHEAP,
    "simple": _CHEAP,
    "partial": _TRAINED,
    "full": _TRAINED,
    "train": dict.fromkeys(("5", "20", "50", "all"), _ONE),
    "scratch": dict.fromkeys(("5", "50"), _ONE),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=(FAST_BACKBONE, BACKBONE), default=FAST_BACKBONE)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of those of GRID")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    result = opened(args.result)
    done = {(run["backbone"], run["dataset"], run["size"], run["seed"], run["method"]) for run in result["runs"]}
    for job in jobs(args.datasets, args.sizes, args.methods, args.seeds):
        dataset, size, seed, method = job
        if (args.backbone, *job) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            link(Path(os.environ["FEWTUNE_DATA"]) / dataset, Path(folder), size, seed)
            found = measured(folder, args.backbone, method, seed)
        run = {"backbone": args.backbone, "dataset": dataset, "size": size, "seed": seed, "method": method}
        result["runs"].append(run | found | {"revision": revision()})
        print(run, found.get("took", ""), found["accuracy"], flush=True)
        write_json(args.result, result | provenance() | {"grid": GRID})
    print(summary(result["runs"]))


def opened(path: Path) -> dict[str, Any]:
    """The runs so far; none where the file has the layout of older versions."""
    result: dict[str, Any] = read_json(path) if path.exists() else {}
    return result if result.get("layout") == 2 else {"layout": 2, "runs": []}


def jobs(datasets: list[str], sizes: list[str], methods: list[str], seeds: list[int] | None) -> list[Any]:
    """Data set, size, seed and method of each run: cheap methods first, then seed by seed."""
    cheap = [method for method in METHODS if method not in TRAINED and method in methods]
    found = []
    for group in (cheap, [method for method in METHODS if method in TRAINED and method in methods]):
        for seed, size, method, dataset in product(seeds or _EVERY, sizes, group, datasets):
            drawn = GRID[method].get(size, ()) if seeds is None else (seeds if size in GRID[method] else ())
            # At "all", other seeds of a divided set draw the same pictures.
            if seed in drawn and not (seeds is None and size == "all" and seed > 0 and dataset not in UNDIVIDED):
                found.append((dataset, size, seed, method))
    return found


def measured(folder: str, backbone: str, method: str, seed: int) -> dict[str, Any]:
    """Accuracy of a method on the pictures that judge, and how it came about; of several for "simple"."""
    weights = str(Path(os.environ["FEWTUNE_DATA"]) / "weights" / f"{backbone}.safetensors")
    options = {"backbone": backbone, "weights": weights, "seed": seed}
    if method == "simple":
        return {"accuracy": simple(folder, Config(strategy="head", **options))}  # type: ignore[arg-type]
    keep = "trained" if method in TRAINED else "best"
    config = Config(strategy=method, keep=keep, **options)  # type: ignore[arg-type]
    metrics = fit(folder, config=config, display=Display(Console(stderr=True))).metrics
    val = metrics["val"]
    return {
        "took": metrics["strategy"],
        "kept": metrics["kept"],
        "accuracy": metrics["accuracy"],
        "interval": metrics["interval"],
        "val": None if val is None else val["accuracy"],
        "reason": metrics["reason"],
        "epochs": metrics["epochs"],
        "best_epoch": metrics["best_epoch"],
        "share_of_the_way": metrics["share_of_the_way"],
        "pictures": metrics["pictures"],
        "seconds": metrics["seconds"],
    }


def simple(folder: str, config: Config) -> dict[str, float]:
    """Accuracies of the simple classifiers on the last features of the training and validation pictures."""
    rows = prepare(list_folder(Path(folder)), config, None, Display()).rows
    parts = [rows.of_split(split) for split in ("train", "val")]
    pooled, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    asked, truth = rows.of_split("test")
    features, asked = pooled[:, -rows.width :], asked[:, -rows.width :]
    return simple_accuracies(features.numpy(), labels.numpy(), asked.numpy(), truth.numpy())


if __name__ == "__main__":
    main()
