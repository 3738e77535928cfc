from __future__ import annotations

import math

import torch

from finetune.strategies import FEW
from finetune.training.selection import ModelSelection, Score


def test_a_higher_accuracy_wins_or_a_lower_loss_at_the_same_accuracy() -> None:
    assert Score(0.9, 1.0).beats(Score(0.8, 0.1))
    assert Score(0.9, 0.5).beats(Score(0.9, 0.6))
    assert not Score(0.9, 0.5).beats(Score(0.9, 0.5))
    assert not Score(0.9, math.nan).beats(Score(0.1, 9.0))
    assert not Score(0.9, math.nan).beats(None)
    assert Score(0.1, 9.0).beats(None)


def logits_of(right: int, wrong: int) -> torch.Tensor:
    """Logits of pictures of class 0: the first `right` are classified correctly, the next `wrong` are not."""
    return torch.nn.functional.one_hot(torch.tensor([0] * right + [1] * wrong), 2).float()


def selection(n: int, per_class: float) -> ModelSelection:
    return ModelSelection(torch.zeros(n, dtype=torch.int64), None, per_class)


def test_after_training_on_few_pictures_the_gain_must_be_significant() -> None:
    few, start = selection(20, per_class=FEW - 1), logits_of(14, 6)
    assert not few.keep(start, start)
    assert not few.keep(logits_of(16, 4), start)  # two more are right: may be chance
    assert few.keep(logits_of(17, 3), start)


def test_after_training_on_more_pictures_few_validation_pictures_must_show_no_loss() -> None:
    few, start = selection(20, per_class=FEW), logits_of(14, 6)
    assert few.keep(start, start)
    assert few.keep(logits_of(15, 5), start)
    assert not few.keep(logits_of(13, 7), start)


def test_with_many_validation_pictures_the_better_score_wins() -> None:
    many, start = selection(200, per_class=5), logits_of(194, 6)
    assert many.keep(logits_of(195, 5), start)
    assert not many.keep(start, start)
    assert many.keep(start * 2, start)  # as many correct, with lower loss
    assert not many.keep(start / 2, start)
