"""The sets that unknown pictures are measured on: pooled activations of every depth, classes, and who judges."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from draws import judges
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from finetune.config import Config
from finetune.data.digits import write_digits
from finetune.data.folder import Listing, list_folder
from finetune.features.extraction import read_pictures
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display

PHOTOGRAPHS = ("flowers", "textures", "steel-defects", "cats-dogs")
# Alphabets, whose characters are the classes, with the archive of each.
ALPHABETS = {"Greek": "background", "Sanskrit": "background", "Tengwar": "evaluation"}
SETS = (*PHOTOGRAPHS, "digits", *ALPHABETS)
# Most pictures of a class that are read.
MOST = 120
# The same pictures from another source. Blur: about one pixel and a half of what the network reads.
SHIFTS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as they are": lambda picture: picture,
    "grey": lambda picture: picture.convert("L").convert("RGB"),
    "JPEG quality 30": lambda picture: picture,
    "half the size": lambda picture: picture.resize((max(1, picture.width // 2), max(1, picture.height // 2))),
    "slightly blurred": lambda picture: picture.filter(ImageFilter.GaussianBlur(min(picture.size) / 150)),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.4),
}


@dataclass(frozen=True)
class Pictures:
    """pooled: (n, sum of widths). labels: (n,) int64. judging: (n,) bool, pictures that choose nothing."""

    pooled: Tensor
    labels: Tensor
    judging: Tensor
    widths: tuple[int, ...]


@cache
def pictures_of(name: str, backbone: str, shift: str = "") -> Pictures:
    """The pictures of a set, through the cache of activations. shift: one of SHIFTS, from another source."""
    with folder_of(name) as folder:
        listing = some_of(list_folder(folder, to_train=False))
        if not shift:
            return read_listing(listing, backbone)
        with tempfile.TemporaryDirectory() as place:
            return read_listing(_shifted(listing, shift, Path(place)), backbone)


def read_listing(listing: Listing, backbone: str) -> Pictures:
    """The readable pictures of a listing with the activations of every depth."""
    weights = str(Path(os.environ["FEWTUNE_DATA"]) / "weights" / f"{backbone}.safetensors")
    config = Config(backbone=backbone, weights=weights, device="cpu")
    network = Backbone(backbone).eval()
    load_pretrained(network, weights, Display())
    stages = PooledStages(network)
    outputs = read_pictures(open_engine("cpu", "float32"), stages, listing, config, Display())
    readable = [listing.samples[position] for position in outputs.index.tolist()]
    names = sorted({sample.label for sample in readable})
    return Pictures(
        outputs.values[:, 0],
        torch.tensor([names.index(sample.label) for sample in readable]),
        torch.tensor([judges(sample, 0) for sample in readable]),
        stages.widths,
    )


def _shifted(listing: Listing, shift: str, place: Path) -> Listing:
    """The same listing with its pictures changed, in another folder under the same names."""
    for sample in listing.samples:
        target = place / sample.path
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(listing.root / sample.path) as picture:
            changed = SHIFTS[shift](picture.convert("RGB"))
        if shift == "JPEG quality 30":
            changed.save(target, "JPEG", quality=30)
        else:
            changed.save(target, "PNG", compress_level=1)  # the name may say otherwise
    samples = tuple(replace(sample, size=(place / sample.path).stat().st_size) for sample in listing.samples)
    return replace(listing, root=place, samples=samples)


@contextmanager
def folder_of(name: str) -> Iterator[Path]:
    """A folder with a sub-folder for each class."""
    data = Path(os.environ["FEWTUNE_DATA"])
    if name in PHOTOGRAPHS:
        yield data / name
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name
        if name == "digits":
            write_digits(folder, per_class=80)
            yield folder
            return
        with zipfile.ZipFile(data / "omniglot" / f"images_{ALPHABETS[name]}.zip") as archive:
            _draw(archive, name, folder)
        yield folder


def _draw(archive: zipfile.ZipFile, alphabet: str, folder: Path) -> None:
    for entry in archive.namelist():
        parts = Path(entry).parts
        if entry.endswith(".png") and alphabet in parts:
            target = folder / parts[-2] / parts[-1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(entry))


def some_of(listing: Listing) -> Listing:
    """At most MOST pictures of each class, by the hash of their names."""
    by_class: dict[str, list[int]] = {}
    for position, sample in enumerate(listing.samples):
        by_class.setdefault(sample.label, []).append(position)
    kept: Sequence[int] = sorted(
        position
        for members in by_class.values()
        for position in sorted(members, key=lambda at: hashlib.sha256(listing.samples[at].path.encode()).hexdigest())[
            :MOST
        ]
    )
    return replace(listing, samples=tuple(listing.samples[position] for position in kept))
