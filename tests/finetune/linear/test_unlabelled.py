from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.linear.head import solve_heads
from finetune.linear.label_next import label_next
from finetune.linear.logistic import folds_of
from finetune.linear.propagation import PictureGraph, propagated
from finetune.linear.unlabelled import refine_heads

WIDTHS = (4, 4, 16)


def activations(n: int, label: int, seed: int) -> Tensor:
    """Activations (n, 24) of one class: pictures differ most in what is no matter of their class."""
    random = torch.Generator().manual_seed(seed + 100 * label)
    found = 0.1 * torch.randn(n, sum(WIDTHS), generator=random)
    found[:, -8] += 3
    found[:, -4:] += 1.5 * torch.randn(n, 4, generator=random)
    found[:, -7] += 1.5 * (2 * label - 1) + 0.4 * torch.randn(n, generator=random)
    return found


def pictures(n: int, seed: int) -> tuple[Tensor, Tensor]:
    return torch.cat([activations(n, 0, seed), activations(n, 1, seed)]), torch.arange(2).repeat_interleave(n)


def accuracy_of(head, asked: tuple[Tensor, Tensor]) -> float:  # type: ignore[no-untyped-def]
    return float((head(asked[0]).argmax(1) == asked[1]).float().mean())


@pytest.mark.slow
def test_unlabelled_pictures_of_the_same_classes_make_the_head_better_on_new_ones() -> None:
    gains = []
    for seed in (4, 9, 12):
        train, val, asked = pictures(3, seed), pictures(1, 50 + seed), pictures(200, 1000 + seed)
        heads = solve_heads(train, val, WIDTHS, learn_from_val=True)
        refined, mixture = refine_heads(heads, train, val, pictures(60, 500 + seed)[0], WIDTHS)
        assert mixture.judged == 8
        gains.append(accuracy_of(refined.kept, asked) - accuracy_of(heads.kept, asked))
        assert refined.val_logits.shape == (2, 2)
    assert sum(gains) / len(gains) > 0.02


@pytest.mark.slow
def test_the_heads_stay_where_unlabelled_pictures_are_like_no_class() -> None:
    train, val = pictures(12, 0), pictures(3, 1)
    heads = solve_heads(train, val, WIDTHS, learn_from_val=True)
    others = torch.randn(60, sum(WIDTHS), generator=torch.Generator().manual_seed(0))
    others[:, -8] = -6
    refined, mixture = refine_heads(heads, train, val, others, WIDTHS)
    assert not mixture.alike
    assert mixture.strength == 0
    assert refined is heads


@pytest.mark.slow
def test_the_mixture_is_judged_by_labelled_pictures_that_it_has_not_learned_from() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    train, val = (
        (torch.randn(10, sum(WIDTHS)), torch.arange(2).repeat(5)),
        (torch.randn(4, 24), torch.arange(2).repeat(2)),
    )
    torch.random.set_rng_state(before)
    heads = solve_heads(train, val, WIDTHS, learn_from_val=True)
    _, mixture = refine_heads(heads, train, val, torch.zeros(9, 24) + torch.eye(9, 24), WIDTHS)
    assert torch.equal(torch.random.get_rng_state(), before), "global random numbers were drawn"
    assert mixture.judged == int((folds_of(torch.cat([train[1], val[1]]), 5) >= 0).sum())
    assert mixture.accuracy is not None
    assert mixture.accuracy < 0.9, "labels that are noise cannot be predicted"


def test_pictures_that_are_like_no_class_count_little() -> None:
    labelled, labels = pictures(5, 0)
    alike, others = pictures(30, 1)[0], 4 + torch.randn(60, 24, generator=torch.Generator().manual_seed(0))
    nodes = torch.nn.functional.normalize(torch.cat([labelled, alike, others]) - labelled.mean(0))
    soft = propagated(PictureGraph.of(nodes), torch.arange(10), labels, 2, torch.full((130, 2), 0.5))
    assert soft.weights[70:].median() < 0.1 * soft.weights[10:70].median()
    right = (soft.probabilities[10:70].argmax(1) == torch.arange(2).repeat_interleave(30)).float().mean()
    assert right > 0.9


def test_pictures_to_label_next_stand_for_doubtful_groups_without_labels() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(6, 24, generator=random)
    unlabelled = centres.repeat_interleave(5, 0) + 0.01 * torch.randn(30, 24, generator=random)
    probabilities = torch.tensor([[0.5, 0.45, 0.05]] * 20 + [[0.98, 0.01, 0.01]] * 10)
    found = label_next(centres[:1], unlabelled, WIDTHS, probabilities, torch.ones(30), 3)
    assert {each.row // 5 for each in found} == {1, 2, 3}, "one of each doubtful group that has no label"
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    assert (found[0].predicted, found[0].second) == (0, 1)
    assert len(label_next(centres[:1], unlabelled, WIDTHS, probabilities, torch.ones(30), 99)) == 30
