from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.evaluation.models import reranked
from finetune.errors import InputError


def first(test: Tensor, train: Tensor) -> Tensor:
    return (test[:, 0, 0, None] - train[:, 0, 0]).abs().double()


def second(test: Tensor, train: Tensor) -> Tensor:
    return (test[:, 0, 1] - train[:, 0, 1]).abs().double()


def test_the_slow_distance_reorders_the_nearest_alone() -> None:
    test = torch.tensor([[[0.0, 0.0]]])
    # The third is nearest by the slow distance, but third by the fast one.
    train = torch.tensor([[[0.1, 5.0]], [[0.2, 1.0]], [[0.3, 0.0]]])
    assert reranked(first, second, nearest=2, weight=1)(test, train).argmin() == 1
    assert reranked(first, second, nearest=3, weight=1)(test, train).argmin() == 2
    assert reranked(first, second, nearest=1, weight=1)(test, train).argmin() == 0
    assert reranked(first, second, nearest=2, weight=0)(test, train).argmin() == 0


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 10), st.integers(0, 2**32))
def test_the_nearest_stay_first_and_the_others_keep_their_order(n: int, nearest: int, weight: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    test, train = torch.rand(3, 1, 2, generator=generator), torch.rand(n, 1, 2, generator=generator)
    before, after = first(test, train), reranked(first, second, nearest=nearest, weight=weight)(test, train)
    for row in range(3):
        order, now = before[row].argsort().tolist(), after[row].argsort().tolist()
        assert set(now[:nearest]) == set(order[:nearest])
        assert now[nearest:] == order[nearest:]


def test_reranking_no_neighbours_is_refused() -> None:
    with pytest.raises(InputError, match="nearest must be >= 1, not 0"):
        reranked(first, second, nearest=0)
