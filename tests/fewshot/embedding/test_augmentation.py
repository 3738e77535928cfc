from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawings import drawings
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.embedding.augmentation import _linear, _lit, _stroked, distort, render_view
from fewshot.embedding.distortions import DISTORTIONS, SYMMETRIES, Distortion
from fewshot.embedding.framing import FramedPictures, frame_drawings, frame_whole, render
from fewshot.evaluation.embedded import turned

DRAWN = drawings(12)
NONE = DISTORTIONS["none"]
MANY = 4000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def laid(framed: FramedPictures, symmetry: int, side: int, distortion: Distortion = NONE, seed: int = 0) -> Tensor:
    return distort(framed, torch.full((len(framed),), symmetry), distortion, side, seeded(seed))


def colours(count: int = 6, side: int = 24) -> FramedPictures:
    return frame_whole(torch.randint(0, 256, (count, 3, side, side), generator=seeded(), dtype=torch.uint8))


# --- symmetries -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [16, 31, 105])
def test_the_identity_distortion_changes_nothing(side: int) -> None:
    framed = frame_drawings(DRAWN, side)
    torch.testing.assert_close(laid(framed, 0, side), render(framed, side), atol=1e-5, rtol=0)


@pytest.mark.parametrize("symmetry", range(SYMMETRIES))
@pytest.mark.parametrize("side", [31, 32])
def test_symmetries_are_quarter_turns_then_quarter_turns_of_the_mirror_image(symmetry: int, side: int) -> None:
    framed = frame_drawings(DRAWN, side)
    plain = render(framed, side)
    wanted = (plain if symmetry < 4 else plain.flip(3)).rot90(symmetry % 4, (2, 3))
    torch.testing.assert_close(laid(framed, symmetry, side), wanted, atol=1e-4, rtol=0)


def test_turns_match_the_turns_of_the_protocols() -> None:
    framed = frame_whole(DRAWN[:, None])
    for turn in range(4):
        pictures, _ = turned(DRAWN, torch.arange(len(DRAWN)), len(DRAWN), (turn,))
        torch.testing.assert_close(laid(framed, turn, 105), pictures[:, None].float() / 255, atol=1e-3, rtol=0)


def test_all_symmetries_differ() -> None:
    framed = frame_drawings(DRAWN, 32)
    views = torch.stack([laid(framed, symmetry, 32) for symmetry in range(SYMMETRIES)])
    for one in range(SYMMETRIES):
        for other in range(one):
            assert ((views[one] - views[other]).abs().mean((1, 2, 3)) > 0.02).all()


def test_each_picture_gets_its_own_symmetry() -> None:
    framed = frame_drawings(DRAWN, 32)
    symmetry = torch.arange(len(DRAWN)) % SYMMETRIES
    together = distort(framed, symmetry, NONE, 32, seeded())
    for row, one in enumerate(symmetry.tolist()):
        torch.testing.assert_close(together[row], laid(framed, one, 32)[row], atol=1e-6, rtol=0)


# --- every preset -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DISTORTIONS)
def test_distorted_pictures_are_finite_and_from_0_to_1(name: str) -> None:
    for framed in (frame_drawings(DRAWN, 32), colours(), frame_whole(torch.zeros(2, 3, 9, 9, dtype=torch.uint8))):
        for symmetry in (0, 7):
            seen = laid(framed, symmetry, 32, DISTORTIONS[name], seed=symmetry)
            assert seen.shape == (len(framed), framed.pictures.shape[1], 32, 32)
            assert seen.dtype == torch.float32
            assert seen.isfinite().all()
            assert seen.min() >= 0
            assert seen.max() <= 1 + 1e-5


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_seed_determines_the_distortion(name: str) -> None:
    framed, distortion = frame_drawings(DRAWN, 32), DISTORTIONS[name]
    once = laid(framed, 0, 32, distortion, seed=4)
    assert torch.equal(once, laid(framed, 0, 32, distortion, seed=4))
    assert torch.equal(once, laid(framed, 0, 32, distortion, seed=5)) == (name == "none")


@pytest.mark.parametrize("name", ["koch", "drawing", "drawing-strong", "photo"])
def test_copies_of_a_picture_are_distorted_differently(name: str) -> None:
    framed = frame_drawings(DRAWN[:1].expand(8, -1, -1), 32)
    seen = laid(framed, 0, 32, DISTORTIONS[name])
    assert len({view.numpy().tobytes() for view in seen}) >= 7


def test_most_ink_stays_inside_the_window() -> None:
    framed = frame_drawings(DRAWN.repeat(20, 1, 1), 32)
    plain = render(framed, 32).sum((1, 2, 3))
    for name in ("koch", "drawing"):
        kept = laid(framed, 0, 32, replace(DISTORTIONS[name], stroke=0.0)).sum((1, 2, 3)) / plain
        assert 0.85 < float(kept.mean()) < 1.15


# --- bounds -----------------------------------------------------------------------------------------------------------

KOCH = DISTORTIONS["koch"]


def only(name: str, of: Distortion = KOCH, **more: object) -> Distortion:
    return replace(NONE, **{name: getattr(of, name), "present": of.present, **more})


def test_koch_rotates_within_ten_degrees_half_of_the_time() -> None:
    linear = _linear(MANY, only("rotation"), seeded())
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg()
    torch.testing.assert_close(linear @ linear.mT, torch.eye(2).expand(MANY, 2, 2), atol=1e-5, rtol=0)
    assert 9.5 < float(angle.max()) <= 10.001
    assert -10.001 <= float(angle.min()) < -9.5
    assert float((angle == 0).float().mean()) == pytest.approx(0.5, abs=0.04)


def test_koch_shears_each_axis_within_three_tenths_half_of_the_time() -> None:
    linear = _linear(MANY, only("shear"), seeded())
    assert (linear.diagonal(dim1=1, dim2=2) == 1).all()
    shears = torch.stack([linear[:, 0, 1], linear[:, 1, 0]], 1)
    assert 0.28 < float(shears.max()) <= 0.3
    assert -0.3 <= float(shears.min()) < -0.28
    absent = (shears == 0).float()
    assert absent.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)
    assert float(absent.prod(1).mean()) == pytest.approx(0.25, abs=0.04)


def test_koch_scales_each_axis_from_eight_to_twelve_tenths_half_of_the_time() -> None:
    linear = _linear(MANY, only("stretch"), seeded())
    scales = linear.diagonal(dim1=1, dim2=2)
    assert torch.equal(linear, torch.diag_embed(scales))
    assert 0.7999 < float(scales.min()) < 0.81
    assert 1.19 < float(scales.max()) < 1.2001
    assert (scales == 1).float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.04)


def test_koch_shifts_a_page_of_105_pixels_by_at_most_two() -> None:
    page = torch.zeros(1, 1, 105, 105, dtype=torch.uint8)
    page[..., 50:55, 50:55] = 255
    seen = laid(frame_whole(page.expand(400, -1, -1, -1)), 0, 105, only("shift"))[:, 0]
    places = torch.arange(105) - 52.0
    moved = torch.stack([(seen.sum(axis) * places).sum(1) / seen.sum((1, 2)) for axis in (1, 2)], 1)
    assert 1.8 < float(moved.abs().max()) <= 2.001
    still = (moved.abs() < 1e-3).float().mean(0)
    assert still.tolist() == pytest.approx([0.5, 0.5], abs=0.1)


def test_scale_is_equal_for_both_axes() -> None:
    linear = _linear(MANY, replace(NONE, scale=(0.5, 2.0)), seeded())
    assert torch.equal(linear[:, 0, 0], linear[:, 1, 1])
    assert 0.4999 < float(linear[:, 0, 0].min()) < 0.51
    assert 1.96 < float(linear[:, 0, 0].max()) < 2.0001
    # As often shrunk as enlarged.
    assert float((linear[:, 0, 0] < 1).float().mean()) == pytest.approx(0.5, abs=0.04)


def test_a_scale_below_one_enlarges_a_part() -> None:
    page = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    page[..., 24:40, 24:40] = 255
    near = laid(frame_whole(page), 0, 64, replace(NONE, scale=(0.5, 0.5)))
    assert float(near.sum()) == pytest.approx(4 * 16 * 16, rel=0.05)


@settings(max_examples=20)
@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_distortions_occur_with_their_probability(present: float, seed: int) -> None:
    linear = _linear(1000, replace(NONE, rotation=20, present=present), seeded(seed))
    share = float((linear[:, 1, 0] != 0).float().mean())
    assert share == pytest.approx(present, abs=0.09)


@pytest.mark.parametrize("strength", [0.02, 0.1])
def test_the_elastic_displacement_has_the_given_deviation(strength: float) -> None:
    framed = frame_drawings(DRAWN, 32)
    bent = laid(framed, 0, 32, replace(NONE, elastic=strength))
    apart = float((bent - render(framed, 32)).abs().mean())
    assert apart > 0
    assert apart < float((laid(framed, 0, 32, replace(NONE, elastic=3 * strength)) - render(framed, 32)).abs().mean())


# --- strokes and light ------------------------------------------------------------------------------------------------


def test_strokes_grow_thicker_and_thinner() -> None:
    pictures = render(frame_drawings(DRAWN, 32), 32)
    n = len(pictures)
    ink = [float(_stroked(pictures, torch.full((n,), width)).sum()) for width in (-1.0, -0.7, 0.7, 1.0)]
    assert ink[0] < ink[1] < float(pictures.sum()) < ink[2] < ink[3]
    assert ink[0] > 0.3 * float(pictures.sum())  # no stroke vanishes
    for width in (-0.3, 0.0, 0.3):
        torch.testing.assert_close(_stroked(pictures, torch.full((n,), width)), pictures)
    for width in (-1.0, 1.0):
        seen = _stroked(pictures, torch.full((n,), width))
        assert seen.min() >= 0
        assert seen.max() <= 1 + 1e-5


def test_paper_far_from_strokes_stays_paper() -> None:
    page = torch.zeros(2, 1, 32, 32)
    page[:, :, 15:17, 4:28] = 1
    seen = _stroked(page, torch.tensor([1.0, -1.0]))
    assert not seen[:, :, :14].any()
    assert seen[0, 0, 14, 10] > 0
    assert torch.equal(seen[1], page[1])  # of full ink nothing is taken: only soft edges go


@settings(max_examples=30)
@given(st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_light_changes_and_stays_between_0_and_1(strength: float, seed: int) -> None:
    pictures = torch.rand(8, 3, 10, 10, generator=seeded(seed))
    lit = _lit(pictures, strength * torch.rand(3, 8, 3, generator=seeded(seed)).mul(2).sub(1))
    assert lit.shape == pictures.shape
    assert lit.min() >= 0
    assert lit.max() <= 1
    # A gain of 1.25 times the strength on what differs from the mean, and an offset of half of it.
    assert float((lit - pictures).abs().max()) <= 1.25 * strength + strength / 2 + 1e-5
    if strength > 0.01:
        assert not torch.equal(lit, pictures)


def test_light_keeps_the_content_of_pictures() -> None:
    pictures = torch.rand(8, 3, 10, 10, generator=seeded()) * 0.4 + 0.3
    lit = _lit(pictures, 0.2 * torch.rand(3, 8, 3, generator=seeded(1)).mul(2).sub(1))
    for before, after in zip(pictures.flatten(0, 1).flatten(1), lit.flatten(0, 1).flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([before, after]))[0, 1]) > 0.99


# --- views ------------------------------------------------------------------------------------------------------------


def test_view_0_is_the_picture_and_other_views_are_fixed_and_similar() -> None:
    framed = frame_drawings(DRAWN, 32)
    plain = render(framed, 32)
    assert torch.equal(render_view(framed, 32, 0), plain)
    apart = float((plain[1:] - plain[:-1]).abs().mean())
    seen = [render_view(framed, 32, number) for number in range(1, 5)]
    for number, one in enumerate(seen, 1):
        assert torch.equal(one, render_view(framed, 32, number))
        assert torch.equal(one[3:5], render_view(framed[slice(3, 5)], 32, number))
        assert 0 < float((one - plain).abs().mean()) < apart
    assert not torch.equal(seen[0], seen[1])
