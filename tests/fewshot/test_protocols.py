from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot.omniglot import Run
from fewshot.protocols import bootstrap_interval, lake, score
from finetune.errors import InputError
from finetune.metrics import wilson_interval


def numbered(runs: int = 4, ways: int = 5) -> list[Run]:
    """Runs whose pictures are one pixel, the number of the character; the answers are shuffled."""
    generator = torch.Generator().manual_seed(0)
    train = torch.arange(ways, dtype=torch.uint8).view(ways, 1, 1)
    found = []
    for number in range(runs):
        answers = torch.randperm(ways, generator=generator)
        found.append(Run(f"run{number + 1:02d}", train, train[answers], answers))
    return found


def apart(test: Tensor, train: Tensor) -> Tensor:
    return (test.flatten().double()[:, None] - train.flatten().double()).abs()


def test_a_perfect_distance_scores_one_and_is_not_certain() -> None:
    result = lake(apart, numbered())
    assert result.accuracy == 1
    assert result.per_run == (1.0,) * 4
    assert result.trials == 20
    assert result.interval == wilson_interval(20, 20)
    assert result.interval[0] < 1


def test_one_distance_for_all_scores_as_chance() -> None:
    for constant in (0.0, math.inf):
        result = lake(lambda test, train, value=constant: torch.full((len(test), len(train)), value), numbered())
        assert result.accuracy == pytest.approx(1 / 5)


def test_ties_are_shared_by_those_that_tie() -> None:
    distances = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [3.0, 2.0, 2.0], [0.0, 1.0, 2.0]])
    assert score(distances, torch.tensor([0, 2, 1, 0])).tolist() == [0.5, 0.0, 0.5, 1.0]


@given(st.permutations(range(5)))
def test_the_order_of_the_training_pictures_does_not_matter(order: list[int]) -> None:
    distances = torch.tensor([[1.0, 2.0, 1.0, 0.5, 0.5], [3.0, 3.0, 3.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
    answers = torch.tensor([3, 1, 0])
    moved = torch.tensor([order.index(int(answer)) for answer in answers])
    assert score(distances[:, order], moved).tolist() == score(distances, answers).tolist()


def test_distances_that_are_not_numbers_are_refused() -> None:
    def broken(test: Tensor, train: Tensor) -> Tensor:
        distances = apart(test, train)
        distances[1, 2] = math.nan
        return distances

    with pytest.raises(InputError, match="run01: 1 of 25 distances are not numbers"):
        lake(broken, numbered())


def test_distances_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"run01: .*\(25,\) for 5 questions"):
        lake(lambda test, train: apart(test, train).flatten(), numbered())
    with pytest.raises(InputError, match="no runs"):
        lake(apart, [])


def test_the_interval_resamples_whole_runs() -> None:
    per_run = (0.0, 1.0) * 10
    low, high = bootstrap_interval(per_run, 400)
    assert bootstrap_interval(per_run, 400) == (low, high)
    # Runs all right or all wrong tell no more than 20 trials would: 0.5 +- 1.96 sqrt(0.25 / 20).
    assert (low, high) == pytest.approx((0.281, 0.719), abs=0.03)


def test_the_interval_holds_the_accuracy() -> None:
    per_run = (0.9,) * 19 + (0.1,)
    low, high = bootstrap_interval(per_run, 400)
    assert low < sum(per_run) / 20 <= high
