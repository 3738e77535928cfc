"""The head in closed form against the same average computed step by step: one fit for every picture left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from finetune.linear.head import LinearHead, solve_heads
from finetune.linear.ridge import EVIDENCE, FEATURES, INPUTS, LEAST_SHARE, STRENGTHS, Input, Rows, fit_ridge_head

Array = NDArray[np.float64]
WIDTHS = [3, 6, 5, 8]
# Factors from scores of unit root mean square to logits.
FACTORS = np.geomspace(0.2, 30, 24)


def unit_lengths(pooled: Array, widths: Sequence[int]) -> Array:
    parts = np.split(pooled, np.cumsum(widths)[:-1], axis=1)
    return np.hstack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts])


def solved(x: Array, targets: Array, counts: Array, strength: float) -> Callable[[Array], Array]:
    """Weighted ridge regression with a free intercept, by the normal equations."""
    middle, centre = counts @ x / counts.sum(), counts @ targets / counts.sum()
    gram = (x - middle).T @ (counts[:, None] * (x - middle)) + strength * np.eye(x.shape[1])
    weight = np.linalg.solve(gram, (x - middle).T @ (counts[:, None] * (targets - centre)))
    return lambda asked: (asked - middle) @ weight + centre


def loss_and_factor(scores: Array, targets: Array, counts: Array) -> tuple[float, float]:
    if not len(scores):
        return 0.0, 1.5
    smooth = 1 / (len(scores) + 2)
    wanted = (1 - smooth) * targets + smooth / targets.shape[1]
    losses = []
    for factor in FACTORS:
        logits = factor * scores
        logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        losses.append(float(counts @ -(wanted * logs).sum(1) / counts.sum()))
    return min(losses), float(FACTORS[int(np.argmin(losses))])


def by_hand(
    rows: Rows,
    widths: Sequence[int],
    judged: Rows | None,
    inputs: Sequence[Input],
    asked: torch.Tensor,
    stand_for: float = 1.0,
) -> tuple[Array, Array, dict[str, float]]:
    """Logits of `asked`, logits of the rows, each fitted without it, and the share of each input.

    stand_for: How many pictures each row is a sample of.
    """
    targets, counts = rows.targets.numpy(), rows.counts.numpy()
    n, classes = targets.shape
    others = [asked.double().numpy()] if judged is None else [judged.pooled.double().numpy(), asked.double().numpy()]
    number_judged = 0 if judged is None else len(judged.pooled)
    rated = np.concatenate([np.flatnonzero(rows.rated.numpy()), n + np.arange(number_judged)])
    known = targets if judged is None else np.vstack([targets, judged.targets.numpy()])
    known_counts = counts if judged is None else np.concatenate([counts, judged.counts.numpy()])
    evidence = EVIDENCE * len(rated) * stand_for

    def loss_of(scores: Array) -> tuple[float, float]:
        return loss_and_factor(scores[rated], known[rated], known_counts[rated])

    members = []
    for kind in inputs:
        prior = kind.prior
        if not kind.from_one and len(inputs) > 1:
            prior *= 1 - 1 / max(1, counts.sum() / classes)
        depths = min(len(kind.factors), len(widths))
        if prior == 0 or (len(kind.factors) > 1 and depths == 1):
            continue
        read, factors = widths[-depths:], kind.factors[-depths:]
        every = np.vstack([part[:, -sum(read) :] for part in (rows.pooled.double().numpy(), *others)])
        if kind.unit:
            every = unit_lengths(every, read)
        # Each depth is brought to the root mean square length of its factor, and all together to one.
        middle = counts @ every[:n] / counts.sum()
        total = np.linalg.norm(factors)
        for factor, place, width in zip(factors, np.cumsum([0, *read]), read, strict=False):
            part = slice(place, place + width)
            squares = ((every[:n, part] - middle[part]) ** 2).sum(1)
            every[:, part] *= factor / total / np.sqrt(counts @ squares / counts.sum())
        found = []
        for strength in STRENGTHS:
            if not len(rated) and strength < 0.1:
                continue
            scores = solved(every[:n], targets, counts, strength)(every)
            for row in range(n):
                left = np.arange(n) != row
                without = solved(every[:n][left], targets[left], counts[left], strength)
                scores[row] = without(every[row : row + 1])[0]
            measured = scores[: n + number_judged]
            scores = scores / np.sqrt(((measured - measured.mean(1, keepdims=True)) ** 2).mean())
            found.append((loss_of(scores)[0], scores))
        likelihoods = np.array([np.exp(-evidence * loss) for loss, _ in found])
        shares = likelihoods / likelihoods.sum()
        scores = sum(share * scores for share, (_, scores) in zip(shares, found, strict=True))
        members.append((kind.name, prior * likelihoods.mean(), scores))
    shares = np.array([weight for _, weight, _ in members])
    shares = shares / shares.sum()
    shares = np.where(shares < LEAST_SHARE, 0, shares)
    shares = shares / shares.sum()
    scores = sum(share * scores for share, (_, _, scores) in zip(shares, members, strict=True))
    assert isinstance(scores, np.ndarray)
    scores = scores * loss_of(scores)[1]
    named = {name: float(share) for share, (name, _, _) in zip(shares, members, strict=True) if share}
    return scores[n + number_judged :], scores[:n], named


def pictures(labels: Sequence[int], seed: int, weights: torch.Tensor | None = None) -> Rows:
    """Activations of a deep network: later depths are larger and separate classes better."""
    random, labelled = torch.Generator().manual_seed(seed), torch.tensor(labels, dtype=torch.int64)
    centres = torch.randn(3, sum(WIDTHS), generator=torch.Generator().manual_seed(99))
    pooled = centres[labelled] + 1.5 * torch.randn(len(labels), sum(WIDTHS), generator=random) + 0.5
    for number, part in enumerate(pooled.split(WIDTHS, 1)):
        part *= 3.0**number
    return Rows.labelled(pooled, labelled, 3, weights)


@pytest.mark.parametrize("inputs", [INPUTS, (FEATURES,)], ids=["all inputs", "features"])
@pytest.mark.parametrize(
    ("labels", "judged", "weights", "widths"),
    [
        ([0, 1, 2] * 3, None, None, WIDTHS),
        ([0, 1, 2], None, None, WIDTHS),
        ([0, 1, 2], [0, 1, 2, 2], None, WIDTHS),
        ([0, 0, 0, 1, 1, 2], [1, 2], [0.5, 1.0, 3.0], WIDTHS),
        ([0, 1] * 10 + [2] * 4, None, [1.0, 1.0, 2.5], WIDTHS),
        ([0, 1, 2] * 3, None, None, WIDTHS[-2:]),
        ([0, 1, 2] * 3, [0, 1], None, WIDTHS[-1:]),
    ],
    ids=["three a class", "one a class", "one and judged", "weighted", "more rows than columns", "two", "one depth"],
)
def test_the_head_is_the_average_that_its_definition_gives(
    labels: list[int], judged: list[int] | None, weights: list[float] | None, widths: list[int], inputs: Sequence[Input]
) -> None:
    of_class = None if weights is None else torch.tensor(weights)
    rows, asked = pictures(labels, 0, of_class), pictures([0, 1, 2] * 4, 2).pooled[:, -sum(widths) :]
    others = None if judged is None else pictures(judged, 1, of_class)
    found = fit_ridge_head(rows, widths, others, inputs)
    logits, held_out, shares = by_hand(rows, widths, others, inputs, asked)
    assert found.shares == pytest.approx(shares, rel=1e-4)
    torch.testing.assert_close(found.held_out.double().numpy(), held_out, rtol=1e-4, atol=1e-4)
    head = LinearHead.of(found)
    torch.testing.assert_close(head(asked).double().numpy(), logits, rtol=1e-4, atol=1e-3)
    assert (head.unit_weight is None) == (set(shares) == {"features"})
    torch.testing.assert_close(head.as_layer()(asked[:, -head.width :]), head(asked))


def test_many_pictures_are_solved_with_the_two_inputs_that_lead_on_some_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("finetune.linear.ridge.COMPARED", 10)  # fewer than five of each class
    rows, asked = pictures([0, 1, 2] * 8, 0), pictures([0, 1, 2] * 4, 2).pooled
    others = pictures([0, 1, 2, 2], 1)
    some = rows.at(torch.linspace(0, 23, 15).round().long())
    _, _, shares = by_hand(some, WIDTHS, others, INPUTS, asked, stand_for=24 / 15)
    leading = sorted(shares, key=lambda name: -shares[name])[:2]
    inputs = [kind for kind in INPUTS if kind.name in leading and shares[kind.name] >= 0.1]
    logits, held_out, expected = by_hand(rows, WIDTHS, others, inputs, asked)
    found = fit_ridge_head(rows, WIDTHS, others)
    assert found.shares == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(found.held_out.double().numpy(), held_out, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(LinearHead.of(found)(asked).double().numpy(), logits, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 3.0])], ids=["even", "weighted"])
def test_the_error_of_heads_is_that_of_pictures_that_were_left_out(weights: torch.Tensor | None) -> None:
    train, val = pictures([0, 0, 0, 1, 1, 2], 0, weights), pictures([0, 1, 2, 1, 0] * 4, 1, weights)
    labels, val_labels = (part.targets.argmax(1) for part in (train, val))
    given = (train.pooled, labels), (val.pooled, val_labels), WIDTHS, weights
    alone = solve_heads(*given)
    expected = fit_ridge_head(train, WIDTHS, val)
    answers = torch.cat([expected.held_out[:5], LinearHead.of(expected)(val.pooled)])  # without the only one of class 2
    right = answers.argmax(1) == torch.cat([labels[:5], val_labels])
    assert alone.error == pytest.approx(1 - float(right.float().mean()))
    assert 0 < alone.error < 1
    assert (alone.shares, alone.learned_from_val) == (expected.shares, False)
    torch.testing.assert_close(alone.val_logits, answers[5:])
    features = LinearHead.of(fit_ridge_head(train, WIDTHS, val, (FEATURES,)))
    torch.testing.assert_close(alone.features(val.pooled), features(val.pooled))

    both = Rows.labelled(torch.cat([train.pooled, val.pooled]), torch.cat([labels, val_labels]), 3, weights)
    expected, deployed = fit_ridge_head(both, WIDTHS), solve_heads(*given, learn_from_val=True)
    right = expected.held_out.argmax(1) == torch.cat([labels, val_labels])
    assert deployed.error == pytest.approx(1 - float(right.float().mean()))
    assert (deployed.shares, deployed.learned_from_val) == (expected.shares, True)
    torch.testing.assert_close(deployed.val_logits, expected.held_out[6:])
    torch.testing.assert_close(deployed.kept(val.pooled), LinearHead.of(expected)(val.pooled))
    torch.testing.assert_close(deployed.features(val.pooled), features(val.pooled))

    none = pictures([], 1).pooled, torch.tensor([], dtype=torch.int64)
    assert math.isnan(solve_heads((train.pooled[[0, 3, 5]], torch.arange(3)), none, WIDTHS, weights).error)
    lone = solve_heads((train.pooled[[0, 1, 3, 5]], torch.tensor([0, 0, 1, 2])), none, WIDTHS, learn_from_val=True)
    assert lone.error in (0.0, 0.5, 1.0), "of the two pictures of the first class alone"


def test_pictures_count_by_the_weights_of_their_classes() -> None:
    pooled, labels = torch.randn(4, 5), torch.tensor([0, 0, 1, 2])
    rows = Rows.labelled(pooled, labels, 4, torch.tensor([2.0, 4.0, 8.0, 100.0]))
    assert rows.counts.tolist() == [0.5, 0.5, 1.0, 2.0]
    assert rows.rated.tolist() == [True, True, False, False]
    assert rows.targets.tolist() == torch.eye(4)[labels].tolist()
    assert Rows.labelled(pooled, labels, 3).counts.tolist() == [1.0] * 4
