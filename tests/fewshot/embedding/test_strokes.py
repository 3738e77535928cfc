from __future__ import annotations

import numpy as np
import pytest
from drawings import character
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy import ndimage

from fewshot.embedding.encoder import Ink, stroke_width, thinned, usual_width


def line(width: int) -> Ink:
    page = Image.new("1", (105, 105))
    ImageDraw.Draw(page).line([(20, 52), (85, 52)], fill=1, width=width)
    return np.array(page)


@pytest.mark.parametrize("width", [3, 8, 20])
def test_the_width_of_a_line_is_measured(width: int) -> None:
    assert stroke_width(line(width)) == pytest.approx(width, rel=0.25)


def test_fine_strokes_are_left_alone_and_broad_ones_become_as_fine() -> None:
    assert (usual_width(line(3)) == line(3)).all()
    fine = usual_width(line(20))
    assert stroke_width(fine) == pytest.approx(3, abs=0.5)
    rows, columns = fine.nonzero()
    assert abs(rows.mean() - 52) < 1.5
    assert np.ptp(columns) > 45


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 16))
def test_thinning_keeps_what_is_connected_connected_and_stays_within_the_ink(number: int, width: int) -> None:
    ink = character(number, width=width) > 0
    lines = thinned(ink)
    everywhere = np.ones((3, 3))
    assert ndimage.label(lines, everywhere)[1] == ndimage.label(ink, everywhere)[1]
    assert not (lines & ~ink).any()
    assert (thinned(lines) == lines).all()


def test_a_ring_stays_a_ring_and_a_blank_page_blank() -> None:
    page = Image.new("1", (105, 105))
    ImageDraw.Draw(page).ellipse([20, 20, 85, 85], outline=1, width=15)
    ring = usual_width(np.array(page))
    assert ndimage.label(~ring)[1] == 2
    assert stroke_width(ring) < 5
    blank = np.zeros((105, 105), bool)
    assert not usual_width(blank).any()
    assert stroke_width(blank) == 0
