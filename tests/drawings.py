"""Characters that tests make up and draw by several hands: as tensors, as folders, as Omniglot's archives."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from fake_omniglot import zipped
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from fewshot.omniglot.splits import BACKGROUND
from fewshot.training.config import SiameseConfig


def small(**options: object) -> SiameseConfig:
    """A recipe that takes a second on one core."""
    usual: dict[str, object] = {
        "network": "fewtune_conv4",
        "side": 16,
        "alphabets": 2,
        "ways": 4,
        "shots": 2,
        "epochs": 1,
        "ema": 0.9,
        "device": "cpu",
        "precision": "float32",
    }
    return SiameseConfig.from_dict(usual | options)


def character(number: int, drawer: int = 0, *, side: int = 105, width: int = 4) -> NDArray[np.uint8]:
    """(side, side), ink 255 on 0: strokes that `number` chooses and `drawer` draws a little otherwise."""
    strokes = np.random.default_rng(number).uniform(0.15, 0.85, (2, 3, 2))
    hand = np.random.default_rng([number, drawer]).normal(0, 0.02, strokes.shape)
    page = Image.new("L", (side, side))
    for stroke in ((strokes + hand) * side).round().astype(int).tolist():
        ImageDraw.Draw(page).line([tuple(point) for point in stroke], fill=255, width=width)
    return np.array(page)


def drawings(count: int, first: int = 0) -> Tensor:
    """(count, 105, 105) uint8, each another character."""
    return torch.from_numpy(np.stack([character(number) for number in range(first, first + count)]))


def folder_of(folder: Path, classes: int = 6, each: int = 4, *, side: int = 40) -> Path:
    """Dark ink on white, one sub-folder a character."""
    for number in range(classes):
        (folder / f"class{number:02d}").mkdir(parents=True)
        for drawer in range(each):
            ink = character(number, drawer, side=side, width=3)
            Image.fromarray(255 - ink).save(folder / f"class{number:02d}" / f"{drawer:02d}.png")
    return folder


def omniglot_of(folder: Path, drawers: Mapping[str, int]) -> Path:
    """images_background.zip with whole alphabets by their official names, each by so many drawers."""
    files = {}
    for alphabet, hands in drawers.items():
        for number in range(1, BACKGROUND[alphabet] + 1):
            seed = 100 * sorted(BACKGROUND).index(alphabet) + number
            for drawer in range(hands):
                file = io.BytesIO()
                Image.fromarray(character(seed, drawer) < 128).save(file, "PNG")
                name = f"{alphabet}/character{number:02d}/{seed:04d}_{drawer + 1:02d}.png"
                files[f"images_background/{name}"] = file.getvalue()
    zipped(folder / "images_background.zip", files)
    return folder
