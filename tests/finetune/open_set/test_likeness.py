from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune.models.depth_head import unit_depths
from finetune.open_set.evidence import MOST_PICTURES, gather
from finetune.open_set.held_out import held_out_scores
from finetune.open_set.likeness import Likeness, fit_likeness

WIDTHS = (6, 5, 8, 12)
normalize = torch.nn.functional.normalize


def pictures(classes: int, each: int, *, seed: int = 0, apart: float = 3.0) -> tuple[Tensor, Tensor]:
    """Activations (n, sum of widths) around a place for each class, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    places = apart * torch.randn(classes, sum(WIDTHS), generator=generator)
    labels = torch.arange(classes).repeat_interleave(each)
    return places[labels] + torch.randn(len(labels), sum(WIDTHS), generator=generator), labels


def test_pictures_of_the_classes_are_more_like_them_than_others() -> None:
    x, y = pictures(6, 8)
    far = 3 * torch.randn(200, sum(WIDTHS), generator=torch.Generator().manual_seed(9))
    fitted = fit_likeness(x, y, WIDTHS)
    assert fitted.likeness.has_ridge
    assert float(fitted.known.mean()) == pytest.approx(0, abs=1e-4)
    assert float(fitted.likeness(far).max()) < float(fitted.known.min())
    assert bool(fitted.correct.all())


@pytest.mark.parametrize("depths", [1, 2])
def test_a_network_may_have_fewer_depths(depths: int) -> None:
    x, y = pictures(6, 8)
    fitted = fit_likeness(x[:, -sum(WIDTHS[-depths:]) :], y, WIDTHS[-depths:])
    assert fitted.likeness.has_ridge
    assert fitted.likeness.weight.shape == (6, sum(WIDTHS[-depths:]))
    far = 3 * torch.randn(200, sum(WIDTHS), generator=torch.Generator().manual_seed(9))
    assert float(fitted.likeness(far).mean()) < float(fitted.known.min())


def test_a_held_out_picture_is_compared_with_its_class_without_it() -> None:
    x, y = pictures(2, 3)  # too few for the ridge classifier: the score is the cosine
    fitted = fit_likeness(x, y, WIDTHS)
    assert not fitted.likeness.has_ridge
    read = list(WIDTHS[-3:])
    units = normalize(unit_depths(x[:, -sum(read) :], read))
    wanted = []
    for row in range(len(x)):
        others = torch.arange(len(x)) != row
        means = normalize(torch.stack([units[others & (y == label)].mean(0) for label in (0, 1)]))
        wanted.append((means @ units[row]).max())
    assert torch.allclose(fitted.known, torch.stack(wanted), atol=1e-5)


def test_a_held_out_class_is_scored_by_the_others_alone() -> None:
    x, y = pictures(4, 6)
    fitted = fit_likeness(x, y, WIDTHS)
    held_out = held_out_scores(x, y, WIDTHS, None, fitted.likeness)
    assert sorted(held_out.places.tolist()) == list(range(len(x)))
    assert held_out.more_classes == pytest.approx(4 / 3)
    others = y != 2
    alone = fit_likeness(
        x[others], torch.searchsorted(torch.tensor([0, 1, 3]), y[others]), WIDTHS, like=fitted.likeness
    )
    assert torch.allclose(held_out.scores[held_out.of_class == 2], alone.likeness(x[y == 2]), atol=1e-5)


def test_pictures_that_judge_are_not_fitted_on() -> None:
    x, y = pictures(4, 10)
    judging = torch.arange(len(x)) % 2 == 1
    evidence = gather(x, y, WIDTHS, judging)
    assert evidence.known.places.tolist() == judging.nonzero()[:, 0].tolist()
    assert bool(judging[evidence.held_out.places].all())
    other = x.clone()
    other[judging] = 0
    assert torch.equal(fit_likeness(other, y, WIDTHS, judging).likeness.means, evidence.known.likeness.means)


def test_of_many_pictures_some_of_every_class_are_used() -> None:
    x, y = pictures(3, MOST_PICTURES)
    evidence = gather(x, y, WIDTHS)
    assert len(evidence.known.known) <= MOST_PICTURES + 3
    assert torch.bincount(y[evidence.known.places]).min() >= MOST_PICTURES // 3 - 1


@pytest.mark.parametrize(("classes", "each"), [(2, 1), (3, 1), (2, 2), (12, 1), (25, 2)])
def test_few_pictures_give_finite_scores(classes: int, each: int) -> None:
    x, y = pictures(classes, each)
    evidence = gather(x, y, WIDTHS)
    assert len(evidence.known.known) == (0 if each == 1 else len(x))
    assert len(evidence.held_out.scores) == len(x)
    assert bool(evidence.held_out.scores.isfinite().all())


def test_the_score_is_in_float32_under_autocast() -> None:
    x, y = pictures(4, 6)
    likeness: Likeness = fit_likeness(x, y, WIDTHS).likeness
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(likeness(x), likeness(x.float()))
    assert torch.equal(likeness(x), likeness(x[:, -likeness.width :]))
