from __future__ import annotations

import numpy as np
import pytest
from drawings import character
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from fewshot.embedding.encoder import Ink, normalize_strokes, skeleton, stroke_width


def line(width: int) -> Ink:
    page = Image.new("1", (105, 105))
    ImageDraw.Draw(page).line([(20, 52), (85, 52)], fill=1, width=width)
    return np.array(page)


@pytest.mark.parametrize("width", [3, 8, 20])
def test_stroke_width_measures_a_line(width: int) -> None:
    assert stroke_width(line(width)) == pytest.approx(width, rel=0.25)


def test_only_broad_strokes_are_thinned() -> None:
    assert (normalize_strokes(line(3)) == line(3)).all()
    fine = normalize_strokes(line(20))
    assert stroke_width(fine) == pytest.approx(3, abs=0.5)
    rows, columns = fine.nonzero()
    assert abs(rows.mean() - 52) < 1.5
    assert np.ptp(columns) > 45


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(3, 16))
def test_a_skeleton_keeps_connections_and_lies_within_the_ink(number: int, width: int) -> None:
    ink = character(number, width=width) > 0
    lines = skeleton(ink)
    everywhere = np.ones((3, 3))
    assert ndimage.label(lines, everywhere)[1] == ndimage.label(ink, everywhere)[1]
    assert not (lines & ~ink).any()
    assert (skeleton(lines) == lines).all()


def test_a_ring_stays_a_ring_and_a_blank_page_blank() -> None:
    page = Image.new("1", (105, 105))
    ImageDraw.Draw(page).ellipse([20, 20, 85, 85], outline=1, width=15)
    ring = normalize_strokes(np.array(page))
    assert ndimage.label(~ring)[1] == 2
    assert stroke_width(ring) < 5
    blank = np.zeros((105, 105), bool)
    assert not normalize_strokes(blank).any()
    assert stroke_width(blank) == 0
