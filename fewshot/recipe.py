"""How a Siamese network is trained, in one frozen dataclass that the API, the command line and config.json share."""

from __future__ import annotations

from dataclasses import dataclass

from fewshot.distortions import DISTORTIONS, SYMMETRIES
from finetune.errors import InputError
from finetune.options import Options, option

# By the contrastive loss of fewshot.losses, or by pytorch-metric-learning.
LOSSES = ("contrastive", "triplet", "multi-similarity", "supcon", "arcface")
MINERS = ("none", "batch-hard", "multi-similarity", "pair-margin")
DISTANCES = ("euclidean", "cosine", "signal-to-noise")


@dataclass(frozen=True, kw_only=True)
class Recipe(Options):
    """Every hyper-parameter of `fewshot train`. None means: chosen by the run, which says what it chose.

    Raises InputError, naming the option, for a value of the wrong type or out of its range.
    """

    network: str = option("fewtune_drawing", "encoder, any timm model by name, trained from random weights")
    side: int | None = option(None, "side of the square that the network sees, in pixels", low=8)
    early_side: int | None = option(None, "side during the first 70 % of the steps: smaller pictures cost less", low=8)
    loss: str = option("contrastive", "what is minimised over the pairs of a batch", choices=LOSSES)
    margin: float = option(1.0, "of the contrastive loss, in distance between unit vectors, 0 to 2", low=0, below=2.01)
    hardest: int = option(
        8, "of the contrastive loss: nearest pictures of other classes that each is pushed from; 0: all", low=0
    )
    miner: str = option("none", "which pairs of a batch count", choices=MINERS)
    distance: str | None = option(None, "what the loss measures by; the loss's own where not given", choices=DISTANCES)
    minutes: float | None = option(None, "about how long to train; the steps that fit are counted at the start", low=0)
    epochs: int | None = option(None, "instead of minutes: passes over as many pictures as there are", low=1)
    alphabets: int = option(8, "groups drawn for a batch, each laid by one of the symmetries", low=1)
    ways: int = option(16, "classes drawn from each, at most", low=2)
    shots: int = option(4, "pictures of each class, each distorted anew", low=2)
    symmetries: int | None = option(
        None,
        "what makes other classes of a class: 4 quarter turns, 8 with mirror images, 1 nothing",
        low=1,
        below=SYMMETRIES + 1,
    )
    distortion: str | None = option(None, "how far pictures are distorted", choices=tuple(DISTORTIONS))
    lr: float = option(2e-3, "highest learning rate, of AdamW", low=0)
    weight_decay: float = option(0.02, "decoupled; never on norms and biases", low=0)
    warmup: float = option(0.05, "share of the steps during which the learning rate rises", low=0, below=1)
    ema: float = option(0.998, "what the averaged weights, which are kept, retain at each step", low=0, below=1)
    precision: str = option(
        "auto", "auto: bfloat16 where the processor is faster with it", choices=("auto", "float32", "bfloat16")
    )
    device: str = option("auto", "", choices=("auto", "cpu", "cuda"))
    seed: int = option(0, "of everything random", low=0, below=2**32)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.minutes is not None and self.epochs is not None:
            raise InputError("--minutes and --epochs say the same in two ways: give one of them")
        if self.symmetries not in (None, 1, 4, SYMMETRIES):
            raise InputError(f"--symmetries must be 1, 4 or 8, not {self.symmetries}")
        if self.loss == "contrastive" and self.distance not in (None, "euclidean"):
            raise InputError(f"--distance {self.distance}: the contrastive loss is one of Euclidean distances")
