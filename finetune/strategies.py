"""The four strategies, and what they are measured beside, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    """What of the network learns, from which start, and how fast.

    start: "pretrained" weights, with a linear head solved on frozen features before anything else moves (LP-FT, Kumar
    et al. 2022, section 4), or "random" ones. trains: "head", "top" (the stages from `Config.unfreeze` up) or "all".
    learning_rate: of the head, for AdamW; None where nothing is learned by gradient. stage_decay: what a stage's
    learning rate keeps of that of the stage above it. batch_norm: whether its statistics stay those of the pretraining
    ("frozen") or follow the new pictures ("trained"). epochs: at least so many, see `plan.epochs_for`. lowest: the
    lowest stage that learns where it trains the "top", by name; None for a quarter of them.
    """

    name: str
    start: str
    trains: str
    learning_rate: float | None
    stage_decay: float
    batch_norm: str
    epochs: int
    lowest: str | None = None


# fmt: off
HEAD = Strategy(
    name="head", start="pretrained", trains="head",
    learning_rate=None, stage_decay=1.0, batch_norm="frozen", epochs=0,
)
PARTIAL = Strategy(
    name="partial", start="pretrained", trains="top",
    learning_rate=2e-4, stage_decay=0.7, batch_norm="frozen", epochs=8,
)
FULL = Strategy(
    name="full", start="pretrained", trains="all",
    learning_rate=2e-4, stage_decay=0.7, batch_norm="frozen", epochs=8,
)
TRAIN = Strategy(
    name="train", start="pretrained", trains="all",
    learning_rate=3e-4, stage_decay=1.0, batch_norm="frozen", epochs=10,
)
SCRATCH = Strategy(
    name="scratch", start="random", trains="all",
    learning_rate=1e-3, stage_decay=1.0, batch_norm="trained", epochs=30,
)
# fmt: on

STRATEGIES = {strategy.name: strategy for strategy in (HEAD, PARTIAL, FULL, TRAIN, SCRATCH)}

# Training pictures per class between which "auto" takes `partial`.
FEW, MANY = 20, 200

# A choice by fewer validation pictures than these is noise.
ENOUGH_TO_CHOOSE = 100

# What a run is measured beside: keys of metrics.json, and what people read.
BASELINES = {
    "majority_class": "majority class",
    "nearest_class_mean": "nearest class mean",
    "head": "linear head, frozen features",
}

# Why a run has no accuracy, and what to do about it.
NOT_MEASURED = (
    "accuracy was not measured: no class has two different pictures; put pictures of each class to measure it on into "
    "test/"
)


def check_strategies(**fields: str | None) -> None:
    """ValueError, which names the field, for one that is neither None nor a strategy."""
    for name, value in fields.items():
        if value is not None and value not in STRATEGIES:
            raise ValueError(f"{name}: {value!r} is none of {', '.join(STRATEGIES)}")
