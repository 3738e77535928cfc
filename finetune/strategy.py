"""The four strategies and the baseline as plain data, and the choice between them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    """What of the network learns, from which start, and how fast.

    start: "pretrained" or "random" weights. head_first: a linear head is solved on frozen features before anything
    else moves (LP-FT, Kumar et al. 2022, section 4). trains: "head", "top" (the stages from `Config.unfreeze` up) or
    "all". learning_rate: of the head, for AdamW; None where nothing is learned by gradient. stage_decay: what a stage's
    learning rate keeps of that of the stage above it. batch_norm: whether its statistics stay those of the pretraining
    ("frozen") or follow the new pictures ("trained"). epochs: at least so many, see `training.epochs_for`.
    """

    name: str
    start: str
    head_first: bool
    trains: str
    learning_rate: float | None
    stage_decay: float
    batch_norm: str
    epochs: int
    when: str


HEAD = Strategy("head", "pretrained", True, "head", None, 1.0, "frozen", 0, "few pictures, like the backbone's own")
PARTIAL = Strategy("partial", "pretrained", True, "top", 3e-4, 0.7, "frozen", 8, "few pictures, unlike its own")
FULL = Strategy("full", "pretrained", True, "all", 3e-4, 0.7, "frozen", 8, "many pictures, like its own")
TRAIN = Strategy("train", "pretrained", False, "all", 3e-4, 1.0, "trained", 10, "many pictures, unlike its own")
SCRATCH = Strategy("scratch", "random", False, "all", 1e-3, 1.0, "trained", 30, "never: the baseline to beat")

STRATEGIES = {strategy.name: strategy for strategy in (HEAD, PARTIAL, FULL, TRAIN, SCRATCH)}

FEW, MANY = 20, 200


@dataclass(frozen=True)
class Choice:
    """A strategy and the sentence that says why it was taken."""

    strategy: Strategy
    reason: str


def choose(requested: str, pictures_per_class: float) -> Choice:
    """The strategy asked for, or with "auto" the one that the number of training pictures per class suggests."""
    if requested != "auto":
        return Choice(STRATEGIES[requested], f"{requested}: as asked for.")
    count = f"{pictures_per_class:.0f} training pictures per class"
    if pictures_per_class < FEW:
        strategy, why = HEAD, f"{count} are under {FEW}: too few to move the backbone"
    elif pictures_per_class < MANY:
        strategy, why = PARTIAL, f"{count} lie between {FEW} and {MANY}: enough for the top stages, not for all"
    else:
        strategy, why = FULL, f"{count} are {MANY} or more: enough to adapt every stage"
    return Choice(strategy, f"{strategy.name}: {why} (chosen on the number alone; similarity was not measured).")
