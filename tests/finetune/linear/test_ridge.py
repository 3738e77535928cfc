from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune.linear.ridge import FEATURES, INPUTS, Input, RidgeHead, Rows, fit_ridge_head
from finetune.models.depth_head import unit_depths

WIDTHS = [6, 5, 8]


def rows_of(n: int, seed: int, classes: int = 3, distance: float = 1.0) -> Rows:
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, sum(WIDTHS), generator=torch.Generator().manual_seed(99))
    pooled = distance * centres[labels] + torch.randn(n, sum(WIDTHS), generator=random)
    return Rows.labelled(pooled, labels, classes)


def logits(head: RidgeHead, pooled: torch.Tensor) -> torch.Tensor:
    found = pooled[:, -head.weight.shape[1] :] @ head.weight.T + head.bias
    if head.unit_weight is None:
        return found
    return found + unit_depths(pooled[:, -sum(head.widths) :], head.widths) @ head.unit_weight.T


def without(rows: Rows, row: int) -> Rows:
    left = torch.arange(len(rows.pooled)) != row
    return Rows(rows.pooled[left], rows.targets[left], rows.counts[left], rows.rated[left])


def only(rows: Rows, row: int) -> Rows:
    here = slice(row, row + 1)
    return Rows(rows.pooled[here], rows.targets[here], rows.counts[here], rows.rated[here])


@pytest.mark.parametrize("kind", [FEATURES, Input("two depths", (0.5, 1.0))])
@pytest.mark.parametrize("n", [9, 30])
def test_held_out_scores_are_those_of_a_fit_without_the_picture(
    kind: Input, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the scale of a depth, which a held-out picture moves a little, in a fit without it."""
    monkeypatch.setattr("finetune.linear.ridge.STRENGTHS", (0.3,))
    rows = rows_of(n, 0)
    found = fit_ridge_head(rows, WIDTHS, inputs=(kind,)).held_out
    slow = torch.cat(
        [logits(fit_ridge_head(without(rows, row), WIDTHS, inputs=(kind,)), only(rows, row).pooled) for row in range(n)]
    )
    found, slow = (scores - scores.mean(1, keepdim=True) for scores in (found, slow))
    assert torch.nn.functional.cosine_similarity(found.flatten(), slow.flatten(), dim=0) > 0.99


def test_rows_that_count_twice_are_rows_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the scale of the logits, which comes from evidence: that knows how many different pictures there are."""
    monkeypatch.setattr("finetune.linear.ridge.STRENGTHS", (0.3,))
    rows = rows_of(12, 0)
    twice = [*range(12), 0, 1, 2]
    counts = torch.ones(12, dtype=torch.float64)
    counts[:3] = 2
    weighed = fit_ridge_head(replace(rows, counts=counts), WIDTHS, inputs=(FEATURES,))
    given = fit_ridge_head(
        Rows(rows.pooled[twice], rows.targets[twice], torch.ones(15).double(), rows.rated[twice]),
        WIDTHS,
        inputs=(FEATURES,),
    )
    ratio = weighed.weight / given.weight
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)


def test_the_average_follows_the_evidence() -> None:
    """Inputs that predict held-out pictures better weigh more, the more pictures there are."""
    shares = []
    for n in (9, 60, 600):
        rows = rows_of(n, 1, distance=0.6)
        rows.pooled[:, -8:] = torch.randn(n, 8, generator=torch.Generator().manual_seed(2))  # features of noise
        shares.append(fit_ridge_head(rows, WIDTHS).shares.get("unit features", 0.0))
    assert shares[0] > shares[1] >= shares[2]
    assert shares[2] < 0.01


def test_pictures_that_are_judged_count_as_evidence() -> None:
    rows, judged = rows_of(6, 0), rows_of(300, 5, distance=0.0)
    alone, with_judged = fit_ridge_head(rows, WIDTHS), fit_ridge_head(rows, WIDTHS, judged)
    asked = rows_of(50, 3).pooled
    sizes = [float(logits(head, asked).std()) for head in (alone, with_judged)]
    assert sizes[1] < 0.7 * sizes[0]  # they are told to be nothing like the classes


def test_one_depth_is_enough() -> None:
    rows = rows_of(12, 0)
    found = fit_ridge_head(Rows(rows.pooled[:, -8:], rows.targets, rows.counts, rows.rated), [8])
    assert found.widths == (8,)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert set(found.shares) <= {kind.name for kind in INPUTS[:2]}


def test_soft_targets_are_learned_from() -> None:
    rows = rows_of(30, 0, distance=2.0)
    soft = replace(rows, targets=0.8 * rows.targets + 0.2 / 3)
    torch.testing.assert_close(
        logits(fit_ridge_head(soft, WIDTHS), rows.pooled).argmax(1),
        logits(fit_ridge_head(rows, WIDTHS), rows.pooled).argmax(1),
    )


def test_many_pictures_are_solved_with_the_inputs_that_lead_on_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(900, 1, distance=0.6)
    rows.pooled[:, -8:] = torch.randn(900, 8, generator=torch.Generator().manual_seed(2))  # features of noise
    few = fit_ridge_head(rows, WIDTHS)
    monkeypatch.setattr("finetune.linear.ridge.COMPARED", 1000)
    whole = fit_ridge_head(rows, WIDTHS)
    assert 1 <= len(few.shares) <= 2
    assert max(few.shares, key=few.shares.__getitem__) in whole.shares
    asked = rows_of(500, 7, distance=0.6).pooled
    same = (logits(few, asked).argmax(1) == logits(whole, asked).argmax(1)).float().mean()
    assert same > 0.97


def test_many_scores_and_many_judged_pictures_take_other_ways_to_the_same_head(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, judged = rows_of(40, 0), rows_of(60, 1)  # more judged pictures than any input has columns
    few = replace(judged, **{name: getattr(judged, name)[:5] for name in ("pooled", "targets", "counts", "rated")})
    for asked in (judged, few):
        kept = fit_ridge_head(rows, WIDTHS, asked)
        with monkeypatch.context() as patch:
            patch.setattr("finetune.linear.ridge._MOST_SCORES", 0)
            computed_twice = fit_ridge_head(rows, WIDTHS, asked)
        for name in ("weight", "unit_weight", "bias", "held_out"):
            torch.testing.assert_close(getattr(computed_twice, name), getattr(kept, name), rtol=1e-5, atol=1e-6)
