from __future__ import annotations

import pytest

from finetune.linear.choice import choose, expected_gain, head_unless_training_pays, visible_gain
from finetune.strategies import FEW


def test_more_pictures_per_class_and_pictures_unlike_the_backbones_own_gain_more() -> None:
    gains = [expected_gain(0.2, per_class, different=False) for per_class in (FEW, 50, 200)]
    assert gains[0] == 0
    assert gains == sorted(gains)
    assert expected_gain(0.2, 50, different=True) > gains[1]
    assert expected_gain(0.2, 10**9, different=True) < 0.2


def test_more_pictures_show_smaller_gains() -> None:
    assert visible_gain(0.2, 100) == pytest.approx(2 * visible_gain(0.2, 400))
    assert visible_gain(0.0, 100) == 0


@pytest.mark.parametrize(
    ("per_class", "pictures", "error", "taken"),
    [
        (40, 250, 0.13, "head"),  # 13 % of 250 are too few errors for a gain to be seen
        (250, 1500, 0.09, "full"),
        (850, 2000, 0.01, "head"),  # nothing is left to gain
        (850, 2000, 0.0, "head"),
    ],
)
def test_auto_trains_where_the_gain_can_be_measured(per_class: int, pictures: int, error: float, taken: str) -> None:
    choice = head_unless_training_pays(choose("auto", per_class), error, pictures, per_class)
    assert choice.strategy.name == taken
    assert ("trains in any case" in choice.reason) == (taken == "head")
    assert ("makes no mistake" in choice.reason) == (error == 0)
    assert "by 0.0 points" not in choice.reason
