"""Draws of so many pictures of each class, and the pictures that judge, as folders of links."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

from finetune.data.folder import Sample, list_folder

DATASETS = ("cats-dogs", "flowers", "textures", "steel-defects")
# The data sets without a val/ folder: each draw of "all" is another half of the pictures.
UNDIVIDED = ("textures", "steel-defects")
BACKBONE, FAST_BACKBONE = "tf_efficientnet_lite0", "tf_mobilenetv3_small_100"


def link(source: Path, target: Path, size: str, seed: int) -> None:
    """Make a folder of links: train/ with `size` pictures of each class, test/ with the pictures that judge.

    The pictures of val/ judge, or where there is none, every second picture by the hash of its name. For one seed, the
    pictures of a smaller size are among those of a larger one. At "all" each seed takes another half of an undivided
    set.
    """
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
    """Whether a picture judges. half: number of the division, counted from 0, of a set without val/."""
    if sample.split is not None:
        return sample.split != "train"
    return hashlib.sha256((sample.path + f" {half}" * (half > 0)).encode()).digest()[0] % 2 == 0
