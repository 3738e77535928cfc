"""How well pictures of none of the classes are told from others: the figures that metrics.json has of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.data.splits import Unreadable
from finetune.metrics import Count, Finite, Share
from finetune.open_set.evidence import Evidence, gather
from finetune.open_set.metrics import auroc, open_set
from finetune.open_set.score_values import Floats
from finetune.open_set.unknown_model import UnknownModel

# Rates of false accepts that a run lists, and the one at which it shows pictures.
RATES = (0.01, 0.02, 0.05, 0.1, 0.2)
SHOWN_AT = 0.05
# Share of the pictures of the classes beyond which refusing them is called much.
MOST_REFUSED = 0.2
# Pictures that are shown of each kind, and points of the curve; files that a sentence names.
SHOWN, POINTS, _NAMED = 8, 60, 3


@dataclass(frozen=True, kw_only=True)
class RefusedAt:
    """What a rate of false accepts leads to: the expected share of unknown pictures that are accepted with its 95 %
    interval, the share of held-out pictures of the classes that are refused, and the expected share of pictures of
    other classes that are accepted; None where none could be held out."""

    rate: Share
    accepted: tuple[Share, Share, Share]
    refused: Share | None = None
    of_other_classes: Share | None = None


@dataclass(frozen=True, kw_only=True)
class ScoredPicture:
    """A picture, its class, and its likeness to the classes, for which it was held out."""

    path: str
    label: str
    likeness: Finite


class BackgroundPictures(NamedTuple):
    """Pictures of none of the classes: pooled activations (m, ...), their paths, and those that are left out."""

    pooled: Tensor
    paths: Sequence[str]
    left_out: Sequence[Unreadable] = ()


@dataclass(frozen=True, kw_only=True)
class BackgroundMetrics:
    """Pictures of none of the classes, from which the threshold was learned too.

    pictures: how many. left_out: those that show pictures of the run. auroc: of the held-out pictures of the classes
    against them; None without any. like_known: how many of them have more likeness than half of the pictures of the
    classes. most_alike: those with most likeness, with the class that they are most like.
    """

    pictures: Count
    left_out: tuple[Unreadable, ...] = ()
    auroc: Share | None = None
    like_known: Count = 0
    most_alike: tuple[ScoredPicture, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UnknownMetrics:
    """How well pictures of none of the classes are told from others, on training pictures that were held out.

    known: pictures of the classes, each held out itself. unknown: pictures whose class was held out. auroc, fpr95,
    oscr, accuracy: as in `finetune.open_set.metrics`; None without known pictures. curve: points of the OSCR curve,
    share of unknown pictures accepted and share of known ones accepted and named right. rates: what thresholds lead to.
    nearly_refused: pictures of the classes with least likeness among those that a threshold for the rate `shown_at`
    accepts. nearly_accepted: pictures of held-out classes with most likeness among those that it refuses. trained:
    whether the backbone has learned from the classes that were held out, so that other unknown pictures may be
    accepted more often. bearable: the smallest rate at which at most a share MOST_REFUSED of the pictures of the
    classes is refused. background: None without pictures of none of the classes.
    """

    known: Count
    unknown: Count
    accuracy: Share | None = None
    auroc: Share | None = None
    fpr95: Share | None = None
    oscr: Share | None = None
    curve: tuple[tuple[Share, Share], ...] = ()
    rates: tuple[RefusedAt, ...] = ()
    shown_at: Share
    nearly_refused: tuple[ScoredPicture, ...] = ()
    nearly_accepted: tuple[ScoredPicture, ...] = ()
    trained: bool = False
    bearable: Share | None = None
    background: BackgroundMetrics | None = None


def learn_unknown(
    pooled: Tensor,
    labels: Tensor,
    widths: Sequence[int],
    *,
    paths: Sequence[str],
    classes: Sequence[str],
    judging: Tensor | None = None,
    trained: bool = False,
    background: BackgroundPictures | None = None,
) -> tuple[UnknownModel, UnknownMetrics]:
    """Learn to tell pictures of the classes from others, and measure it on held-out pictures.

    Args:
        pooled: Pooled activations (n, sum of widths) of pictures of the classes, the features last.
        labels: Their classes (n,) int64, every one present.
        widths: Number of activations of each depth.
        paths: Of the pictures.
        classes: Names of the classes.
        judging: Shape (n,), bool: pictures that a trained backbone has not learned from. None where the backbone has
            learned from no picture, or from all.
        trained: Whether the backbone has learned from pictures of the classes.
        background: Pictures of none of the classes.
    """
    evidence = gather(pooled, labels, widths, judging)
    model = UnknownModel.of(evidence)
    found = None
    if background is not None:
        scores = model.likeness(background.pooled).double().numpy()
        model = model.with_background(scores)
        found = _of_background(model, background, scores, classes)
    metrics = _measured(evidence, model, labels, paths, classes, trained=trained)
    return model, replace(metrics, background=found, bearable=model.rate_that_refuses(MOST_REFUSED))


def doubtful(found: UnknownMetrics) -> str | None:
    """A sentence on background pictures that may show one of the classes; None where none does."""
    background = found.background
    if background is None or not background.like_known:
        return None
    named = ", ".join(
        f"{each.path} ({each.label})" for each in background.most_alike[: min(_NAMED, background.like_known)]
    )
    what = "looks" if background.like_known == 1 else "look"
    return (
        f"{background.like_known} of the background pictures {what} as much like a class as its own pictures do: "
        f"{named}. A background picture that shows a class raises the threshold for all; take it out with "
        "finetune forget RUN --pictures."
    )


def _of_background(
    model: UnknownModel, given: BackgroundPictures, scores: Floats, classes: Sequence[str]
) -> BackgroundMetrics:
    falling = np.argsort(-scores, kind="stable")[:SHOWN].tolist()
    labels = model.likeness.nearest(given.pooled).tolist()
    known = len(model.known) > 0
    return BackgroundMetrics(
        pictures=len(scores),
        left_out=tuple(given.left_out),
        auroc=auroc(model.known, scores) if known and len(scores) else None,
        like_known=int((scores > np.median(model.known)).sum()) if known else 0,
        most_alike=tuple(
            ScoredPicture(path=given.paths[row], label=classes[labels[row]], likeness=float(scores[row]))
            for row in falling
        ),
    )


def _measured(
    evidence: Evidence,
    model: UnknownModel,
    labels: Tensor,
    paths: Sequence[str],
    classes: Sequence[str],
    *,
    trained: bool,
) -> UnknownMetrics:
    known, unknown = model.known, model.held_out
    correct = evidence.known.correct.numpy()
    found = open_set(known, correct, unknown) if len(known) else None
    threshold = model.threshold(SHOWN_AT)

    def shown(scores: Floats, places: Tensor, order: NDArray[np.int64]) -> tuple[ScoredPicture, ...]:
        at = [int(places[number]) for number in order[:SHOWN]]
        return tuple(
            ScoredPicture(path=paths[place], label=classes[int(labels[place])], likeness=float(scores[number]))
            for place, number in zip(at, order, strict=False)
        )

    rising, falling = np.argsort(known, kind="stable"), np.argsort(-unknown, kind="stable")
    return UnknownMetrics(
        known=len(known),
        unknown=len(unknown),
        accuracy=None if found is None else found.accuracy,
        auroc=None if found is None else found.auroc,
        fpr95=None if found is None else found.fpr95,
        oscr=None if found is None else found.oscr,
        curve=() if found is None else _curve(known, correct, unknown),
        rates=tuple(_at(model, rate) for rate in RATES),
        shown_at=SHOWN_AT,
        nearly_refused=shown(known, evidence.known.places, rising[known[rising] >= threshold]),
        nearly_accepted=shown(unknown, evidence.held_out.places, falling[unknown[falling] < threshold]),
        trained=trained,
    )


def _at(model: UnknownModel, rate: float) -> RefusedAt:
    found = model.expected(rate)
    return RefusedAt(rate=rate, accepted=found.accepted, refused=found.refused, of_other_classes=found.of_other_classes)


def _curve(known: Floats, correct: NDArray[np.bool_], unknown: Floats) -> tuple[tuple[float, float], ...]:
    """Points of the OSCR curve, from nothing accepted to all."""
    every = np.unique(np.concatenate([known, unknown]))[::-1]
    some = every[np.linspace(0, len(every) - 1, min(POINTS, len(every))).round().astype(int)]
    points = [(float((unknown >= at).mean()), float((correct & (known >= at)).mean())) for at in some]
    return ((0.0, 0.0), *points)
