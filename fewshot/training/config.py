"""Options of Siamese training: one frozen dataclass for the API, the command line and config.json."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot.embedding.distortions import DISTORTIONS, SYMMETRIES
from finetune.errors import InputError
from finetune.options.fields import Options, option

# The first by fewshot.training.losses, the others by pytorch-metric-learning.
LOSSES = ("contrastive", "triplet", "multi-similarity", "supcon", "arcface")
MINERS = ("none", "batch-hard", "multi-similarity", "pair-margin")
DISTANCES = ("euclidean", "cosine", "signal-to-noise")


# Headings of the help text.
_TRAINING = "Training"
_LOSS = "Loss"
_BATCHES = "Batches and augmentation"


@dataclass(frozen=True, kw_only=True)
class SiameseConfig(Options):
    """All options of `fewshot train`, in the order of the help text. For None the run chooses the value and reports it.

    Raises:
        InputError: If a value has the wrong type or is out of its range. The message names the option.

    Example:
        >>> from fewshot import SiameseConfig
        >>> SiameseConfig(minutes=5, margin=0.8).loss
        'contrastive'
    """

    minutes: float | None = option(
        None,
        "Duration of the training steps in minutes. The speed is measured at the start, and gives the number of steps. "
        "Reading the pictures and measuring the result take additional time.",
        low=0,
        unset="10, where --epochs is not given",
    )
    epochs: int | None = option(
        None,
        "Number of passes over the pictures, instead of --minutes.",
        low=1,
        unset="as many as fit in --minutes",
    )
    network: str = option("fewtune_drawing", "Encoder: any timm model, trained from random weights.", metavar="NAME")
    side: int | None = option(
        None,
        "Side of the network's square input, in pixels.",
        low=8,
        unset="the network's own; 64 for a folder and fewtune_drawing",
    )
    device: str = option(
        "auto", "Device to compute on. auto uses a CUDA GPU where there is one.", choices=("auto", "cpu", "cuda")
    )
    seed: int = option(0, "Seed of all random numbers.", low=0, below=2**32)

    lr: float = option(2e-3, "Highest learning rate of AdamW.", low=0, section=_TRAINING)
    weight_decay: float = option(
        0.02, "Decoupled weight decay. Norm layers and biases are not decayed.", low=0, section=_TRAINING
    )
    warmup: float = option(
        0.05, "Share of the training steps in which the learning rate rises.", low=0, below=1, section=_TRAINING
    )
    early_side: int | None = option(
        None,
        "Side of the input during the first 70 % of the steps, in pixels. Smaller is faster.",
        low=8,
        unset="that of --side",
        section=_TRAINING,
    )
    ema: float = option(
        0.998,
        "Decay of the averaged weights at each step. The averaged weights are the ones that are kept.",
        low=0,
        below=1,
        section=_TRAINING,
    )
    precision: str = option(
        "auto",
        "Number format of the computation. auto uses bfloat16 where the processor is faster with it.",
        choices=("auto", "float32", "bfloat16"),
        section=_TRAINING,
    )

    loss: str = option("contrastive", "Loss over the pairs of a batch.", choices=LOSSES, section=_LOSS)
    margin: float = option(
        1.0,
        "Margin of the contrastive loss, as a distance between unit vectors, from 0 to 2.",
        low=0,
        high=2,
        section=_LOSS,
        only_with=("loss", ("contrastive",)),
    )
    hardest: int = option(
        8,
        "Number of nearest pictures of other classes that the contrastive loss pushes each picture from. 0 takes all.",
        low=0,
        section=_LOSS,
        only_with=("loss", ("contrastive",)),
    )
    miner: str = option(
        "none", "Selection of the pairs of a batch that count in the loss.", choices=MINERS, section=_LOSS
    )
    distance: str | None = option(
        None, "Distance that the loss uses.", choices=DISTANCES, unset="the loss's own", section=_LOSS
    )

    alphabets: int | None = option(
        None,
        "Number of groups (alphabets of Omniglot) drawn for a batch. Each is turned or mirrored as a whole.",
        low=1,
        unset="8 for Omniglot; for a folder 4, or fewer where that leaves fewer than 200 steps",
        section=_BATCHES,
    )
    ways: int | None = option(
        None,
        "Most classes drawn from each group.",
        low=2,
        unset="16 for Omniglot, 32 for a folder",
        section=_BATCHES,
    )
    shots: int = option(4, "Number of pictures of each class. Each is distorted anew.", low=2, section=_BATCHES)
    symmetries: int | None = option(
        None,
        "Number of turned or mirrored versions of a class that count as separate classes: 1 (none), 4 (quarter turns) "
        "or 8 (quarter turns and mirror images).",
        low=1,
        high=SYMMETRIES,
        unset="8 for Omniglot, 1 for a folder",
        section=_BATCHES,
    )
    distortion: str | None = option(
        None,
        "Strength of the random distortions of training pictures.",
        choices=tuple(DISTORTIONS),
        unset="drawing or drawing-strong for Omniglot, photo for a folder",
        section=_BATCHES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes is not None and self.epochs is not None:
            raise InputError("--minutes and --epochs both set the length of the training: give one of them")
        if self.symmetries not in (None, 1, 4, SYMMETRIES):
            raise InputError(f"--symmetries must be 1, 4 or 8, not {self.symmetries}")
        if self.loss == "contrastive" and self.distance not in (None, "euclidean"):
            raise InputError(
                f"--distance {self.distance} cannot be used with --loss contrastive, which needs euclidean"
            )
