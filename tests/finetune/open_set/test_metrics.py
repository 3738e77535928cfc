from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.errors import InputError
from finetune.open_set.metrics import OpenSet, auroc, fpr_at_tpr, open_set, oscr

LEVELS = st.integers(-4, 4).map(float)
SCORES = st.lists(LEVELS, min_size=1, max_size=15).map(np.array)
ANSWERS = st.lists(st.tuples(LEVELS, st.booleans()), min_size=1, max_size=15).map(
    lambda pairs: (np.array([score for score, _ in pairs]), np.array([right for _, right in pairs]))
)


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_correctly_ordered_pairs(known, unknown) -> None:
    above = (known[:, None] > unknown).mean() + (known[:, None] == unknown).mean() / 2
    assert auroc(known, unknown) == pytest.approx(above)
    assert auroc(unknown, known) == pytest.approx(1 - above)


@given(SCORES, SCORES, st.floats(0.01, 1))
def test_fpr_at_tpr_is_the_least_with_enough_known_accepted(known, unknown, tpr: float) -> None:
    enough = [level for level in known if (known >= level).mean() >= tpr]
    assert fpr_at_tpr(known, unknown, tpr) == min((unknown >= level).mean() for level in enough)


@given(ANSWERS, SCORES)
def test_oscr_is_the_area_under_the_curve_of_its_thresholds(answers, unknown) -> None:
    scores, correct = answers
    thresholds = np.unique(np.concatenate([scores, unknown, [-9.0, 9.0]]))[::-1]
    classified = [(correct & (scores >= threshold)).mean() for threshold in thresholds]
    accepted = [(unknown >= threshold).mean() for threshold in thresholds]
    assert oscr(scores, correct, unknown) == pytest.approx(np.trapezoid(classified, accepted))


@given(ANSWERS, SCORES)
def test_oscr_is_at_most_the_accuracy_and_auroc_where_all_are_right(answers, unknown) -> None:
    scores, correct = answers
    found = open_set(scores, correct, unknown)
    assert found.accuracy == correct.mean()
    assert 0 <= found.oscr <= found.accuracy
    assert found.oscr <= found.auroc + 1e-12
    assert oscr(scores, np.ones_like(correct), unknown) == found.auroc


@given(ANSWERS, SCORES)
def test_metrics_do_not_change_under_increasing_maps(answers, unknown) -> None:
    scores, correct = answers
    assert open_set(np.exp(scores), correct, np.exp(unknown)) == open_set(scores, correct, unknown)


def test_metrics_match_a_calculation_by_hand() -> None:
    known, correct = torch.tensor([0.9, 0.8, 0.7, 0.4]), torch.tensor([True, False, True, True])
    unknown = torch.tensor([0.7, 0.5, 0.3])
    # Of the 12 pairs, the known is above in 3 + 3 + 2.5 + 1; without the second, wrong one: 6.5.
    expected = OpenSet(known=4, unknown=3, accuracy=0.75, auroc=9.5 / 12, fpr95=2 / 3, oscr=6.5 / 12)
    found = open_set(known, correct, unknown)
    assert (found.known, found.unknown) == (4, 3)
    assert (found.accuracy, found.auroc, found.fpr95, found.oscr) == pytest.approx(
        (expected.accuracy, expected.auroc, expected.fpr95, expected.oscr)
    )
    assert fpr_at_tpr(known, unknown, 0.75) == pytest.approx(1 / 3)


def test_the_perfect_and_the_useless_recogniser() -> None:
    high, low, right = np.ones(20), np.zeros(30), np.ones(20, dtype=bool)
    assert open_set(high, right, low) == OpenSet(20, 30, accuracy=1, auroc=1, fpr95=0, oscr=1)
    assert open_set(high, right, low + 1) == OpenSet(20, 30, accuracy=1, auroc=0.5, fpr95=1, oscr=0.5)
    assert open_set(high, ~right, low) == OpenSet(20, 30, accuracy=0, auroc=1, fpr95=0, oscr=0)


def test_at_95_percent_one_known_picture_of_twenty_is_rejected() -> None:
    known = np.concatenate([[0.1], np.full(19, 0.9)])
    assert fpr_at_tpr(known, np.array([0.5])) == 0
    assert fpr_at_tpr(known, np.array([0.5]), tpr=0.96) == 1


def test_invalid_scores_are_refused() -> None:
    one, right = np.array([0.5]), np.array([True])
    with pytest.raises(InputError, match="unknown scores must be numbers"):
        open_set(one, right, np.array([]))
    with pytest.raises(InputError, match="known scores must be numbers"):
        auroc(np.array([[0.5]]), one)
    with pytest.raises(InputError, match="unknown scores: 1 of 1 numbers are not finite"):
        oscr(one, right, np.array([math.nan]))
    with pytest.raises(InputError, match="known_scores and known_correct must have one length, not 2 and 1"):
        open_set(np.array([0.5, 0.6]), right, one)
    with pytest.raises(InputError, match="known_correct must be bool"):
        oscr(one, one, one)
    for share in (0, 1.5, math.nan):
        with pytest.raises(InputError, match="tpr must be above 0"):
            fpr_at_tpr(one, one, share)


def test_the_wrong_scores_are_named() -> None:
    one, wrong, right = np.array([0.5]), np.array([[0.5]]), np.array([True])
    for metric in (auroc, fpr_at_tpr, lambda known, unknown: oscr(known, right, unknown)):
        for known, unknown, name in ((wrong, one, "known scores"), (one, wrong, "unknown scores")):
            with pytest.raises(InputError, match=f"^{name} must be numbers"):
                metric(known, unknown)


def test_all_known_pictures_can_be_accepted() -> None:
    known, unknown = np.array([0.9, 0.2, 0.7]), np.array([0.1, 0.2, 0.3, 0.8])
    assert fpr_at_tpr(known, unknown, 1) == 0.75
