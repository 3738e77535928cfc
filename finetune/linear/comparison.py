"""Backbones compared by their probes on the same pictures, and the choice between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from finetune.notebook.results import comparison_html

# A faster network is as good where its error is above the least by at most this fraction of the error of guessing, and
# by no more than one standard error of the paired difference. One standard error alone takes worse networks: at few
# pictures a difference within chance is still evidence.
TIE = 0.01


@dataclass(frozen=True, kw_only=True)
class BackboneFigures:
    """What is measured of one network. None: not measured, because the network was left out before.

    Attributes:
        name: timm's name of the network.
        image_size: Side of its pictures in pixels.
        weights: Where its weights come from.
        licence: Licence of the weights published under this name; None where timm states none.
        parameters: Number of its parameters.
        ms: Milliseconds a picture in full batches, all cores at work, without reading the picture.
        ms_single: Milliseconds of one picture by itself on one core.
        runtime: How full batches ran, such as "OpenVINO f32".
        accuracy: Cross-validated accuracy of the better of two probes, on the last depth and on the last three, with
            the 95 % interval.
        error: Mean squared error of both probes, relative to that of the class frequencies.
        left_out: Why it could not be chosen; None where it could.
    """

    name: str
    image_size: int | None = None
    weights: str
    licence: str | None = None
    parameters: int | None = None
    ms: float | None = None
    ms_single: float | None = None
    runtime: str | None = None
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    error: float | None = None
    left_out: str | None = None


@dataclass(frozen=True)
class BackboneComparison:
    """Backbones measured on the training and validation pictures of a folder, and the one to take.

    Attributes:
        candidates: The networks, the fastest first, those that were left out last.
        chosen: Name of the network to take.
        reason: Why, in a sentence.
        pictures: Number of pictures that the probes were measured on.
        of: Number of training and validation pictures, from which these were drawn.
        classes: Number of classes.

    Example:
        >>> from finetune import Config, compare_backbones
        >>> config = Config(backbones="fewtune_conv4", device="cpu")
        >>> compare_backbones("photos/", config=config).chosen
        'fewtune_conv4'
    """

    candidates: tuple[BackboneFigures, ...]
    chosen: str
    reason: str
    pictures: int
    of: int
    classes: int

    def _repr_html_(self) -> str:
        return comparison_html(self)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = asdict(self)
        for candidate in values["candidates"]:
            if candidate["interval"] is not None:
                candidate["interval"] = list(candidate["interval"])
        return values | {"candidates": list(values["candidates"])}

    @property
    def taken(self) -> BackboneFigures:
        """The figures of the chosen network."""
        return next(each for each in self.candidates if each.name == self.chosen and each.left_out is None)


def best_for_its_cost(errors: Sequence[Tensor]) -> tuple[int, int]:
    """The network to take, and the one with the least error; the same unless a faster one is as good.

    Args:
        errors: Squared errors (n,) of the same held-out pictures by each network, the fastest first, relative to that
            of guessing.

    Returns:
        Two positions. The first is that of the fastest network that is as good as the best one, see TIE.
    """
    least = min(range(len(errors)), key=lambda position: float(errors[position].mean()))
    for position in range(least):
        more = errors[position] - errors[least]
        standard_error = float(more.std(correction=min(1, len(more) - 1))) / math.sqrt(len(more))
        if float(more.mean()) <= min(TIE, standard_error):
            return position, least
    return least, least


def reason_for(measured: Sequence[BackboneFigures], taken: int, least: int) -> str:
    """The choice of `best_for_its_cost` in a sentence."""
    chosen, best = measured[taken], measured[least]
    if len(measured) == 1:
        return f"{chosen.name}: the only network that could be compared."
    if taken == least:
        cheaper = "" if taken == 0 else ", and no faster one is as good"
        return f"{chosen.name}: the least squared error of {len(measured)} networks{cheaper}; {_figures(chosen)}."
    return (
        f"{chosen.name}: as good as {best.name} within chance, and faster; {_figures(chosen)}, against "
        f"{_figures(best)}."
    )


def _figures(each: BackboneFigures) -> str:
    return f"accuracy {each.accuracy or 0:.1%}, squared error {each.error or 0:.3f}, {each.ms or 0:.2g} ms a picture"
