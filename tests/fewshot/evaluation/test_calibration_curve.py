"""The curve of a calibration: its laws, its points and their precision."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from fewshot.evaluation import threshold
from fewshot.evaluation.threshold import POINTS, Calibration, calibrate
from finetune.errors import InputError


def normal(same: int = 3000, different: int = 6000) -> tuple[np.ndarray, np.ndarray]:
    """Scores of two normal distributions, two deviations apart."""
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(2, 1, same), random.normal(0, 1, different)])
    return scores, np.arange(same + different) < same


@pytest.mark.parametrize(
    ("damage", "law"),
    [
        ({"auc": -0.1}, "auc and eer are between 0 and 1"),
        ({"eer": -0.1}, "auc and eer are between 0 and 1"),
        ({"eer": 1.1}, "auc and eer are between 0 and 1"),
        ({"thresholds": [0.0], "false_accept": [1.0], "false_reject": [0.0]}, "the lists of the curve have one length"),
        ({"false_accept": [1.0, 0.5]}, "the lists of the curve have one length"),
        ({"false_reject": [0.0, 0.5]}, "the lists of the curve have one length"),
        ({"thresholds": [0.0, 0.5, 0.5]}, "thresholds are finite and rise"),
        ({"thresholds": [0.0, 0.5, math.inf]}, "thresholds are finite and rise"),
        ({"false_accept": [0.9, 0.5, 0.0]}, "false accepts fall from 1 to 0"),
        ({"false_accept": [1.0, 0.5, 0.1]}, "false accepts fall from 1 to 0"),
        ({"false_accept": [1.0, 1.1, 0.0]}, "false accepts fall from 1 to 0"),
        ({"false_reject": [0.1, 0.5, 1.0]}, "false rejects rise from 0 to 1"),
        ({"false_reject": [0.0, 0.5, 0.9]}, "false rejects rise from 0 to 1"),
        ({"false_reject": [0.0, -0.1, 1.0]}, "false rejects rise from 0 to 1"),
        ({"eer_threshold": 0.25}, "eer_threshold is one of the thresholds"),
    ],
)
def test_the_laws_of_a_calibration_are_checked_one_by_one(damage: dict[str, object], law: str) -> None:
    three: dict[str, Any] = {
        "threshold": 1.0, "asked": 0.1, "false_accept_rate": 0.0, "false_reject_rate": 1.0, "auc": 1.0, "eer": 0.0,
        "eer_threshold": 0.5, "same_pairs": 1, "different_pairs": 1, "thresholds": [0.0, 0.5, 1.0],
        "false_accept": [1.0, 1.0, 0.0], "false_reject": [0.0, 0.0, 1.0],
    }  # fmt: skip
    edges: tuple[dict[str, float], ...] = ({}, {"auc": 0.0}, {"eer": 1.0})
    for edge in edges:  # shares of 0 and 1 and equal neighbours are allowed
        assert Calibration.from_dict(three | edge).to_dict() == three | edge
    two = {"thresholds": [0.0, 1.0], "false_accept": [1.0, 0.0], "false_reject": [0.0, 1.0], "eer_threshold": 0.0}
    assert Calibration.from_dict(three | two).thresholds == (0.0, 1.0)
    with pytest.raises(InputError, match=f"the calibration breaks the rule that {law}"):
        Calibration.from_dict(three | damage)


def test_the_point_of_a_calibration_matches_its_curve_in_every_part() -> None:
    values = calibrate(*normal(10, 10)).to_dict()
    for name in ("threshold", "false_accept_rate", "false_reject_rate"):
        with pytest.raises(InputError, match="the threshold of the calibration does not match its curve"):
            Calibration.from_dict(values | {name: values[name] + 0.01})


def test_thinned_points_are_evenly_spaced_in_normal_deviates(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, same = normal()
    thinned = calibrate(scores, same)
    monkeypatch.setattr(threshold, "POINTS", 2 * len(scores))
    whole = calibrate(scores, same)
    assert len(whole.thresholds) > 5000
    steps = [sum(np.abs(np.diff(side)) for side in found.det()) for found in (whole, thinned)]
    assert steps[1].sum() == pytest.approx(steps[0].sum())
    # A point lies at most one original step after its even place.
    assert steps[1].max() <= steps[0].sum() / (POINTS - 1) + steps[0].max()
    assert set(thinned.thresholds) <= set(whole.thresholds)
    assert thinned.eer_threshold in thinned.thresholds
    assert thinned.threshold in thinned.thresholds


def test_as_many_points_as_are_kept_are_not_thinned() -> None:
    number = np.arange(POINTS - 1)
    assert len(calibrate(number.astype(float), number % 2 == 1).thresholds) == POINTS


def test_shares_of_0_and_1_are_moved_in_by_half_a_pair() -> None:
    found = calibrate(np.array([0.9, 0.6, 0.4, 0.3, 0.1]), np.array([True, True, True, False, False]))
    accepts, rejects = found.det()
    deviate = NormalDist().inv_cdf
    assert (accepts[0], accepts[-1]) == pytest.approx((deviate(0.75), deviate(0.25)))
    assert (rejects[0], rejects[-1]) == pytest.approx((deviate(1 / 6), deviate(5 / 6)))


def test_the_largest_scores_have_thresholds_between_and_above_them() -> None:
    most = np.finfo(np.float64).max  # the sum of two such scores is infinite
    found = calibrate(most * np.array([0.9, 0.7, 0.6]), np.array([True, False, False]))
    assert found.thresholds[:3] == pytest.approx((most * 0.6, most * 0.65, most * 0.8))
    above = calibrate(np.array([0.5, 1.0]), np.array([True, False])).thresholds
    assert above == (0.5, 0.75, math.nextafter(1.0, 2))


def test_numbers_of_any_kind_are_scores_and_others_are_not() -> None:
    same = np.array([True, False, False])
    assert calibrate(np.array([3, 2, 1]), same).asked == 0.01
    for kind in (np.int8, np.uint8, np.float16, np.float32):
        assert calibrate(np.array([3, 2, 1], kind), same) == calibrate(np.array([3.0, 2.0, 1.0]), same)
    for wrong in (np.array([True, False, False]), np.array([1j, 2, 3])):
        with pytest.raises(InputError, match=r"^scores must be numbers"):
            calibrate(wrong, same)
    with pytest.raises(InputError, match=r"^same must be bool of shape \(n,\), not bool of shape \(1, 3\)"):
        calibrate(np.array([3, 2, 1]), same[None])
