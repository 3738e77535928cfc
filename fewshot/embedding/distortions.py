"""Strengths of the random distortions, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# The symmetries of a square: four quarter turns, and four of the mirror image.
SYMMETRIES = 8


@dataclass(frozen=True)
class Distortion:
    """Bounds of a random distortion. Each part is drawn independently and uniformly between its bounds.

    Attributes:
        rotation: Degrees, in both directions.
        scale: Factors by which the window grows in both axes; below 1, a part of the picture is enlarged.
        stretch: The same for each axis on its own.
        shear: Of each axis along the other.
        shift: Share of half the window's side.
        elastic: Standard deviation of a smooth random displacement, same unit.
        stroke: How much strokes are thickened or thinned, from 0 to 1.
        light: Largest relative change of brightness and contrast.
        present: Probability with which each of rotation, scale, stretch, shear and shift is applied.
    """

    rotation: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    stretch: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0
    stroke: float = 0.0
    light: float = 0.0
    present: float = 1.0


DISTORTIONS: Mapping[str, Distortion] = {
    "none": Distortion(),
    # Koch et al. 2015, section 3.3: rotation within 10 degrees, shears within 0.3, scales from 0.8 to 1.2, shifts of 2
    # of 105 pixels, each with probability 0.5.
    "koch": Distortion(rotation=10, stretch=(0.8, 1.2), shear=0.3, shift=2 / 52.5, present=0.5),
    "drawing": Distortion(rotation=15, stretch=(0.82, 1.22), shear=0.18, shift=0.12, elastic=0.06, stroke=1.0),
    # For pictures without labels, where distortions alone say how much a class varies.
    "drawing-strong": Distortion(
        rotation=25, scale=(0.75, 1.15), stretch=(0.7, 1.4), shear=0.4, shift=0.2, elastic=0.12, stroke=1.0
    ),
    "photo": Distortion(rotation=15, scale=(0.4, 1.05), stretch=(0.85, 1.18), shear=0.1, shift=0.25, light=0.4),
}

# The distortions between the views of a picture in `Embedder.embed`.
VIEWS = Distortion(rotation=10, stretch=(0.85, 1.15), shear=0.1, shift=0.06)
