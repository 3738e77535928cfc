from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawings import character, drawings
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.embedding.framing import INKED, MARGIN, SMALLEST, FramedPictures, frame_drawings, frame_whole, render

DRAWN = drawings(24)
HALVED, FULL = 32, 105  # sides for which a page of 105 pixels is halved, and kept at full size


def on_page(ink: Tensor, top: int, left: int, height: int = 105, width: int = 105) -> Tensor:
    """A page (height, width) with `ink` at one position."""
    page = torch.zeros(height, width, dtype=torch.uint8)
    page[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return page


def box(drawing: Tensor) -> tuple[int, int, int, int]:
    """Left, right, top and bottom of the ink, the right and the bottom exclusive."""
    rows, columns = (drawing > 0).nonzero(as_tuple=True)
    return int(columns.min()), int(columns.max()) + 1, int(rows.min()), int(rows.max()) + 1


def cut(drawing: Tensor) -> Tensor:
    left, right, top, bottom = box(drawing)
    return drawing[top:bottom, left:right]


def centroid(pictures: Tensor) -> Tensor:
    """(n, 2): the mean place of the ink, x then y, in pixels."""
    light = pictures.sum(1)
    places = torch.arange(light.shape[1]) + 0.5
    total = light.sum((1, 2))
    return torch.stack([(light.sum(1) * places).sum(1) / total, (light.sum(2) * places).sum(1) / total], 1)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([HALVED, FULL]), st.sampled_from([104, 105]))
def test_the_window_surrounds_the_ink_with_its_margin(data: st.DataObject, side: int, page: int) -> None:
    height, width = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 100))
    top, left = data.draw(st.integers(0, page - height)), data.draw(st.integers(0, page - width))
    ink = torch.full((height, width), 255, dtype=torch.uint8)
    framed = frame_drawings(on_page(ink, top, left, page, page)[None], side)
    # A halved picture covers twice its pixels, one more than a page with an odd number.
    stands_for = framed.pictures.shape[-1] * (2 if side == HALVED else 1)
    x, y, half = (float(value) for value in framed.window[0])
    assert (x + 1) / 2 * stands_for == pytest.approx(left + width / 2, abs=1e-3)
    assert (y + 1) / 2 * stands_for == pytest.approx(top + height / 2, abs=1e-3)
    assert half / 2 * stands_for == pytest.approx(max(height, width, SMALLEST) / 2 * (1 + MARGIN), abs=1e-3)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 4), st.integers(0, 4), st.sampled_from([16, HALVED, FULL]))
def test_the_position_of_the_ink_hardly_matters(number: int, down: int, right: int, side: int) -> None:
    ink = cut(torch.from_numpy(character(number)))
    pages = torch.stack([on_page(ink, 0, 0), on_page(ink, down, right)])
    one, other = render(frame_drawings(pages, side), side)
    # Halved pictures of an odd step apart are smoothed over other pixels.
    close = 1e-5 if side == FULL or (down % 2, right % 2) == (0, 0) else 0.06
    assert float((one - other).abs().mean()) < close
    assert float(one.mean()) > 0.02


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([HALVED, FULL]))
def test_the_size_of_a_drawing_hardly_matters(number: int, side: int) -> None:
    ink = cut(torch.from_numpy(character(number, side=50, width=3)))
    assume(max(ink.shape) >= SMALLEST)
    large = ink.repeat_interleave(2, 0).repeat_interleave(2, 1)
    one, other = render(frame_drawings(torch.stack([on_page(ink, 0, 0), on_page(large, 0, 0)]), side), side)
    # Of the smaller one half the pixels are kept where pictures are halved: softer strokes at the same places.
    assert float((one - other).abs().mean()) < (0.03 if side == FULL else 0.1)
    # Nothing moves by more than half a pixel of those that are kept of the smaller one.
    kept = max(ink.shape) * (1 + MARGIN) / (1 if side == FULL else 2)
    assert float((centroid(one[None]) - centroid(other[None])).abs().max()) < 0.5 * side / kept


def test_faint_pixels_do_not_widen_the_window() -> None:
    soft = DRAWN.clone()
    soft[:, 0] = INKED - 1
    assert torch.equal(frame_drawings(soft, FULL).window, frame_drawings(DRAWN, FULL).window)
    soft[:, 0] = INKED
    assert not torch.equal(frame_drawings(soft, FULL).window, frame_drawings(DRAWN, FULL).window)


@pytest.mark.parametrize("side", [HALVED, FULL])
def test_a_blank_page_stays_blank(side: int) -> None:
    framed = frame_drawings(torch.zeros(2, 105, 105, dtype=torch.uint8), side)
    assert framed.window.isfinite().all()
    assert torch.equal(render(framed, side), torch.zeros(2, 1, side, side))


@pytest.mark.parametrize("side", [HALVED, FULL])
def test_a_dot_is_centred_and_not_enlarged(side: int) -> None:
    dots = torch.zeros(3, 105, 105, dtype=torch.uint8)
    dots[0, 2:4, 100:102] = dots[1, 50:52, 50:52] = dots[2, 104, 0] = 255
    seen = render(frame_drawings(dots, side), side)
    assert (seen.amax((1, 2, 3)) > 0.1).all()
    assert (seen.mean((1, 2, 3)) < 0.02).all()
    torch.testing.assert_close(centroid(seen), torch.full((3, 2), side / 2), atol=0.05 * side, rtol=0)


@pytest.mark.parametrize("page", [104, 105])
def test_halved_pictures_show_the_same(page: int) -> None:
    drawn = DRAWN[:, :page, :page]
    halved = frame_drawings(drawn, HALVED)
    assert halved.pictures.shape[-1] == 53 - (page == 104)
    full = frame_drawings(drawn, FULL)
    assert full.pictures.shape[-1] == page
    seen = render(halved, HALVED)
    fine = F.avg_pool2d(render(full, 4 * HALVED), 4)
    assert float((seen - fine).abs().mean()) < 0.025
    torch.testing.assert_close(centroid(seen), centroid(fine), atol=0.25, rtol=0)


@pytest.mark.parametrize("side", [HALVED, FULL])
@pytest.mark.parametrize("lying", [False, True])
def test_a_page_that_is_not_square_loses_no_ink(side: int, lying: bool) -> None:
    """The same drawing on a square page and on one that is cut along its ink."""
    ink = torch.zeros(80, 30, dtype=torch.uint8)
    ink[:, :4] = ink[:, -4:] = 255
    ink = ink.T.contiguous() if lying else ink
    height, width = ink.shape
    narrow = frame_drawings(on_page(ink, 0, 0, height, width)[None], side)
    square = frame_drawings(on_page(ink, 0, 0, 80, 80)[None], side)
    assert float((render(narrow, side) - render(square, side)).abs().mean()) < 0.01


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_whole_picture_at_its_own_size_is_the_picture(channels: int, side: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (3, channels, side, side), dtype=np.uint8)
    pictures = torch.from_numpy(values)
    torch.testing.assert_close(render(frame_whole(pictures), side), pictures.float() / 255, atol=1e-4, rtol=0)


def test_the_window_is_0_beyond_the_page() -> None:
    full = torch.full((2, 1, 20, 20), 255, dtype=torch.uint8)
    away = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 0.0]]).expand(2, 2, 3)
    assert not render(frame_whole(full), 20, away).any()
    wide = render(FramedPictures(full, torch.tensor([[0.0, 0.0, 2.0]]).expand(2, 3)), 40)
    assert not wide[:, :, :9].any()
    assert not wide[:, :, :, -9:].any()
    assert (wide[:, :, 11:29, 11:29] == 1).all()


def test_a_bend_is_measured_in_shares_of_the_window() -> None:
    framed = frame_drawings(DRAWN, FULL)
    bend = torch.zeros(len(DRAWN), FULL, FULL, 2)
    bend[..., 0], bend[..., 1] = 0.2, -0.1
    shift = torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, -0.1]]).expand(len(DRAWN), 2, 3)
    torch.testing.assert_close(render(framed, FULL, bend=bend), render(framed, FULL, shift), atol=1e-3, rtol=0)


def test_rows_keep_their_windows() -> None:
    framed = frame_drawings(DRAWN, HALVED)
    rows = torch.tensor([5, 2, 2])
    assert len(framed) == len(DRAWN)
    assert len(framed[rows]) == 3
    assert torch.equal(render(framed[rows], HALVED), render(framed, HALVED)[rows])
    assert torch.equal(render(framed[slice(4, 6)], HALVED), render(framed, HALVED)[4:6])
