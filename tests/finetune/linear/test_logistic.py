from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from finetune.linear.logistic import Logistic, principal_axes


def rows(n: int, width: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows along their principal axes, as unlike in length as activations are; labels, every class there."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    x = torch.randn(n, width, generator=random) * torch.logspace(0, -2, width)
    x[:, 0] += labels
    vectors, values = principal_axes((x - x.mean(0)).double())
    return vectors * values.sqrt(), labels


def cost(x: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, strength: float) -> float:
    loss = torch.nn.functional.cross_entropy(x @ weight.double().T + bias.double(), labels, reduction="sum")
    return float(strength * loss + weight.double().square().sum() / 2)


@pytest.mark.slow
@settings(max_examples=20)
@given(st.integers(10, 80), st.integers(2, 60), st.integers(3, 5), st.integers(0, 99))
def test_every_strength_of_a_path_reaches_the_optimum_of_scikit_learn(
    n: int, width: int, classes: int, seed: int
) -> None:
    x, labels = rows(n, width, classes, seed)
    model = Logistic(x, labels, classes)
    for strength in (1.0, 30.0, 1000.0):
        theirs = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(x.numpy(), labels.numpy())
        wanted = cost(x, labels, torch.from_numpy(theirs.coef_), torch.from_numpy(theirs.intercept_), strength)
        assert cost(x, labels, *model.solve(strength), strength) <= wanted * 1.005


def test_a_class_weight_of_two_equals_doubled_rows() -> None:
    x, labels = rows(40, 8, 3, 0)
    twice = torch.cat([x, x[labels == 1]]), torch.cat([labels, labels[labels == 1]])
    weighed = Logistic(x, labels, 3, torch.tensor([1.0, 2.0, 1.0])).solve(10.0)
    repeated = Logistic(*twice, 3).solve(10.0)
    assert cost(*twice, *weighed, 10.0) == pytest.approx(cost(*twice, *repeated, 10.0), rel=1e-3)
    assert cost(*twice, *Logistic(x, labels, 3).solve(10.0), 10.0) > cost(*twice, *repeated, 10.0) * 1.01


def test_soft_labels_are_solved_like_weighted_copies_of_rows() -> None:
    x, labels = rows(40, 8, 3, 0)
    soft = torch.nn.functional.one_hot(labels, 3).double()
    torch.testing.assert_close(
        Logistic(x, soft, 3).solve(10.0), Logistic(x, labels, 3).solve(10.0), atol=1e-3, rtol=1e-2
    )
    soft[:10] = torch.tensor([0.5, 0.25, 0.0])
    copies = [(row, label) for row in range(10) for label in (0, 0, 1)] + [
        (row, int(labels[row])) for row in range(10, 40) for _ in range(4)
    ]
    at, given = torch.tensor(copies).T
    weighted, copied = Logistic(x, soft, 3).solve(10.0), Logistic(x[at], given, 3).solve(2.5)
    torch.testing.assert_close(weighted, copied, atol=1e-3, rtol=1e-2)


def test_two_classes_get_opposite_weights() -> None:
    x, labels = rows(40, 8, 2, 1)
    weight, bias = Logistic(x, labels, 2).solve(10.0)
    torch.testing.assert_close(weight[0], -weight[1], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(bias[0], -bias[1], atol=1e-3, rtol=1e-2)
