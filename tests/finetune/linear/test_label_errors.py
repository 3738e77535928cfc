from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from finetune.linear.label_errors import checkable_rows, contradicted, find_label_errors

DIGITS = load_digits()
FEATURES = torch.tensor(DIGITS.data, dtype=torch.float32)


def flipped(share: float) -> tuple[NDArray[np.int64], set[int]]:
    """The labels of the digits, a share of them another one; which those are."""
    random = np.random.default_rng(0)
    labels = DIGITS.target.astype(np.int64)
    rows = random.choice(len(labels), round(share * len(labels)), replace=False)
    labels[rows] = (labels[rows] + random.integers(1, 10, len(rows))) % 10
    return labels, set(rows.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.1])
def test_labels_that_were_flipped_are_found_and_named_right(share: float) -> None:
    labels, wrong = flipped(share)
    found = find_label_errors(FEATURES, labels, range(len(labels)))
    rows = [suspect.row for suspect in found]
    assert len(wrong.intersection(rows)) >= 0.7 * len(wrong)
    assert len(wrong.intersection(rows)) >= 0.85 * len(rows)
    worst = found[: len(wrong) // 2]
    assert np.mean([DIGITS.target[suspect.row] == suspect.predicted for suspect in worst]) >= 0.95
    assert [suspect.margin for suspect in found] == sorted(suspect.margin for suspect in found)
    assert all(suspect.given == labels[suspect.row] != suspect.predicted for suspect in found)


def test_little_is_disputed_where_labels_are_right() -> None:
    assert len(find_label_errors(FEATURES, DIGITS.target.astype(np.int64), range(len(FEATURES)))) < 0.01 * len(FEATURES)


@pytest.mark.slow
def test_a_copy_with_the_same_wrong_label_does_not_hide_it() -> None:
    labels, wrong = flipped(0.02)
    copies = sorted(wrong)
    features, doubled = torch.cat([FEATURES, FEATURES[copies]]), np.concatenate([labels, labels[copies]])
    together = find_label_errors(features, doubled, [*range(len(labels)), *copies])
    apart = find_label_errors(features, doubled, range(len(doubled)))

    def caught(found: list) -> int:  # type: ignore[type-arg]
        return len(wrong.intersection(suspect.row for suspect in found))

    assert caught(together) > caught(apart)


def test_a_prediction_must_reach_the_usual_probability_of_its_class() -> None:
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.35, 0.65], [0.2, 0.8], [0.1, 0.9], [0.6, 0.4], [0.8, 0.2]])
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    # Usual: 0.65 of the first class, 0.575 of the second. Row 5 is more probably of the first, and not as usual for it.
    assert contradicted(probabilities, labels) == [(6, 0, 0.2, 0.8), (2, 1, 0.35, 0.65)]


def test_classes_of_few_different_pictures_are_left_alone() -> None:
    labels = np.array([0] * 5 + [1] * 6 + [2] * 4)
    alike = [0, 1, 2, 3, 4, 5, 5, 6, 7, 8, 8, 9, 10, 11, 12]
    assert checkable_rows(labels, alike).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="two classes"):
        find_label_errors(torch.rand(15, 3), labels, alike)
