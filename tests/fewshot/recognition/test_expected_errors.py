"""The distribution of own similarities, the choice of a threshold, its expected errors: against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from made_gallery import pair_calibration

from fewshot.evaluation.threshold import Calibration
from fewshot.recognition.operating_point import MOST_FALSE_ACCEPTS, KnownScores, choose, expected, known_scores
from fewshot.recognition.unknowns import (
    CARRIED_PICTURES,
    PRIOR_PICTURES,
    Samples,
    UnknownScores,
    estimate,
    fitted_tail,
)
from finetune.open_set.shares import SkewedTail, share_interval

CARRIED = pair_calibration(0.5)
SIMILARITY = np.array([0.9, 0.5, 0.7, 0.7, 0.8, 0.95])
SAMPLES = Samples(SIMILARITY, np.array([0, 0, 0, 1, 1, 2]), 3)  # three classes, of 3, 2 and 1 pictures


def unknown(mean: float, pictures: int = 40) -> UnknownScores:
    found = estimate(None, 1, None, np.random.default_rng(0).normal(mean, 0.05, pictures))
    assert found is not None
    return found


def test_nothing_known_gives_nothing() -> None:
    assert known_scores(None, None) is None
    assert choose(None, known_scores(CARRIED, SAMPLES), 0.1) is None


def test_a_calibration_alone_is_the_whole_distribution() -> None:
    known = known_scores(CARRIED, None)
    assert known is not None
    assert known.independent == CARRIED_PICTURES
    thresholds = np.array(CARRIED.thresholds)
    np.testing.assert_allclose(known.below(thresholds), CARRIED.false_reject)
    np.testing.assert_allclose(known.below(np.array([[-2.0, 2.0]])), [[0, 1]])


@pytest.mark.parametrize("calibration", [None, CARRIED])
def test_classes_weigh_the_same_and_count_as_independent_pictures(calibration: Calibration | None) -> None:
    known = known_scores(calibration, SAMPLES)
    assert known is not None
    carried = 0 if calibration is None else CARRIED_PICTURES
    assert known.independent == pytest.approx(carried + SAMPLES.independent)
    assert known.samples.tolist() == sorted(SIMILARITY)
    # Weights go with their samples: 0.95 is the one picture of a class, 0.5 one of three.
    scale = SAMPLES.independent / 3
    assert known.weights[-1] == pytest.approx(scale)
    assert known.weights[0] == pytest.approx(scale / 3)
    assert isinstance(known.tail, SkewedTail) == (calibration is None)
    if calibration is None:
        assert known.tail == fitted_tail(known.samples, known.weights, SAMPLES.independent, skewness=0.0)


@pytest.mark.parametrize("calibration", [None, CARRIED])
def test_the_share_below_is_that_of_pictures_and_prior_by_weight(calibration: Calibration | None) -> None:
    known = known_scores(calibration, SAMPLES)
    assert known is not None
    prior = PRIOR_PICTURES if calibration is None else CARRIED_PICTURES
    total = prior + known.weights.sum()
    for at in (0.3, 0.5, 0.6, 0.7, 0.75, 0.95, 0.96):
        if calibration is None:
            assert isinstance(known.tail, SkewedTail)
            rejected = 1 - float(known.tail.at(np.array(at)))
        else:
            rejected = float(np.interp(at, calibration.thresholds, calibration.false_reject))
        below = sum(weight for sample, weight in zip(known.samples, known.weights, strict=True) if sample < at)
        assert float(known.below(np.array(at))) == pytest.approx((prior * rejected + below) / total)


def test_a_rate_gives_its_threshold() -> None:
    scores, known = unknown(0.4), known_scores(None, SAMPLES)
    for rate in (0.01, 0.1, 0.5):
        found = choose(scores, known, rate)
        assert found == expected(scores.threshold(rate), "rate", scores, known)
        assert found is not None
        assert found.false_accepts is not None
        assert found.false_accepts.value == pytest.approx(rate, abs=0.03)


def test_equal_errors_are_equal_unless_too_many_are_accepted() -> None:
    known = known_scores(None, SAMPLES)
    assert known is not None
    apart, close = unknown(0.4), unknown(0.9)
    found = choose(apart, known, None)
    assert found is not None
    assert found.chosen_by == "equal error"
    assert found.false_accepts is not None
    assert found.refusals is not None
    # Both shares have steps: the first similarity at which no more are accepted than refused.
    below = expected(found.value - 1e-9, "similarity", apart, known)
    assert below.false_accepts is not None
    assert below.refusals is not None
    assert found.false_accepts.value <= found.refusals.value
    assert below.false_accepts.value > below.refusals.value
    assert found.false_accepts.value < MOST_FALSE_ACCEPTS
    limited = choose(close, known, None)
    assert limited is not None
    assert limited.chosen_by == "equal error"
    assert limited.value == close.threshold(MOST_FALSE_ACCEPTS)
    # Without pictures of enrolled classes there are no equal errors.
    alone = choose(close, None, None)
    assert alone == expected(close.threshold(MOST_FALSE_ACCEPTS), "rate", close, None)


def test_expected_errors_are_shares_with_their_intervals() -> None:
    scores, known = unknown(0.6), known_scores(None, SAMPLES)
    assert known is not None
    both = expected(0.7, "similarity", scores, known)
    assert (both.value, both.chosen_by, both.refusals_measured) == (0.7, "similarity", True)
    accepted, refused = float(scores.at(np.array(0.7))), float(known.below(np.array(0.7)))
    assert both.false_accepts == (accepted, *share_interval(accepted, scores.independent))
    assert both.refusals == (refused, *share_interval(refused, known.independent))
    carried = known_scores(CARRIED, None)
    assert isinstance(carried, KnownScores)
    only = expected(0.7, "similarity", None, carried)
    assert only.false_accepts is None
    assert only.refusals is not None
    assert not only.refusals_measured
    neither = expected(0.7, "similarity", None, None)
    assert (neither.false_accepts, neither.refusals, neither.refusals_measured) == (None, None, False)
