"""Preprocessing of pictures: the specification of a backbone, its evaluation view and its training view."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from finetune.config import MOST_SIDE, Config

# Bounds of a saved preprocessing, beyond those of any published network: outside of them pictures become enormous, or
# numbers infinite.
_Mean = Annotated[float, Meta(ge=-1000, le=1000)]
_Std = Annotated[float, Meta(ge=1e-4, le=1000)]
_INTERPOLATIONS = "|".join(mode.value for mode in v2.InterpolationMode)


@dataclass(frozen=True)
class Preprocessing:
    """The pictures that a backbone expects. A run saves it, for training and prediction alike.

    Attributes:
        size: Side of the square in pixels.
        crop_pct: Fraction of the resized picture that the centre crop keeps; above 1 the crop has a black rim.
        interpolation: "bilinear", "bicubic", "nearest" or "lanczos".
        mean, std: Mean and standard deviation of each channel, of values in [0, 1].

    The bounds are checked where it is read from a file.
    """

    size: Annotated[int, Meta(ge=1, le=MOST_SIDE)]
    crop_pct: Annotated[float, Meta(ge=0.1, le=1.5)]
    interpolation: Annotated[str, Meta(pattern=f"^(?:{_INTERPOLATIONS})$")]
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]

    @property
    def shortest_side(self) -> int:
        """Shortest side in pixels of a resized picture, before the centre crop."""
        return math.floor(self.size / self.crop_pct)

    def normalize(self, pictures: Tensor) -> Tensor:
        """uint8 (n, 3, h, w) to float32, normalised, channels last, on the same device."""
        mean, std = (_of_channels(values, pictures.device) for values in (self.mean, self.std))
        pictures = pictures.to(torch.float32, memory_format=torch.channels_last)
        return pictures.div_(255).sub_(mean).div_(std)


def _of_channels(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """The values as (3, 1, 1), float32."""
    if device.type == "cuda":  # a copy from the CPU would wait for the batch before
        return torch.cat([torch.full((1, 1, 1), value, device=device) for value in values])
    return torch.tensor(values, device=device).view(3, 1, 1)


class Normalized(nn.Module):
    """A network with the normalisation of its pictures: uint8 (n, 3, size, size) to the network's output."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing):
        super().__init__()
        self.network = network
        self.preprocessing = preprocessing

    def forward(self, pictures: Tensor) -> Tensor:
        outputs: Tensor = self.network(self.preprocessing.normalize(pictures))
        return outputs


# Ratio of the sides beyond which only the middle of a picture is used.
LONGEST = 16


class View:
    """The steps from an RGB picture to pixels, uint8 (3, size, size), or (10, 3, size, size) for ten-crop.

    A random view draws from torch's global generator.
    """

    def __init__(self, *steps: Callable[[Any], Any], random: bool = False):
        self.steps = steps
        self.random = random

    def __call__(self, picture: Image.Image) -> Tensor:
        value: Any = picture
        for step in self.steps:  # v2.Compose inspects its arguments again for every picture
            value = step(value)
        pixels: Tensor = value
        return pixels


def evaluation_view(preprocessing: Preprocessing, test_time: str = "plain") -> View:
    """The centre crop of the resized picture, or with "ten-crop" its corners, centre and their mirror images."""
    mode = _interpolation(preprocessing)
    resize = v2.Resize(preprocessing.shortest_side, interpolation=mode, antialias=True)
    # Without it, a strip of one pixel's width would be enlarged to an enormous picture before the crop.
    trim = _Trim(LONGEST)
    if test_time == "ten-crop":
        crop: Any = v2.TenCrop(preprocessing.size)
        return View(trim, resize, crop, _stack)
    if preprocessing.shortest_side >= preprocessing.size and preprocessing.interpolation in ("bilinear", "bicubic"):
        return View(trim, _CenterResized(preprocessing))
    return View(trim, resize, v2.CenterCrop(preprocessing.size), v2.PILToTensor())


def training_view(preprocessing: Preprocessing, config: Config) -> View:
    """A random crop, mirrored and distorted at random as the configuration says."""
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
    """Shortest side in pixels of a picture whose smallest random crop is not enlarged."""
    return math.ceil(preprocessing.size / math.sqrt(config.crop_scale))


def view_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends only on the parts, so that a view is the same on every machine and in any order."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()) >> 1


class _Trim:
    """The middle of a picture whose sides have a ratio above `ratio`; other pictures stay unchanged."""

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
    """The centre crop of a picture that torch resizes, as a tensor."""

    def __init__(self, preprocessing: Preprocessing):
        self.size, self.shortest_side = preprocessing.size, preprocessing.shortest_side
        self.mode = preprocessing.interpolation

    def __call__(self, picture: Image.Image) -> Tensor:
        # Rounded as in torchvision's Resize and CenterCrop.
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
