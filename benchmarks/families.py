"""Families of backbones by strategies: does `fit` run, is the network cut, does the saved run predict the same?

    python benchmarks/families.py --seed 0

Every cell is one `finetune.fit` on 40 made pictures of 2 classes (and 6 to validate), saved, loaded and asked again.
Weights are random, as timm initialises them at the model's published image size, and given as a file; the image size is
a small one, so that position embeddings must be resampled. Each class has as many pictures as it takes for trained
weights to be kept wherever they are no worse than the head: `kept` says which were. For each family the network is also
converted for OpenVINO, and the run of `head` exported as ONNX. Accuracy is not looked at. Results in
benchmarks/results/families.json, written after each family; --only measures some families again and keeps the rows of
the others. Each row names its revision.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from machine import provenance
from PIL import Image

import finetune
from finetune.classifier.export import export
from finetune.features.acceleration import WORTH_CONVERTING, accelerated
from finetune.files.reading import read_json
from finetune.files.writing import write_json, write_tensors
from finetune.models.backbone import Backbone
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display
from finetune.strategies import STRATEGIES

RESULT = Path(__file__).parent / "results" / "families.json"

# Family -> a small model of it, and the image size that it is tried at.
FAMILIES = {
    "resnet": ("resnet10t", 64),
    "convnext": ("convnext_atto", 64),
    "mobilenetv4": ("mobilenetv4_conv_small_035", 64),
    "efficientvit": ("efficientvit_b0", 64),
    "vit": ("vit_tiny_patch16_224", 64),
    "vit, registers, patch 14": ("vit_small_patch14_reg4_dinov2", 56),
    "deit3": ("deit3_small_patch16_224", 64),
    "swin": ("swin_tiny_patch4_window7_224", 64),
    "hiera": ("hiera_tiny_224", 64),
    "eva02": ("eva02_tiny_patch14_224", 56),
    "mambaout": ("mambaout_femto", 64),
    # Branches run side by side, so no single tensor passes from stage to stage: it cannot be cut.
    "hrnet": ("hrnet_w18_small", 64),
}
TRIED = ("head", "partial", "full")
CLASSES, PICTURES, SIDE = 2, {"train": 20, "val": 3}, 48

# Largest difference of a probability between a classifier and the same one, saved and loaded.
TOLERANCE = 1e-5


class Lines(Display):
    """Keeps the lines that a run says."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    args = parser.parse_args()
    command = f"python benchmarks/families.py --seed {args.seed}"
    about = {
        **provenance(),
        "command": command,
        "seed": args.seed,
        "pictures_per_class": PICTURES,
        "classes": CLASSES,
        "epochs": 2,
    }
    known = read_json(RESULT)["rows"] if RESULT.exists() else []
    rows = {row["family"]: row for row in known if row["seed"] == args.seed}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEWTUNE_CACHE"] = str(Path(scratch) / "cache")
        pictures = made_pictures(Path(scratch) / "pictures", args.seed)
        for family in args.only:
            found = tried(family, pictures, Path(scratch), args.seed)
            rows[family] = {"family": family, "revision": about["revision"], "seed": args.seed, **found}
            write_json(RESULT, {**about, "rows": [rows[name] for name in FAMILIES if name in rows]})
            print(family, {name: cell["status"] for name, cell in found["cells"].items()}, flush=True)


def made_pictures(folder: Path, seed: int) -> Path:
    """Coloured noise, one hue a class."""
    random = np.random.default_rng(seed)
    for split, count in PICTURES.items():
        for label in range(CLASSES):
            place = folder / split / f"class {label}"
            place.mkdir(parents=True)
            hue = np.roll([40, 128, 216], label)
            for number in range(count):
                pixels = np.clip(hue + random.normal(0, 20, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def tried(family: str, pictures: Path, scratch: Path, seed: int) -> dict[str, Any]:
    """The row of one family."""
    name, size = FAMILIES[family]
    torch.manual_seed(seed)
    weights = scratch / f"{name}.safetensors"
    tensors = timm.create_model(name, num_classes=0).state_dict()
    write_tensors(weights, {key: tensor.contiguous() for key, tensor in tensors.items()})
    runs = {strategy: scratch / f"{name}-{strategy}" for strategy in TRIED}
    cells = {
        strategy: measured(
            lambda strategy=strategy, run=run: fitted(
                pictures, run, backbone=name, image_size=size, weights=str(weights), strategy=strategy, seed=seed
            )
        )
        for strategy, run in runs.items()
    }
    return {
        "backbone": name,
        "image_size": size,
        "stages": [stage.name for stage in Backbone(name, image_size=size).stages],
        "cells": cells,
        "openvino": measured(lambda: converted(name, size, weights)),
        "onnx": measured(lambda: exported(runs["head"], scratch / f"{name}.onnx")),
    }


def measured(job: Any) -> dict[str, Any]:
    """What `job` gives, with its seconds; or the first line of its error, which does not stop the others."""
    started = time.perf_counter()
    try:
        found: dict[str, Any] = {"status": "works", **job()}
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        found = {"status": "fails", "reason": f"{type(error).__name__}: {lines[0][:200]}"}
    return found | {"seconds": round(time.perf_counter() - started, 1)}


def fitted(pictures: Path, run: Path, *, strategy: str, **options: Any) -> dict[str, Any]:
    display = Lines()
    classifier = finetune.fit(
        pictures,
        run,
        strategy=strategy,
        epochs=2,
        test_fraction=0.0,
        batch_size=8,
        workers=0,
        device="cpu",
        display=display,
        **options,
    )
    difference = largest_difference(classifier, finetune.load(run, device="cpu"), sorted(pictures.rglob("*.png")))
    if difference > TOLERANCE:
        raise ValueError(f"a probability differs by {difference:.2g} after save and load")
    uncut = [line for line in display.said if "trains uncut" in line]
    return {
        "status": "works uncut" if uncut else "works",
        **({"why_uncut": uncut[0]} if uncut else {}),
        "epochs": classifier.metrics["epochs"],
        "kept": classifier.metrics["kept"],
        "difference_after_load": difference,
    }


def largest_difference(one: finetune.Classifier, other: finetune.Classifier, pictures: Sequence[Path]) -> float:
    found = [classifier.log_probabilities(pictures)[0].exp() for classifier in (one, other)]
    return float((found[0] - found[1]).abs().max())


def converted(name: str, size: int, weights: Path) -> dict[str, Any]:
    """How the network runs where it is worth converting. "runs eagerly" where it cannot be converted."""
    backbone, said = Backbone(name, image_size=size).eval(), Lines()
    load_pretrained(backbone, str(weights), said)
    example = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    chosen = accelerated(
        backbone,
        example,
        device=torch.device("cpu"),
        batch_size=8,
        pictures=WORTH_CONVERTING,
        display=said,
    )
    by = {"runs_by": chosen.name, "closeness": chosen.closeness}
    return {"status": "runs eagerly", "reason": said.said[0], **by} if said.said else by


def exported(run: Path, file: Path) -> dict[str, Any]:
    return {"largest_difference": export(run, file)["parity"]["largest_difference"]}


if __name__ == "__main__":
    assert set(TRIED) <= set(STRATEGIES)
    main()
