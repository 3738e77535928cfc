"""Ridge classifiers of several inputs, averaged by their leave-one-out likelihood, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.linear.logistic import principal_axes
from finetune.linear.ridge_path import RidgePath
from finetune.models.depth_head import unit_depths


@dataclass(frozen=True)
class Input:
    """What a ridge classifier reads: the last depths, as many as there are factors.

    Attributes:
        name: Words for messages.
        factors: Root mean square length of each depth, the features last.
        unit: Whether the activations of each depth are divided by their length first.
        prior: Weight in the average before any evidence.
        from_one: Whether it counts where every class has one picture. Otherwise its prior grows with the number of
            pictures per class k, as 1 - 1/k: one picture does not show how lengths and lower depths vary in a class.
    """

    name: str
    factors: tuple[float, ...]
    unit: bool = True
    prior: float = 1.0
    from_one: bool = True


# Factors of the last depths side by side: earlier depths count less.
FALLING = (0.25, 0.5, 1.0)

FEATURES = Input("features", (1.0,), unit=False, prior=2.0, from_one=False)
# Inputs and priors were chosen on training pictures of seven sets and subsets of their classes, with two backbones, for
# the least loss against the best simple classifier on any of them. Even priors are slightly better on average, and lose
# more where the classes are those of ImageNet.
INPUTS = (
    FEATURES,
    Input("unit features", (1.0,)),
    Input("last 3 depths (falling)", FALLING),
    Input("last 3 depths", (1.0, 1.0, 1.0), prior=0.5),
    Input("last 5 depths", (1.0, 1.0, 1.0, 1.0, 1.0), prior=0.25, from_one=False),
)

# Ridge strengths, for rows of unit mean square length. The weak ones are left out where every class has one picture, so
# that nothing chooses between them.
STRENGTHS = tuple(float(value) for value in np.geomspace(0.01, 10, 7))
WEAKEST_FROM_ONE = 0.1

# Exponent of the leave-one-out likelihood in the weight of a classifier. Held-out predictions of similar classifiers
# are right and wrong together, so a likelihood of n pictures is worth that of fewer.
EVIDENCE = 0.3
# Inputs with a smaller share of the average are left out.
LEAST_SHARE = 0.02

# With more pictures than these, inputs are compared on so many of them, or on so many of each class. Only the best,
# those with at least this share, go on to all pictures: the time of a solution grows with the cube of the pictures.
COMPARED, COMPARED_PER_CLASS, MOST_INPUTS, LEADING_SHARE = 600, 5, 2, 0.1

# Above so many rows, float32 halves the time. Its rounding is far below the least ridge, unless rows are more than
# columns: weak axes are then divided by their length.
_PRECISE = 1000

# Factors from scores of unit root mean square to logits that are tried, and the one that is used without evidence.
_SCALES = tuple(float(value) for value in np.geomspace(0.2, 30, 24))
_SCALE_WITHOUT_EVIDENCE = 1.5
# Most pictures that a factor is fitted on.
_MOST_TO_SCALE = 2000

# Scores of all strengths together, 8 bytes each, that are kept for the average; more are computed twice. Shares of
# strengths that are then left out.
_MOST_SCORES, _NEGLIGIBLE = 32_000_000, 1e-9


@dataclass(frozen=True)
class Rows:
    """Pictures to learn from.

    Attributes:
        pooled: Pooled activations (n, sum of all widths), the features last.
        targets: Class probabilities (n, classes), float64; a one for the label of a picture.
        counts: How many pictures each row counts for, (n,) float64.
        rated: Whether the held-out prediction of a row is evidence, (n,) bool.
    """

    pooled: Tensor
    targets: Tensor
    counts: Tensor
    rated: Tensor

    @classmethod
    def labelled(cls, pooled: Tensor, labels: Tensor, classes: int, class_weights: Tensor | None = None) -> Rows:
        """Rows of pictures with labels (n,). The only picture of a class is no evidence: its class is unknown without
        it."""
        targets = torch.nn.functional.one_hot(labels, classes).double()
        counts = torch.ones(len(labels), dtype=torch.float64)
        if class_weights is not None:
            counts = class_weights.double()[labels]
            counts = counts / counts.mean()
        return cls(pooled, targets, counts, torch.bincount(labels, minlength=classes)[labels] > 1)

    def at(self, places: Tensor) -> Rows:
        """The rows at some places."""
        return Rows(self.pooled[places], self.targets[places], self.counts[places], self.rated[places])


@dataclass(frozen=True)
class RidgeHead:
    """An average of ridge classifiers: logits = features @ weight.T + unit vectors of depths @ unit_weight.T + bias.

    Attributes:
        weight: Shape (classes, width of the features).
        unit_weight: Shape (classes, sum of widths). None where no unit vectors are read.
        bias: Shape (classes,).
        widths: Number of activations of each depth that is read, the features last.
        held_out: Logits (n, classes) of the rows, each by the average fitted without the row.
        shares: Share of each input in the average.
    """

    weight: Tensor
    unit_weight: Tensor | None
    bias: Tensor
    widths: tuple[int, ...]
    held_out: Tensor
    shares: dict[str, float]


def fit_ridge_head(
    rows: Rows, widths: Sequence[int], judged: Rows | None = None, inputs: Sequence[Input] = INPUTS
) -> RidgeHead:
    """Fit ridge classifiers of every input and strength, and average their logits.

    Weights are the prior times a power of the likelihood of held-out pictures. Scores are brought to unit root mean
    square before they are averaged, and the average is scaled to logits by the same likelihood.

    Args:
        rows: Pictures to learn from. Each is also held out in turn.
        widths: Number of activations of each depth, the features last.
        judged: Further pictures whose likelihood counts, but which are not learned from.
        inputs: Inputs to average over.

    Source: Allen (1974) for leaving out in closed form; Wenzel et al. (2020), Hyperparameter Ensembles for Robustness
    and Uncertainty Quantification, for averaging over hyper-parameters.
    """
    compared = max(COMPARED, COMPARED_PER_CLASS * rows.targets.shape[1])
    if len(rows.pooled) > compared and len(inputs) > MOST_INPUTS:
        some = rows.at(torch.linspace(0, len(rows.pooled) - 1, compared).round().long())
        members, shares = _members(some, widths, judged, inputs, _Evidence.of(some, judged, len(rows.pooled)))
        leading = sorted(zip(shares, (member.kind for member in members), strict=True), key=lambda pair: -pair[0])
        inputs = [kind for share, kind in leading[:MOST_INPUTS] if share >= LEADING_SHARE]
    evidence = _Evidence.of(rows, judged, len(rows.pooled))
    members, shares = _members(rows, widths, judged, inputs, evidence)
    kept = [(float(share), member) for share, member in zip(shares, members, strict=True) if share > 0]
    scores = sum(share * member.scores for share, member in kept)
    assert isinstance(scores, Tensor)
    scale = evidence.fitted(scores)[1]
    return _averaged(kept, scale, scores[: len(rows.pooled)], widths)


def _members(
    rows: Rows, widths: Sequence[int], judged: Rows | None, inputs: Sequence[Input], evidence: _Evidence
) -> tuple[list[_Member], NDArray[np.float64]]:
    """A member for each input, and their shares of the average."""
    per_class = max(1.0, float(rows.counts.sum()) / rows.targets.shape[1])
    members = []
    for kind in inputs:
        prior = kind.prior * (1.0 if kind.from_one or len(inputs) == 1 else 1 - 1 / per_class)
        depths = min(len(kind.factors), len(widths))
        if prior > 0 and (depths > 1 or len(kind.factors) == 1):
            members.append(_Member.of(kind, prior, rows, widths, judged, evidence))
    least = min(member.loss for member in members)
    shares = np.array([member.prior * np.exp(-evidence.strength * (member.loss - least)) for member in members])
    shares /= shares.sum()
    return members, np.where(shares < LEAST_SHARE, 0.0, shares) / shares[shares >= LEAST_SHARE].sum()


def _averaged(kept: list[tuple[float, _Member]], scale: float, held_out: Tensor, widths: Sequence[int]) -> RidgeHead:
    """The members as one head. Weights of fewer depths stand at the end of those of more."""
    depths = max((member.depths for _, member in kept if member.kind.unit), default=1)
    read, classes = sum(widths[-depths:]), held_out.shape[1]
    weight = torch.zeros(classes, widths[-1], dtype=torch.float64)
    unit_weight = torch.zeros(classes, read, dtype=torch.float64)
    bias = torch.zeros(classes, dtype=torch.float64)
    for share, member in kept:
        (unit_weight if member.kind.unit else weight)[:, -member.weight.shape[1] :] += scale * share * member.weight
        bias += scale * share * member.bias
    return RidgeHead(
        weight.float(),
        unit_weight.float() if any(member.kind.unit for _, member in kept) else None,
        bias.float(),
        tuple(widths[-depths:]),
        (scale * held_out).float(),
        {member.kind.name: share for share, member in kept},
    )


@dataclass(frozen=True)
class _Evidence:
    """Held-out pictures, or as many of them as factors are fitted on: their places among the rows and judged pictures,
    targets and counts.

    pictures: Number of all held-out pictures. strength: how many nats a nat of mean loss counts in the logarithm of a
    weight.
    """

    places: Tensor
    targets: Tensor
    counts: Tensor
    pictures: int
    strength: float

    @classmethod
    def of(cls, rows: Rows, judged: Rows | None, stand_for: int) -> _Evidence:
        """stand_for: how many pictures the rows are a sample of."""
        n, judged = len(rows.targets), rows.at(torch.empty(0, dtype=torch.int64)) if judged is None else judged
        places = torch.cat([rows.rated.nonzero()[:, 0], n + torch.arange(len(judged.targets))])
        pictures = len(places)
        places = places[:: max(1, -(-pictures // _MOST_TO_SCALE))]
        own, others = places[places < n], places[places >= n] - n
        targets = torch.cat([rows.targets[own], judged.targets[others]])
        counts = torch.cat([rows.counts[own], judged.counts[others]])
        return cls(places, targets, counts, pictures, EVIDENCE * pictures * stand_for / max(1, n))

    def fitted(self, scores: Tensor) -> tuple[float, float]:
        """Mean loss in nats of scores at the factor with the least, and the factor."""
        if not self.pictures:
            return 0.0, _SCALE_WITHOUT_EVIDENCE
        some, counts = scores[self.places].float(), self.counts.float()
        # As if one label more were wrong: without a mistake, the factor would have no bound.
        smooth = 1 / (self.pictures + 2)
        targets = ((1 - smooth) * self.targets + smooth / scores.shape[1]).float()
        losses = [float(counts @ -(targets * (factor * some).log_softmax(1)).sum(1)) for factor in _SCALES]
        best = int(np.argmin(losses))
        return losses[best] / float(self.counts.sum()), _SCALES[best]


@dataclass(frozen=True)
class _Member:
    """Ridge classifiers of one input, averaged over strengths.

    weight: (classes, width of its input), for activations, divided by their length where the input is of unit vectors.
    scores: Held-out scores (n, classes) of the rows, then those of the judged pictures. loss: minus the logarithm of
    the sum of likelihoods, over that of one picture.
    """

    kind: Input
    prior: float
    depths: int
    weight: Tensor
    bias: Tensor
    scores: Tensor
    loss: float

    @classmethod
    def of(
        cls, kind: Input, prior: float, rows: Rows, widths: Sequence[int], judged: Rows | None, evidence: _Evidence
    ) -> _Member:
        depths = min(len(kind.factors), len(widths))
        read, factors = list(widths[-depths:]), kind.factors[-depths:]
        x, counts = _read(rows.pooled, read, kind.unit), rows.counts[:, None]
        mean, centre = _mean(x, counts), _mean(rows.targets, counts)
        length = sum(factor**2 for factor in factors) ** 0.5
        parts = zip((x - mean).split(read, 1), factors, strict=True)
        scale = torch.cat([(_spread(part, counts) * length / factor).expand(part.shape[1]) for part, factor in parts])
        root = counts.sqrt()
        # Rows and targets times the root of their counts: a weighted regression is then a plain one.
        scaled = (x - mean) / scale * root
        if _PRECISE < len(scaled) <= scaled.shape[1]:  # a large Gram matrix of rows
            vectors, values = (found.double() for found in principal_axes(scaled.float()))
        else:
            vectors, values = principal_axes(scaled)
        wanted = (rows.targets - centre) * root
        asked = None if judged is None else (_read(judged.pooled, read, kind.unit) - mean) / scale
        # The products of few pictures with the rows serve all strengths; those of many would take more than weights.
        products = None if asked is None or len(asked) > asked.shape[1] else asked @ scaled.T
        path = RidgePath(
            rows.targets,
            rows.counts,
            root,
            centre,
            scaled,
            vectors,
            values,
            wanted,
            vectors.T @ wanted,
            asked,
            products,
        )
        strengths = [strength for strength in STRENGTHS if evidence.pictures or strength >= WEAKEST_FROM_ONE]
        together = len(strengths) * path.scores <= _MOST_SCORES
        losses, found = [], []
        for strength in strengths:
            solution = path.at(strength)
            losses.append(evidence.fitted(solution.scores)[0])
            found.append(solution if together else None)
        least = min(losses)
        likelihoods = np.exp(-evidence.strength * (np.array(losses) - least))
        total = least - np.log(likelihoods.mean()) / max(evidence.strength, 1e-9)
        scores, dual, middle = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for strength, share, known in zip(strengths, likelihoods / likelihoods.sum(), found, strict=True):
            if together or share > _NEGLIGIBLE:
                solution = path.at(strength) if known is None else known
                scores = solution.scores.mul_(share).add_(scores)
                dual, middle = share * solution.dual + dual, share * solution.centre + middle
        weight = (scaled.T @ dual / scale[:, None]).T
        return cls(kind, prior, depths, weight, (middle - mean @ weight.T)[0], scores, float(total))


def _read(pooled: Tensor, widths: list[int], unit: bool) -> Tensor:
    """The last activations as float64, those of each depth divided by their length for unit vectors."""
    last = pooled[:, -sum(widths) :].double()
    return unit_depths(last, widths) if unit else last


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return (values * counts).sum(0, keepdim=True) / counts.sum()


def _spread(rows: Tensor, counts: Tensor) -> Tensor:
    """Root mean square length of rows (n, width) that count so many times, (n, 1); at least 1e-12."""
    return _mean(rows.square().sum(1, keepdim=True), counts).sqrt().clamp_min(1e-12)[0, 0]
