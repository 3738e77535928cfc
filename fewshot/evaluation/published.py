"""Published accuracies by protocol, way and shot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A published accuracy.

    Attributes:
        name: Of the method.
        accuracy: Between 0 and 1.
        source: The publication.
        note: What limits a comparison.
    """

    name: str
    accuracy: float
    source: str
    note: str = ""


# By protocol, way and shot; the best first.
PUBLISHED: Mapping[tuple[str, int, int], tuple[Published, ...]] = {
    ("lake", 20, 1): (
        Published("ConvARC", 0.985, "Shyam et al. 2017", "compares pairs in the context of all supports; no embedding"),
        Published("Bayesian program learning", 0.967, "Lake et al. 2015", "learns from strokes"),
        Published("humans", 0.955, "Lake et al. 2015"),
        Published("hierarchical Bayesian program learning", 0.952, "Koch et al. 2015, table 2", "learns from strokes"),
        Published("convolutional Siamese network", 0.920, "Koch et al. 2015, table 2", "trained on 40 alphabets"),
        Published("affine model", 0.818, "Koch et al. 2015, table 2"),
        Published("hierarchical deep", 0.652, "Koch et al. 2015, table 2"),
        Published("deep Boltzmann machine", 0.620, "Koch et al. 2015, table 2"),
        Published("modified Hausdorff", 0.612, "Lake et al. 2015", "the official demo: 38.8 % error"),
        Published("Siamese network, fully connected", 0.583, "Koch et al. 2015, table 2"),
        Published("simple strokes", 0.352, "Koch et al. 2015, table 2"),
        Published("nearest neighbour in pixels", 0.217, "Koch et al. 2015, table 2"),
    ),
    ("lake-minimal", 20, 1): (
        Published("Bayesian program learning", 0.957, "Lake et al. 2015", "first minimal set; learns from strokes"),
        Published("deep convolutional network", 0.777, "Lake et al. 2015", "the better of the two minimal sets"),
    ),
    ("vinyals", 5, 1): (
        Published("Meta-Curvature MC2+", 0.9997, "Park & Oliva 2019"),
        Published("prototypical networks", 0.988, "Snell et al. 2017"),
        Published("matching networks", 0.981, "Vinyals et al. 2016"),
    ),
    ("vinyals", 5, 5): (
        Published("Meta-Curvature MC2+", 0.9989, "Park & Oliva 2019"),
        Published("prototypical networks", 0.997, "Snell et al. 2017"),
        Published("matching networks", 0.989, "Vinyals et al. 2016"),
    ),
    ("vinyals", 20, 1): (
        Published("Meta-Curvature MC2+", 0.9912, "Park & Oliva 2019"),
        Published("prototypical networks", 0.960, "Snell et al. 2017"),
        Published("matching networks", 0.938, "Vinyals et al. 2016"),
    ),
    ("vinyals", 20, 5): (
        Published("Meta-Curvature MC2+", 0.9965, "Park & Oliva 2019"),
        Published("prototypical networks", 0.989, "Snell et al. 2017"),
        Published("matching networks", 0.985, "Vinyals et al. 2016"),
    ),
    ("all-way-423", 423, 1): (Published("adaptive posterior learning", 0.735, "Ramalho & Garnelo 2019"),),
    ("koch", 2, 1): (
        Published(
            "convolutional Siamese network",
            0.9342,
            "Koch et al. 2015, table 1",
            "whether its threshold was chosen on validation pairs is not said",
        ),
    ),
}

# Trained without labels, on 20-way 1-shot of `vinyals`; as later papers quote them.
WITHOUT_LABELS: tuple[Published, ...] = (
    Published("Meta-GMVAE", 0.8221, "Lee et al. 2021"),
    Published("UMTRA", 0.7425, "Khodadadeh et al. 2019"),
    Published("ProtoTransfer", 0.7227, "Medina et al. 2020"),
    Published("AAL", 0.6879, "Antoniou & Storkey 2019"),
)
