"""How a picture becomes what the network sees: one preprocessing specification, its evaluation and training views."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from finetune.config import Config


@dataclass(frozen=True)
class Preprocessing:
    """What a backbone expects of its pictures; stored in a run, and used for training and prediction alike.

    size: side of the square in pixels. crop_pct: share of the resized picture that the centre crop keeps.
    interpolation: "bilinear", "bicubic", "nearest" or "lanczos". mean, std: per channel, of values in [0, 1].
    """

    size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def shortest_side(self) -> int:
        """Shortest side, in pixels, to which a picture is resized before the centre crop."""
        return math.floor(self.size / self.crop_pct)

    def normalize(self, pictures: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) to float32, normalised, channels last, on the same device."""
        mean = torch.tensor(self.mean, device=pictures.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pictures.device).view(3, 1, 1)
        pictures = pictures.to(torch.float32, memory_format=torch.channels_last)
        return pictures.div_(255).sub_(mean).div_(std)


class Normalized(nn.Module):
    """A network with the normalisation of its pictures: uint8 (n, 3, size, size) in, what the network gives out."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing

    def forward(self, pictures: Tensor) -> Tensor:
        outputs: Tensor = self.network(self.preprocessing.normalize(pictures))
        return outputs


# Times as long as wide, beyond which only the middle of a picture is looked at.
LONGEST = 16


class View:
    """What is seen of a picture: RGB in, uint8 (3, size, size) out; (10, 3, size, size) for ten-crop.

    random: whether torch's generator decides on it.
    """

    def __init__(self, *steps: Callable[[Any], Any], random: bool = False):
        self.steps = steps
        self.random = random

    def __call__(self, picture: Image.Image) -> Tensor:
        value: Any = picture
        for step in self.steps:  # v2.Compose would inspect its arguments anew for every picture
            value = step(value)
        pixels: Tensor = value
        return pixels


def evaluation_view(preprocessing: Preprocessing, test_time: str = "plain") -> View:
    """The centre crop of the resized picture, or with "ten-crop" its corners, centre and their mirror images."""
    mode = _interpolation(preprocessing)
    resize = v2.Resize(preprocessing.shortest_side, interpolation=mode, antialias=True)
    # A strip of one pixel's width would be enlarged to thousands by its length before all but its middle is cut off.
    trim = _Trim(LONGEST)
    if test_time == "ten-crop":
        crop: Any = v2.TenCrop(preprocessing.size)
        return View(trim, resize, crop, _stack)
    if preprocessing.shortest_side >= preprocessing.size and preprocessing.interpolation in ("bilinear", "bicubic"):
        return View(trim, _CenterResized(preprocessing))
    return View(trim, resize, v2.CenterCrop(preprocessing.size), v2.PILToTensor())


def training_view(preprocessing: Preprocessing, config: Config) -> View:
    """A random crop, mirrored and distorted at random as the configuration says; torch's generator decides."""
    mode = _interpolation(preprocessing)
    steps: list[Any] = [
        v2.RandomResizedCrop(preprocessing.size, scale=(config.crop_scale, 1.0), interpolation=mode, antialias=True)
    ]
    if config.flip:
        steps.append(v2.RandomHorizontalFlip())
    if config.trivial_augment:
        steps.append(
            v2.TrivialAugmentWide(
                interpolation=v2.InterpolationMode.BILINEAR, fill=[round(255 * m) for m in preprocessing.mean]
            )
        )
    return View(*steps, v2.PILToTensor(), random=True)


def pixels_needed(preprocessing: Preprocessing, config: Config) -> int:
    """Shortest side, in pixels, from which even the smallest random crop need not be enlarged."""
    return math.ceil(preprocessing.size / math.sqrt(config.crop_scale))


def view_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and nothing else: the same view on every machine and in every order."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()) >> 1


class _Trim:
    """The middle of a picture that is over `ratio` times as long as it is wide; others as they are."""

    def __init__(self, ratio: int):
        self.ratio = ratio

    def __call__(self, picture: Image.Image) -> Image.Image:
        width, height = picture.size
        longest = self.ratio * min(width, height)
        if max(width, height) <= longest:
            return picture
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        return picture.crop((left, top, left + min(width, longest), top + min(height, longest)))


class _CenterResized:
    """The centre crop of the resized picture as a tensor, resized by torch."""

    def __init__(self, preprocessing: Preprocessing):
        self.size, self.shortest_side = preprocessing.size, preprocessing.shortest_side
        self.mode = preprocessing.interpolation

    def __call__(self, picture: Image.Image) -> Tensor:
        # Lengths and places are rounded as torchvision's Resize and CenterCrop do.
        shorter = min(picture.size)
        width, height = (length * self.shortest_side // shorter for length in picture.size)
        left, top = (round((length - self.size) / 2) for length in (width, height))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        resized = functional.interpolate(pixels, size=(height, width), mode=self.mode, antialias=True)
        return resized[0, :, top : top + self.size, left : left + self.size]


def _stack(crops: tuple[Image.Image, ...]) -> Tensor:
    return torch.stack([v2.functional.pil_to_tensor(crop) for crop in crops])


def _interpolation(preprocessing: Preprocessing) -> v2.InterpolationMode:
    return v2.InterpolationMode(preprocessing.interpolation)
