from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.metrics import (
    ClassMetrics,
    confusion,
    measure_predictions,
    precision_recall_curve,
    roc_curve,
    roc_thresholds,
    wilson_interval,
)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_share_and_stays_a_share(trial: tuple[int, int]) -> None:
    correct, n = trial
    low, high = wilson_interval(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high


def test_interval_matches_published_example() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_interval_narrows_with_more_trials() -> None:
    narrow, wide = wilson_interval(900, 1000), wilson_interval(90, 100)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_confusion_has_truth_in_rows() -> None:
    assert confusion(torch.tensor([1, 1, 0]), torch.tensor([0, 1, 0]), 2).tolist() == [[1, 1], [0, 1]]


def test_measure_predictions_counts_precision_recall_and_loss() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.6, 0.0], [0.2, 0.8, 0.0], [0.7, 0.3, 0.0]]).clamp_min(1e-12)
    result = measure_predictions(probabilities.log(), torch.tensor([0, 0, 1, 1]), ["a", "b", "never seen"])
    assert result.accuracy == 0.5
    assert result.n == 4
    assert result.per_class["a"] == ClassMetrics(precision=0.5, recall=0.5, f1=0.5, support=2)
    assert result.per_class["never seen"] == ClassMetrics(precision=None, recall=None, f1=None, support=0)
    assert result.balanced_accuracy == 0.5
    assert result.loss == pytest.approx(-sum(map(math.log, (0.9, 0.4, 0.8, 0.3))) / 4)
    assert result.confusion == ((1, 1, 0), (1, 1, 0), (0, 0, 0))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=40))
def test_curves_are_those_of_scikit_learn(rows: list[tuple[bool, int]]) -> None:
    truth = np.array([True, False, *(positive for positive, _ in rows)])
    scores = np.array([0.3, 0.5, *(score / 10 for _, score in rows)])
    false, true, _ = sklearn.metrics.roc_curve(truth, scores)
    for found, wanted in zip(roc_curve(truth, scores), (false, true), strict=True):
        np.testing.assert_array_equal(found, wanted)
    everywhere = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    for found, wanted in zip(roc_thresholds(truth, scores), everywhere, strict=True):
        np.testing.assert_array_equal(found, wanted)
    precision, recall, _ = sklearn.metrics.precision_recall_curve(truth, scores)
    for found, wanted in zip(precision_recall_curve(truth, scores), (recall[::-1], precision[::-1]), strict=True):
        np.testing.assert_array_equal(found, wanted)
