from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_omniglot import drawing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.evaluation.affine import CELL, affine_alignment
from fewshot.evaluation.models import pixel_distance
from finetune.errors import InputError


def glyphs(*seeds: int) -> Tensor:
    return torch.from_numpy(np.stack([drawing(seed) for seed in seeds])) * torch.tensor(255, dtype=torch.uint8)


def warped(pictures: Tensor, linear: list[list[float]], moved: tuple[int, int] = (0, 0)) -> Tensor:
    """The pictures, warped by `linear` about the centre, then rolled down and right."""
    lookup = torch.tensor([[*row, 0.0] for row in linear]).expand(len(pictures), 2, 3)
    places = F.affine_grid(lookup, [len(pictures), 1, *pictures.shape[1:]], align_corners=False)
    seen = F.grid_sample(pictures[:, None].float(), places, align_corners=False)[:, 0]
    return ((seen > 127).to(torch.uint8) * 255).roll(moved, (1, 2))


def rotated(degrees: float) -> list[list[float]]:
    turn = math.radians(degrees)
    return [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]


WARPS = {
    "rotated": (rotated(20), (0, 0)),
    "sheared, moved": ([[1.0, 0.5], [0.0, 1.0]], (6, -6)),
    "stretched, moved": ([[1.6, 0.0], [0.0, 0.9]], (-5, 5)),
    "smaller, elsewhere": ([[1.5, 0.0], [0.0, 1.5]], (5, -9)),
    "all of it": ([[1.2, 0.3], [-0.25, 1.1]], (4, 3)),
}


@pytest.mark.parametrize("name", WARPS)
def test_the_warped_drawing_is_nearest(name: str) -> None:
    train = glyphs(*range(8))
    test = warped(train, *WARPS[name])
    own = torch.arange(8)
    assert (pixel_distance(test, train).argmin(1) != own).any()
    assert (affine_alignment(test, train).argmin(1) == own).all()


def test_a_drawing_is_nearest_to_itself() -> None:
    pictures = glyphs(0, 1, 2, 3)
    found = affine_alignment(pictures, pictures)
    assert found.shape == (4, 4)
    assert found.dtype == torch.float64
    others = found + torch.diag(torch.full((4,), torch.inf))
    assert (found.diagonal() + 0.5 < others.min(1).values).all()


def test_the_further_the_warp_the_larger_the_distance() -> None:
    picture = glyphs(0)
    steps = torch.cat([warped(picture, [[1.0, shear], [0.0, 1.0]]) for shear in (0.0, 0.2, 0.4, 0.6)])
    found = affine_alignment(picture, steps)[0]
    assert (found.diff() > 0).all()


@settings(max_examples=5)
@given(st.integers(0, 1000), st.integers(-4, 4), st.integers(-4, 4))
def test_the_distance_does_not_depend_on_the_position(seed: int, down: int, right: int) -> None:
    # By whole cells; other shifts gather the ink in other cells, which changes the distance slightly.
    one, other = F.pad(glyphs(seed), (4 * CELL,) * 4), glyphs(seed + 1)
    moved = one.roll((CELL * down, CELL * right), (1, 2))
    assert affine_alignment(moved, other).item() == pytest.approx(affine_alignment(one, other).item(), abs=1e-3)


def test_the_distance_is_symmetric() -> None:
    one, other = glyphs(0, 1, 2), glyphs(3, 4)
    assert torch.allclose(affine_alignment(one, other), affine_alignment(other, one).T, rtol=0, atol=1e-6)


def test_a_distance_does_not_depend_on_other_drawings() -> None:
    # The dash has fewer points than all others, which must not matter to them nor to it.
    dash = torch.zeros(1, 105, 105, dtype=torch.uint8)
    dash[0, 50:53, 40:60] = 255
    test, train = torch.cat([glyphs(0, 1), dash]), torch.cat([glyphs(2, 3), dash, glyphs(4)])
    found = affine_alignment(test, train)
    assert torch.equal(found, affine_alignment(test, train))
    order = torch.tensor([3, 0, 2, 1])
    assert torch.allclose(affine_alignment(test, train[order]), found[:, order], rtol=0, atol=1e-4)
    alone = torch.cat([affine_alignment(test[2:], train[column : column + 1]) for column in range(4)], 1)
    assert torch.allclose(alone, found[2:], rtol=0, atol=1e-4)


def test_any_two_drawings_with_ink_have_a_distance() -> None:
    odd = torch.zeros(4, 105, 105, dtype=torch.uint8)
    odd[0, 3, 3] = odd[1, 50] = odd[2, :, 104] = 255
    odd[3, ::8, ::8] = 255
    found = affine_alignment(odd, torch.cat([odd, glyphs(0)]))
    assert found.isfinite().all()
    assert (found.argmin(1) == torch.arange(4)).all()


def test_a_picture_without_ink_is_refused() -> None:
    empty = torch.zeros(1, 105, 105, dtype=torch.uint8)
    with pytest.raises(InputError, match="training picture 1 has no ink"):
        affine_alignment(glyphs(0), torch.cat([glyphs(0), empty]))
    with pytest.raises(InputError, match="test picture 0 has no ink"):
        affine_alignment(empty, glyphs(0))
