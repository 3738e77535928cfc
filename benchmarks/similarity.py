"""Are pictures like those that a backbone was trained on? The distance by batch norm against what a person says.

    FEWTUNE_DATA=DATA python benchmarks/similarity.py [--backbones NAME NAME] [--counts 8 24]

Of each set, training pictures are drawn, some of every class, and their distance is measured as `finetune fit` does it,
--draws times at each count. Like the ImageNet photographs of these networks: animals, flowers and surfaces, in colour,
and animals and flowers in grey. Unlike them: steel surfaces, drawn characters, digits, and drawings made here in the
manner of grey slices of a body and of stained cells. The distance fails where a set lies on the wrong side of the
threshold, `finetune.linear.probe.FAR`, at any draw. Results: benchmarks/results/similarity.json.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import provenance
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from finetune.data.folder import list_folder
from finetune.data.transforms import evaluation_view
from finetune.features.familiarity import batch_norm_distance
from finetune.files.writing import write_json
from finetune.linear.probe import FAR
from finetune.models.backbone import Backbone
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "similarity.json"
BACKBONES = ("tf_mobilenetv3_small_100", "tf_efficientnet_lite0")
SIDE, MADE = 128, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--counts", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for name in args.backbones:
        backbone = Backbone(name).eval()
        load_pretrained(backbone, str(data() / "weights" / f"{name}.safetensors"), Display())
        view = evaluation_view(backbone.preprocessing)
        for dataset, (unlike, pictures) in SETS.items():
            found = pictures()
            pixels = torch.stack([view(picture) for picture in found])
            for count in args.counts:
                distances = []
                for seed in range(args.draws):
                    some = random.Random(seed).sample(range(len(found)), min(count, len(found)))
                    distance = batch_norm_distance(backbone, backbone.preprocessing.normalize(pixels[some]))
                    assert distance is not None
                    distances.append(round(distance, 4))
                right = all((distance > FAR) == unlike for distance in distances)
                rows.append(
                    {
                        "backbone": name,
                        "set": dataset,
                        "unlike": unlike,
                        "pictures": count,
                        "distances": distances,
                        "right": right,
                    }
                )
                print(f"{name} {dataset} {count}: {min(distances):.3f} to {max(distances):.3f}", right, flush=True)
    write_json(
        RESULT, {"threshold": FAR, "rows": rows, "right": sum(bool(row["right"]) for row in rows)} | provenance()
    )


def data() -> Path:
    return Path(os.environ["FEWTUNE_DATA"])


def photographs(name: str, grey: bool = False) -> Callable[[], list[Image.Image]]:
    """Training pictures of a data set, evenly spread over its classes."""

    def read() -> list[Image.Image]:
        listing = list_folder(data() / name, to_train=False)
        samples = [sample for sample in listing.samples if sample.split in (None, "train")]
        random.Random(0).shuffle(samples)
        found = [Image.open(data() / name / sample.path).convert("RGB") for sample in samples[:MADE]]
        return [picture.convert("L").convert("RGB") for picture in found] if grey else found

    return read


def characters() -> list[Image.Image]:
    """Drawings of Omniglot's background alphabets."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(data() / "omniglot/images_background.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        return [
            Image.open(archive.extract(name, folder)).convert("RGB") for name in random.Random(0).sample(names, MADE)
        ]


def digits() -> list[Image.Image]:
    """scikit-learn's handwritten digits."""
    images = load_digits().images[:MADE]
    return [
        Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((SIDE, SIDE)).convert("RGB") for image in images
    ]


def slices() -> list[Image.Image]:
    """Grey ovals with blurred round parts and grain, as slices of a body look."""
    made, drawn = np.random.default_rng(0), []
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE / 2) - 1
    for _ in range(MADE):
        image = 0.4 * (x**2 / 0.6 + y**2 / 0.8 < 1)
        for _ in range(6):
            left, top = made.uniform(-0.5, 0.5, 2)
            image = image + ((x - left) ** 2 + (y - top) ** 2 < made.uniform(0.02, 0.15)) * made.uniform(-0.2, 0.4)
        drawn.append(_picture(np.repeat(gaussian_filter(image, 2)[..., None], 3, 2), made, 0.03))
    return drawn


def cells() -> list[Image.Image]:
    """Purple discs on pink, as stained cells look."""
    made, drawn = np.random.default_rng(0), []
    y, x = np.mgrid[:SIDE, :SIDE]
    for _ in range(MADE):
        image = np.ones((SIDE, SIDE, 3)) * (0.95, 0.8, 0.88)
        for _ in range(25):
            left, top = made.uniform(0, SIDE, 2)
            image[(x - left) ** 2 + (y - top) ** 2 < made.uniform(4, 10) ** 2] = (0.5, 0.3, 0.6)
        drawn.append(_picture(gaussian_filter(image, (1, 1, 0)), made, 0.02))
    return drawn


def _picture(image: np.ndarray, made: np.random.Generator, grain: float) -> Image.Image:
    noisy = image + made.normal(0, grain, image.shape[:2])[..., None]
    return Image.fromarray((noisy.clip(0, 1) * 255).astype(np.uint8))


# Whether a person calls the pictures unlike photographs, and where they come from.
SETS: dict[str, tuple[bool, Callable[[], list[Image.Image]]]] = {
    "cats-dogs": (False, photographs("cats-dogs")),
    "flowers": (False, photographs("flowers")),
    "textures": (False, photographs("textures")),
    "cats-dogs, grey": (False, photographs("cats-dogs", grey=True)),
    "flowers, grey": (False, photographs("flowers", grey=True)),
    "steel-defects": (True, photographs("steel-defects")),
    "Omniglot": (True, characters),
    "digits": (True, digits),
    "slices, drawn": (True, slices),
    "cells, drawn": (True, cells),
}


if __name__ == "__main__":
    main()
