"""The likeness: how much a picture looks like one of the classes, from pooled activations of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.linear.ridge import Input, Rows, fit_ridge_head
from finetune.models.depth_head import unit_depths

# Depths that are read: the features and the outputs of the two stages before them. Chosen with the parts of the score
# on five sets and tf_mobilenetv3_small_100, see benchmarks/unknown.py.
DEPTHS = 3

# Fewer classes or held-out pictures cannot show how the two parts of the score compare: the cosine is then used alone.
LEAST_CLASSES, LEAST_KNOWN = 3, 10


class Likeness(nn.Module):
    """Pooled activations (n, sum of widths or more) to scores (n,); larger is more like one of the classes.

    The activations of each of the last depths are divided by their length. The score is the largest cosine with the
    mean of a class plus the largest output of a ridge classifier, both in standard deviations of pictures of the
    classes from their mean.

    Args:
        widths: Number of activations of each depth that is read.
        classes: Number of classes.

    Attributes:
        means: Unit means of the classes, (classes, sum of widths).
        weight, bias: The ridge classifier, (classes, sum of widths) and (classes,).
        centre, scale: What is subtracted from cosine and ridge output, and what they are multiplied by, (2,) each. A
            scale of 0 leaves a part out.

    Example:
        >>> import torch
        >>> from finetune.open_set.likeness import Likeness
        >>> Likeness([16, 32], 3)(torch.randn(8, 48)).shape
        torch.Size([8])
    """

    means: Tensor
    weight: Tensor
    bias: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, widths: Sequence[int], classes: int):
        super().__init__()
        self.widths = list(widths)
        self.width = sum(widths)
        for name in ("means", "weight"):
            self.register_buffer(name, torch.zeros(classes, self.width))
        self.register_buffer("bias", torch.zeros(classes))
        for name in ("centre", "scale"):
            self.register_buffer(name, torch.zeros(2))

    @property
    def has_ridge(self) -> bool:
        """Whether the ridge classifier counts."""
        return bool(self.scale[1] > 0)

    def standardise(self, parts: Tensor, like: Likeness | None, *, with_ridge: bool) -> None:
        """Set centre and scale by the parts (m, 2) of held-out pictures, or as in `like` where these are few."""
        used = torch.tensor([1.0, float(with_ridge)])
        if len(parts) >= LEAST_KNOWN:
            self.centre.copy_(parts.mean(0) * used)
            self.scale.copy_(used / parts.std(0).clamp_min(1e-4))
        elif like is not None:
            self.centre.copy_(like.centre)
            self.scale.copy_(like.scale)
        else:
            self.scale.copy_(used)
        if like is not None:  # cosines of different fits have one scale
            self.centre[0], self.scale[0] = like.centre[0], like.scale[0]

    def parts(self, activations: Tensor) -> Tensor:
        """Largest cosine and largest ridge output, (n, 2)."""
        units = unit_depths(activations[:, -self.width :], self.widths)
        cosine = (nn.functional.normalize(units) @ self.means.T).amax(1)
        return torch.stack([cosine, (units @ self.weight.T + self.bias).amax(1)], 1)

    def nearest(self, activations: Tensor) -> Tensor:
        """The class whose mean is most similar, (n,) int64."""
        units = unit_depths(activations[:, -self.width :].float(), self.widths)
        return (units @ self.means.T).argmax(1)

    def forward(self, activations: Tensor) -> Tensor:
        # In float32 even under autocast: scores are compared with a threshold.
        with torch.autocast(activations.device.type, enabled=False):
            return ((self.parts(activations.float()) - self.centre) * self.scale).sum(1)


@dataclass(frozen=True)
class Fitted:
    """A likeness and what it gives pictures of the classes that it was not fitted on.

    Attributes:
        likeness: The score.
        known: Scores (m,) of pictures of the classes, each by a score that was fitted without the picture.
        correct: Whether the ridge classifier names them right, (m,) bool.
        places: Their places among the pictures, (m,).
    """

    likeness: Likeness
    known: Tensor
    correct: Tensor
    places: Tensor


def fit_likeness(
    pooled: Tensor,
    labels: Tensor,
    widths: Sequence[int],
    judging: Tensor | None = None,
    *,
    like: Likeness | None = None,
) -> Fitted:
    """Fit the score on pictures of the classes.

    Args:
        pooled: Pooled activations (n, sum of widths), the features last.
        labels: Classes (n,) int64, every one present.
        widths: Number of activations of each depth.
        judging: Shape (n,), bool: pictures that are not fitted on, and alone give `Fitted.known`. None where each
            picture is held out in turn.
        like: Score of more classes that this one is compared with: it has the same parts, and the same scale where too
            few pictures are held out.
    """
    read = list(widths[-DEPTHS:])
    learned = torch.ones(len(labels), dtype=torch.bool) if judging is None else ~judging
    x, y, classes = pooled[learned], labels[learned], int(labels.max()) + 1
    likeness = Likeness(read, classes)
    units = nn.functional.normalize(unit_depths(x[:, -sum(read) :], read))
    sums = torch.zeros(classes, sum(read)).index_add_(0, y, units)
    likeness.means.copy_(nn.functional.normalize(sums))
    places, cosines, correct = _held_out_cosines(likeness.means, sums, units, y)
    if judging is not None:
        places = judging.nonzero()[:, 0]
    with_ridge = classes >= LEAST_CLASSES and len(places) >= LEAST_KNOWN if like is None else like.has_ridge
    outputs = torch.zeros(len(y), 1)
    if with_ridge:
        depths = Input("last depths", (1.0,) * len(read))  # a network may have fewer than DEPTHS
        ridge = fit_ridge_head(Rows.labelled(x, y, classes), widths, inputs=(depths,))
        assert ridge.unit_weight is not None
        likeness.weight.copy_(ridge.unit_weight)
        likeness.bias.copy_(ridge.bias)
        outputs = ridge.held_out
        correct = outputs.argmax(1) == y
    if judging is None:
        parts, correct = torch.stack([cosines, outputs.amax(1)], 1)[places], correct[places]
    else:
        parts = likeness.parts(pooled[places])
        correct = _named_right(likeness, pooled[places], labels[places], with_ridge)
    likeness.standardise(parts, like, with_ridge=with_ridge)
    known = ((parts - likeness.centre) * likeness.scale).sum(1)
    return Fitted(likeness, known, correct, places)


def _held_out_cosines(means: Tensor, sums: Tensor, units: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Places (m,) of the pictures whose class has others; and for every picture the largest cosine with a mean, that of
    its class without the picture, and whether it is that of its class."""
    cosines = units @ means.T
    rows = torch.arange(len(labels))
    cosines[rows, labels] = (nn.functional.normalize(sums[labels] - units) * units).sum(1)
    places = (torch.bincount(labels, minlength=len(means))[labels] > 1).nonzero()[:, 0]
    return places, cosines.amax(1), cosines.argmax(1) == labels


def _named_right(likeness: Likeness, pooled: Tensor, labels: Tensor, with_ridge: bool) -> Tensor:
    units = unit_depths(pooled[:, -likeness.width :], likeness.widths)
    answers = units @ likeness.weight.T + likeness.bias if with_ridge else units @ likeness.means.T
    return answers.argmax(1) == labels
