"""Every strategy, and auto, on every data set at several sizes: what the choice between them is worth.

    FEWTUNE_DATA=DATA python benchmarks/transfer.py [--strategies head auto ...] [--sizes 5 10 50 all] [--seeds 3]

Of each data set, the pictures of val/, or every second one by the hash of its name where there is none, judge and
choose nothing. Of the others, so many of each class, drawn by the seed, are given to `finetune fit`, which sets some
aside to choose by. A run of `auto` is also that of the strategy that it took. Runs are appended one by one to
benchmarks/results/transfer.json and not made again: stop it and start it as you like. Baselines, of the same pictures:
the nearest class mean, and the linear head, which every run reports.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import provenance
from rich.console import Console

from finetune import fit
from finetune.config import Config
from finetune.files import read_json, write_json
from finetune.folder import Sample, list_folder
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "transfer.json"
DATASETS = ("cats-dogs", "flowers", "textures", "steel-defects")
BACKBONE = "tf_efficientnet_lite0"
SIZES = ("5", "10", "50", "all")
STRATEGIES = ("auto", "head", "partial", "full", "train", "scratch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    data = Path(os.environ["FEWTUNE_DATA"])
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"backbone": BACKBONE, "runs": []}
    done = {(run["dataset"], run["size"], run["seed"], run["strategy"]) for run in result["runs"]}
    for strategy in args.strategies:
        for dataset in args.datasets:
            for size in args.sizes:
                for seed in range(args.seeds):
                    if (dataset, size, seed, strategy) not in done:
                        runs = list(measured(data, dataset, size, seed, strategy))
                        done |= {(run["dataset"], run["size"], run["seed"], run["strategy"]) for run in runs}
                        result["runs"] += runs
                        write_json(RESULT, result | provenance())


def measured(data: Path, dataset: str, size: str, seed: int, strategy: str) -> Iterator[dict[str, Any]]:
    """One run; of auto two, for it is also that of the strategy which it took."""
    with tempfile.TemporaryDirectory() as scratch:
        link(data / dataset, Path(scratch), size, seed)
        weights = str(data / "weights" / f"{BACKBONE}.safetensors")
        config = Config(backbone=BACKBONE, weights=weights, strategy=strategy, seed=seed)
        metrics = fit(scratch, config=config, display=Display(Console(stderr=True))).metrics
    found = {
        "dataset": dataset,
        "size": size,
        "seed": seed,
        "strategy": strategy,
        "took": metrics["strategy"],
        "kept": metrics["kept"],
        "accuracy": metrics["accuracy"],
        "interval": metrics["interval"],
        "val": metrics["val"]["accuracy"],
        "baselines": {name: figures["accuracy"] for name, figures in metrics["baselines"].items()},
        "reason": metrics["reason"],
        "pictures": metrics["pictures"],
        "seconds": metrics["seconds"],
    }
    print(
        {name: found[name] for name in ("dataset", "size", "seed", "strategy", "took", "kept", "accuracy", "seconds")}
    )
    yield found
    if strategy == "auto":
        yield found | {"strategy": metrics["strategy"]}


def link(source: Path, target: Path, size: str, seed: int) -> None:
    """A folder of links: train/ as large as was asked for, test/ what judges."""
    samples = list_folder(source, to_train=False).samples
    judged = [sample for sample in samples if judges(sample)]
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        if not judges(sample):
            by_class.setdefault(sample.label, []).append(sample)
    chosen = []
    for label, of_class in sorted(by_class.items()):
        random.Random(f"{seed} {label}").shuffle(of_class)
        chosen += of_class if size == "all" else of_class[: int(size)]
    for split, members in (("train", chosen), ("test", judged)):
        for number, sample in enumerate(members):
            place = target / split / sample.label / f"{number:05d}{Path(sample.path).suffix}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to((source / sample.path).absolute())


def judges(sample: Sample) -> bool:
    if sample.split is not None:
        return sample.split != "train"
    return hashlib.sha256(sample.path.encode()).digest()[0] % 2 == 0


if __name__ == "__main__":
    main()
