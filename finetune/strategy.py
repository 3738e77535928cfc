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


# fmt: off
HEAD = Strategy(
    name="head", start="pretrained", head_first=True, trains="head",
    learning_rate=None, stage_decay=1.0, batch_norm="frozen", epochs=0,
    when="few pictures, like the backbone's own",
)
PARTIAL = Strategy(
    name="partial", start="pretrained", head_first=True, trains="top",
    learning_rate=1e-4, stage_decay=0.7, batch_norm="frozen", epochs=8,
    when="few pictures, unlike the backbone's own",
)
FULL = Strategy(
    name="full", start="pretrained", head_first=True, trains="all",
    learning_rate=1e-4, stage_decay=0.7, batch_norm="frozen", epochs=8,
    when="many pictures, like the backbone's own",
)
TRAIN = Strategy(
    name="train", start="pretrained", head_first=False, trains="all",
    learning_rate=3e-4, stage_decay=1.0, batch_norm="trained", epochs=10,
    when="many pictures, unlike the backbone's own",
)
SCRATCH = Strategy(
    name="scratch", start="random", head_first=False, trains="all",
    learning_rate=1e-3, stage_decay=1.0, batch_norm="trained", epochs=30,
    when="never: the baseline that the others must beat",
)
# fmt: on

STRATEGIES = {strategy.name: strategy for strategy in (HEAD, PARTIAL, FULL, TRAIN, SCRATCH)}

# Training pictures per class between which "auto" takes `partial`.
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
