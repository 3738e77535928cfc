"""The centre crop of which only the part that is seen is computed, against torchvision's resize and crop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import v2

from finetune.data.transforms import LONGEST, Preprocessing, evaluation_view

MEAN, STD = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)


def preprocessing(size: int = 48, crop_pct: float = 0.875, interpolation: str = "bicubic") -> Preprocessing:
    return Preprocessing(size, crop_pct, interpolation, MEAN, STD)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Independent pixels, in which nothing that is displaced or blurred goes unnoticed.

    Of middle brightness: where sharpening would go beyond black or white, Pillow cuts it off between its horizontal and
    its vertical pass, whose order it chooses by what is computed.
    """
    return Image.fromarray(np.random.default_rng(seed).integers(80, 176, (height, width, 3), dtype=np.uint8))


def seen(picture: Image.Image, wanted: Preprocessing) -> NDArray[np.int16]:
    view = evaluation_view(wanted)(picture)
    assert tuple(view.shape) == (3, wanted.size, wanted.size)
    return view.numpy().astype(np.int16)


def by_torchvision(picture: Image.Image, wanted: Preprocessing) -> NDArray[np.int16]:
    mode = v2.InterpolationMode(wanted.interpolation)
    steps = [v2.Resize(wanted.shortest_side, interpolation=mode), v2.CenterCrop(wanted.size), v2.PILToTensor()]
    return v2.Compose(steps)(picture).numpy().astype(np.int16)  # type: ignore[no-any-return]


def assert_same_but_for_rounding(picture: Image.Image, wanted: Preprocessing) -> None:
    difference = np.abs(seen(picture, wanted) - by_torchvision(picture, wanted))
    assert difference.mean() < 0.4
    assert difference.max() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.95, 1.0])
@pytest.mark.parametrize("shape", [(48, 48), (49, 48), (500, 375), (375, 500), (20, 30), (640, 64), (13, 200)])
def test_the_centre_is_what_torchvision_resizes_and_crops(
    shape: tuple[int, int], crop_pct: float, interpolation: str
) -> None:
    assert_same_but_for_rounding(noise(*shape), preprocessing(48, crop_pct, interpolation))


@pytest.mark.slow
@settings(max_examples=200)
@given(
    shorter=st.integers(1, 150),
    ratio=st.floats(1, LONGEST),
    upright=st.booleans(),
    size=st.integers(16, 80),
    crop_pct=st.floats(0.4, 1),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
    seed=st.integers(0, 99),
)
def test_so_it_is_for_every_shape_enlarged_or_reduced(
    shorter: int, ratio: float, upright: bool, size: int, crop_pct: float, interpolation: str, seed: int
) -> None:
    longer = max(shorter, math.floor(shorter * ratio))
    picture = noise(*((shorter, longer) if upright else (longer, shorter)), seed)
    assert_same_but_for_rounding(picture, preprocessing(size, crop_pct, interpolation))


@settings(max_examples=100)
@given(
    width=st.integers(1, 3000) | st.integers(1, 3),
    height=st.integers(1, 3),
    turned=st.booleans(),
    crop_pct=st.floats(0.2, 1.6),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_strips_too_are_seen_at_the_right_size(
    width: int, height: int, turned: bool, crop_pct: float, interpolation: str
) -> None:
    picture = noise(*((height, width) if turned else (width, height)))
    seen(picture, preprocessing(32, crop_pct, interpolation))


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.2])
def test_a_crop_larger_than_the_picture_and_nearest_neighbours_are_torchvision_s_own(
    crop_pct: float, interpolation: str
) -> None:
    wanted = preprocessing(48, crop_pct, interpolation)
    if crop_pct > 1 or interpolation == "nearest":
        assert np.array_equal(seen(noise(70, 50), wanted), by_torchvision(noise(70, 50), wanted))
    else:
        assert_same_but_for_rounding(noise(70, 50), wanted)
