"""Laws of thresholds for unknown pictures."""

from __future__ import annotations

import numpy as np
import pytest
from damage import FEW
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.open_set.unknown_scores import UnknownScores, estimate

SCORES = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=30).map(np.array)
RATES = st.floats(0.001, 0.999)
NONE = np.empty(0)


def scores_of(held_out: np.ndarray, background: np.ndarray = NONE, known: np.ndarray = NONE) -> UnknownScores:
    found = estimate(held_out, np.arange(len(held_out)) % 4, background, known, 1.25)
    assert found is not None
    return found


@FEW
@given(SCORES, SCORES, RATES, RATES)
def test_a_picture_refused_at_a_rate_is_refused_at_every_smaller_one(held_out, background, rate, other) -> None:
    found = scores_of(held_out, background)
    low, high = sorted((rate, other))
    assert found.threshold(low) >= found.threshold(high)


@FEW
@given(SCORES, SCORES, RATES)
@example(np.zeros(1), np.zeros(2), 0.9)  # scores without any spread
def test_the_threshold_is_the_lowest_that_keeps_to_the_rate(held_out, known, rate) -> None:
    found = scores_of(held_out, known=known)
    threshold = found.threshold(rate)
    assert found.at(np.array(threshold)) <= rate
    assert found.at(np.array(threshold - 1e-3)) >= rate - 1e-9 or threshold <= -63
    low, high = found.interval(threshold)
    assert 0 <= low <= rate <= high + 1e-9 <= 1 + 1e-9


@FEW
@given(SCORES)
def test_a_rate_of_one_refuses_none(held_out) -> None:
    assert scores_of(held_out).threshold(1.0) == -np.inf


def test_many_background_pictures_outweigh_the_held_out_classes() -> None:
    held_out, background = np.linspace(-1, 1, 20), np.linspace(3, 5, 2000)
    assert scores_of(held_out).threshold(0.1) < 3
    assert scores_of(held_out, background).threshold(0.1) == pytest.approx(4.8, abs=0.05)


def test_held_out_scores_rise_with_the_number_of_classes_and_classes_weigh_the_same() -> None:
    held_out, of_class = np.array([0.0] * 90 + [2.0]), np.array([0] * 90 + [1])
    same = estimate(held_out, of_class, NONE, NONE, 1.0)
    more = estimate(held_out, of_class, NONE, NONE, 1.5)
    assert same is not None
    assert more is not None
    assert more.threshold(0.2) > same.threshold(0.2)
    assert same.weights[:90].sum() == pytest.approx(1)
    assert same.weights[90] == pytest.approx(1)
    assert estimate(NONE, np.empty(0, np.int64), NONE, NONE, 1.0) is None
