"""Every strategy, and auto, on every data set at several sizes: what the choice between them is worth.

    FEWTUNE_DATA=DATA python benchmarks/transfer.py [--strategies head auto ...] [--sizes 5 10 50 all] [--seeds 0 1 2]

Of each data set, the pictures of val/, or every second one by the hash of its name where there is none, judge and
choose nothing. Of the others, so many of each class, drawn by the seed, are given to `finetune fit`, which sets some
aside to choose by. At `all`, where there is nothing left to draw, other seeds draw other halves. `auto` is the very run
of the strategy that it takes, which is looked up where it was made already.
Runs are appended one by one to benchmarks/results/transfer.json, each with the revision that made it, and not made
again: stop it and start it as you like.
Baselines, of the same pictures, on the features: the nearest class mean, which every run reports, a linear probe in
closed form, and a plain linear classifier: scikit-learn's LogisticRegression, its strength chosen on a fifth.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from machine import provenance, revision
from plain import plain_accuracy
from rich.console import Console

from finetune import fit
from finetune.api.prepare import prepare
from finetune.config import Config
from finetune.data.folder import Sample, list_folder
from finetune.files import read_json, write_json
from finetune.linear.probe import probe_answers
from finetune.progress import Display
from finetune.strategies import STRATEGIES as STRATEGY

RESULT = Path(__file__).parent / "results" / "transfer.json"
DATASETS = ("cats-dogs", "flowers", "textures", "steel-defects")
BACKBONE = "tf_efficientnet_lite0"
SIZES = ("5", "10", "50", "all")
STRATEGIES = ("head", "partial", "full", "train", "scratch", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"backbone": BACKBONE, "runs": []}
    done = {(run["dataset"], run["size"], run["seed"], run["strategy"]): run for run in result["runs"]}
    for seed, strategy, size, dataset in product(args.seeds, args.strategies, args.sizes, args.datasets):
        if (dataset, size, seed, strategy) in done:
            continue
        with tempfile.TemporaryDirectory() as folder:
            link(Path(os.environ["FEWTUNE_DATA"]) / dataset, Path(folder), size, seed)
            config = configured(strategy, seed)
            known, reason = None, ""
            if strategy == "auto":
                choice = prepare(list_folder(Path(folder)), config, None, Display()).choice
                known, reason = done.get((dataset, size, seed, choice.strategy.name)), choice.reason
                known = known if choice.strategy == STRATEGY[choice.strategy.name] else None
            found = measured(folder, config) if known is None else known | {"reason": reason}
            if strategy == "head":
                found |= plain_classifiers(folder, config)
        run = {"dataset": dataset, "size": size, "seed": seed, "revision": revision()} | found | {"strategy": strategy}
        print({name: run[name] for name in ("dataset", "size", "seed", "strategy", "took", "kept", "accuracy")})
        done[dataset, size, seed, strategy] = run
        result["runs"].append(run)
        write_json(RESULT, result | provenance())


def configured(strategy: str, seed: int) -> Config:
    weights = str(Path(os.environ["FEWTUNE_DATA"]) / "weights" / f"{BACKBONE}.safetensors")
    return Config(backbone=BACKBONE, weights=weights, strategy=strategy, seed=seed)


def measured(folder: str, config: Config) -> dict[str, Any]:
    metrics = fit(folder, config=config, display=Display(Console(stderr=True))).metrics
    return {
        "took": metrics["strategy"],
        "kept": metrics["kept"],
        "accuracy": metrics["accuracy"],
        "interval": metrics["interval"],
        "val": metrics["val"]["accuracy"],
        "baselines": {name: figures["accuracy"] for name, figures in metrics["baselines"].items()},
        "reason": metrics["reason"],
        "best_epoch": metrics["best_epoch"],
        "share_of_the_way": metrics["share_of_the_way"],
        "pictures": metrics["pictures"],
        "seconds": metrics["seconds"],
    }


def plain_classifiers(folder: str, config: Config) -> dict[str, float]:
    """Accuracy of a ridge probe and of a plain linear classifier on the features, which have learned from the training
    and the validation pictures."""
    rows = prepare(list_folder(Path(folder)), config, None, Display()).rows
    parts = [rows.of_split(split) for split in ("train", "val")]
    pooled, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    asked, truth = rows.of_split("test")
    features, asked = pooled[:, -rows.width :], asked[:, -rows.width :]
    probe = float((probe_answers(features, labels, asked) == truth).double().mean())
    return {"probe": probe, "plain": plain_accuracy(features.numpy(), labels.numpy(), asked.numpy(), truth.numpy())}


def link(source: Path, target: Path, size: str, seed: int) -> None:
    """A folder of links: train/ as large as was asked for, test/ what judges."""
    samples = list_folder(source, to_train=False).samples
    half = seed if size == "all" else 0
    judged = [sample for sample in samples if judges(sample, half)]
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        if not judges(sample, half):
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


def judges(sample: Sample, half: int) -> bool:
    """Whether it is a picture to judge by; half: which one, counted from 0, of a set that is not divided."""
    if sample.split is not None:
        return sample.split != "train"
    return hashlib.sha256((sample.path + f" {half}" * (half > 0)).encode()).digest()[0] % 2 == 0


if __name__ == "__main__":
    main()
