"""--backbone auto against hindsight: does it take the network whose head is best on pictures that chose nothing?

    FEWTUNE_DATA=DATA python benchmarks/backbones.py [--datasets flowers ...] [--sizes 5 20 50] [--seeds 0 1]

Candidates: two ImageNet networks, the shipped encoder, and one network with random weights, in a folder that this
script makes and gives as --weights-dir. Of each data set, the pictures of val/, or every second one by the hash of its
name, judge and choose nothing; of the others so many of each class, drawn by the seed, are given to the comparison, and
then to the head of every candidate, as `finetune fit --strategy head` solves it. Sizes above what a class has mean all.

Regret: accuracy of the best candidate's head on the judging pictures minus that of the one taken. A run is a hit where
the regret is 0, and beaten beyond chance where it exceeds 1.96 standard errors of the paired difference; a pair of data
set and size is a hit where the networks taken are on average over the seeds as accurate as the one best network. It can
fail: taking any one network everywhere is listed beside it ("always"), and a random draw hits one in four. The choice
prefers the faster of two networks that are as good, so it misses by fractions of a point where both are. `cost`
compares the processor seconds of the comparison and of the head after it, with an empty cache, with those of the heads
of all candidates, one after the other.
Runs are appended one by one to benchmarks/results/backbones.json and not made again; --judge-again solves the heads of
all of them with the present code, and leaves the choices as they are.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from machine import provenance, revision
from PIL import Image
from sklearn.datasets import load_digits
from transfer import link

from finetune import Config, Display
from finetune.api.backbones import choose_backbone
from finetune.api.prepare import prepare
from finetune.data.folder import list_folder
from finetune.files.reading import read_json
from finetune.files.writing import write_json, write_tensors
from finetune.metrics import accuracy_of
from finetune.models.backbone import Backbone

RESULT = Path(__file__).parent / "results" / "backbones.json"
DATASETS = ("cats-dogs", "flowers", "textures", "steel-defects", "omniglot-Korean", "digits")
PRETRAINED = ("tf_mobilenetv3_small_100", "tf_efficientnet_lite0")
RANDOM = "resnet10t"  # its weights are random here
NETWORKS = ("fewtune_conv4", *PRETRAINED, RANDOM)
CHARACTERS = 15  # of the Omniglot alphabet, 20 drawings each
LARGEST = {"omniglot-Korean": "20"}  # about 10 drawings of a character do not judge: all of them
TIMED = (("flowers", "20"),)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--sizes", nargs="+", default=["5", "20", "50"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--judge-again", action="store_true", help="only solve the heads of all runs again")
    args = parser.parse_args()
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"runs": [], "cost": []}
    done = {(run["dataset"], run["size"], run["seed"]) for run in result["runs"]}
    with tempfile.TemporaryDirectory() as place:
        data, weights = sources(Path(place)), weights_folder(Path(place) / "weights")
        for run in result["runs"] if args.judge_again else ():
            folder = Path(place) / f"{run['dataset']}-{run['size']}-{run['seed']}-again"
            link(data[run["dataset"]], folder, run["size"], run["seed"])
            run |= judged(folder, weights, run["taken"], run["networks"])
            print({name: run[name] for name in ("dataset", "size", "seed", "taken", "best", "regret")}, flush=True)
            write_json(RESULT, result | {"summary": summary(result["runs"])} | provenance())
        for seed, dataset, size in () if args.judge_again else product(args.seeds, args.datasets, args.sizes):
            if (dataset, size, seed) in done or int(size) > int(LARGEST.get(dataset, size)):
                continue
            folder = Path(place) / f"{dataset}-{size}-{seed}"
            link(data[dataset], folder, size, seed)
            run = {"dataset": dataset, "size": size, "seed": seed, "revision": revision()} | measured(folder, weights)
            print({name: run[name] for name in ("dataset", "size", "seed", "taken", "best", "regret")}, flush=True)
            result["runs"].append(run)
            write_json(RESULT, result | {"summary": summary(result["runs"])} | provenance())
        timed = {(row["dataset"], row["size"]) for row in result["cost"]}
        for dataset, size in TIMED:
            if (dataset, size) not in timed:
                folder = Path(place) / f"{dataset}-{size}-cost"
                link(data[dataset], folder, size, 0)
                result["cost"].append({"dataset": dataset, "size": size} | cost(folder, weights))
                write_json(RESULT, result | {"summary": summary(result["runs"])} | provenance())
    for name, value in summary(result["runs"]).items():
        print(name, value)


def sources(place: Path) -> dict[str, Path]:
    """The folder of each data set; the characters and the digits are written below `place`."""
    root = Path(os.environ["FEWTUNE_DATA"])
    with zipfile.ZipFile(root / "omniglot" / "images_background.zip") as archive:
        korean = sorted(name for name in archive.namelist() if "/Korean/" in name and name.endswith(".png"))
        characters = sorted({name.split("/")[-2] for name in korean})[:CHARACTERS]
        for name in korean:
            *_, character, file = name.split("/")
            if character in characters:
                path = place / "omniglot-Korean" / character / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = place / "digits" / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255 / 16).astype("uint8")).resize((96, 96), Image.Resampling.BICUBIC).save(path)
    made = {name: place / name for name in ("omniglot-Korean", "digits")}
    return {name: made.get(name, root / name) for name in DATASETS}


def weights_folder(folder: Path) -> str:
    """A folder with the pretrained weights, and with random ones from a fixed seed."""
    folder.mkdir()
    for name in PRETRAINED:
        source = Path(os.environ["FEWTUNE_DATA"]) / "weights" / f"{name}.safetensors"
        (folder / source.name).symlink_to(source)
    torch.manual_seed(0)
    tensors = {name: tensor.contiguous() for name, tensor in Backbone(RANDOM).model.state_dict().items()}
    write_tensors(folder / f"{RANDOM}.safetensors", tensors)
    return str(folder)


def measured(folder: Path, weights: str) -> dict[str, Any]:
    """The choice, and the head of every candidate on the judging pictures."""
    config = Config(backbones=",".join(NETWORKS), weights_dir=weights, strategy="head", device="cpu")
    start = time.perf_counter()
    found = choose_backbone(list_folder(folder), config, Display()).comparison
    seconds = time.perf_counter() - start
    assert found is not None
    networks = {each.name: {"probe": each.accuracy, "error": each.error, "ms": each.ms} for each in found.candidates}
    return {
        "pictures": found.of,
        "taken": found.chosen,
        "reason": found.reason,
        "seconds_with_cached_features": round(seconds, 1),
    } | judged(folder, weights, found.chosen, networks)


def judged(folder: Path, weights: str, taken: str, networks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`networks` with the accuracy of each one's head on the judging pictures; the best one, and the regret."""
    right: dict[str, torch.Tensor] = {}
    for name in NETWORKS:
        file = Path(weights) / f"{name}.safetensors"
        config = Config(backbone=name, weights=str(file) if file.exists() else None, strategy="head", device="cpu")
        prepared = prepare(list_folder(folder), config, None, Display())
        pooled, labels = prepared.rows.of_split("test")
        answers = prepared.heads.kept(pooled).argmax(1)
        share = accuracy_of(answers, labels)
        networks[name] |= {"head": share.accuracy, "interval": share.interval}
        right[name] = (answers == labels).double()
    best = max(NETWORKS, key=lambda name: float(networks[name]["head"]))
    regret = round(100 * (networks[best]["head"] - networks[taken]["head"]), 3)
    difference = right[best] - right[taken]
    return {
        "judging": len(difference),
        "best": best,
        "regret": regret,
        "standard_error_of_regret": round(100 * float(difference.std()) / len(difference) ** 0.5, 3),
        "networks": networks,
        "revision_of_heads": revision(),
    }


def cost(folder: Path, weights: str) -> dict[str, Any]:
    """Processor seconds with an empty cache: of the comparison and the head after it, and of each candidate alone."""
    config = Config(backbones=",".join(NETWORKS), weights_dir=weights, strategy="head", device="cpu")
    listing = list_folder(folder)
    with empty_cache():
        start = time.process_time()
        choice = choose_backbone(listing, config, Display())
        compared = time.process_time()
        prepare(listing, choice.config, None, Display(), choice.splits)
        ended = time.process_time()
    alone = {}
    for name in NETWORKS:
        file = Path(weights) / f"{name}.safetensors"
        one = Config(backbone=name, weights=str(file) if file.exists() else None, strategy="head", device="cpu")
        with empty_cache():
            before = time.process_time()
            prepare(listing, one, None, Display())
            alone[name] = round(time.process_time() - before, 1)
    return {
        "files": len(listing.samples),
        "comparison": round(compared - start, 1),
        "head_after_it": round(ended - compared, 1),
        "head_of_each_alone": alone,
        "sum_of_these": round(sum(alone.values()), 1),
    }


@contextmanager
def empty_cache() -> Iterator[None]:
    """An activation cache of its own."""
    before = os.environ.get("FEWTUNE_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEWTUNE_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["FEWTUNE_CACHE"]
            else:
                os.environ["FEWTUNE_CACHE"] = before


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Hits and regret of auto, and of taking one network everywhere; by pair of data set and size, over the seeds."""
    pairs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        pairs[run["dataset"], run["size"]].append(run)
    by_pair = {f"{dataset}, {size}": pair_summary(of) for (dataset, size), of in pairs.items()}
    always = {}
    for name in NETWORKS:
        lost = [100 * (run["networks"][run["best"]]["head"] - run["networks"][name]["head"]) for run in runs]
        always[name] = {
            "hits": sum(value < 1e-9 for value in lost),
            "mean_regret": round(sum(lost) / len(lost), 2),
            "worst_regret": round(max(lost), 2),
        }
    return {
        "runs": len(runs),
        "hits": sum(run["regret"] == 0 for run in runs),
        "within_half_a_point": sum(run["regret"] <= 0.5 for run in runs),
        "beaten_beyond_chance": sum(run["regret"] > 1.96 * run.get("standard_error_of_regret", 0) for run in runs),
        "mean_regret": round(sum(run["regret"] for run in runs) / len(runs), 3),
        "worst_regret": max(run["regret"] for run in runs),
        "pairs": len(pairs),
        "pairs_hit": sum(pair["regret"] <= 0 for pair in by_pair.values()),
        "pairs_within_half_a_point": sum(pair["regret"] <= 0.5 for pair in by_pair.values()),
        "by_pair": by_pair,
        "always": always,
    }


def pair_summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds of one data set and size. regret: of the networks taken, to the best one network."""
    means = {name: sum(run["networks"][name]["head"] for run in runs) / len(runs) for name in NETWORKS}
    taken = sum(run["networks"][run["taken"]]["head"] for run in runs) / len(runs)
    return {
        "seeds": len(runs),
        "best": max(means, key=lambda name: means[name]),
        "taken": [run["taken"] for run in runs],
        "accuracy_of_the_best": round(100 * max(means.values()), 2),
        "regret": round(100 * (max(means.values()) - taken), 2),
    }


if __name__ == "__main__":
    main()
