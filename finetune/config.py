"""Every hyper-parameter, in one frozen dataclass that the API, the command line and the saved config.json share."""

from __future__ import annotations

import os
from dataclasses import dataclass

from finetune.errors import InputError
from finetune.images import MAX_PIXELS
from finetune.options import Options, option
from finetune.strategy import STRATEGIES

# The value of `Config.lr` that has the learning rate found by a sweep.
AUTO = "auto"


# Word for --drop-above: what the probe curve says.
BEST = "best"


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """How a run is made. None means: chosen by the run, which says what it chose.

    Raises InputError, naming the option, for a value of the wrong type or out of its range.
    """

    backbone: str = option("tf_efficientnet_lite0", "any timm model, by name")
    weights: str | None = option(
        None, "file with the backbone's weights: safetensors, or a torch file of plain tensors"
    )
    strategy: str = option("auto", "which layers learn", choices=("auto", *STRATEGIES))
    unfreeze: str | None = option(None, "lowest stage that 'partial' trains, by name")
    drop_above: str | None = option(
        None, f"leave out the stages above this one, by name; {BEST}: above the depth whose probe errs least"
    )
    epochs: int | None = option(None, "passes over the training pictures, for strategies that need them", low=1)
    batch_size: int = option(32, "pictures per step", low=1)
    optimizer: str = option("adamw", "", choices=("adamw", "sgd"))
    lr: float | str | None = option(None, "learning rate of the head; auto: found by a sweep", low=0, word=AUTO)
    stage_decay: float | None = option(None, "what a stage's learning rate keeps of the one above it", low=0)
    weight_decay: float = option(0.02, "decoupled for AdamW, L2 for SGD; never on norms and biases", low=0)
    warmup: float = option(0.1, "share of the steps during which the learning rate rises", low=0, below=1)
    label_smoothing: float = option(0.05, "share of the target spread over all classes", low=0, below=1)
    class_weights: str = option(
        "auto",
        "weigh rare classes up; auto: when the largest is over 3 times the smallest",
        choices=("auto", "balanced", "none"),
    )
    patience: int | None = option(None, "epochs without a better validation result before training stops", low=1)
    image_size: int | None = option(None, "side of the square that the network sees, in pixels", low=8)
    crop_scale: float = option(0.35, "smallest share of a picture that a random crop keeps", low=0.01, below=1.01)
    flip: bool = option(True, "mirror pictures left to right at random")
    trivial_augment: bool = option(True, "one random colour or shape distortion a picture (TrivialAugment)")
    views: int = option(12, "augmented views of each picture that training on frozen stages draws from", low=1)
    mixup: float = option(0.0, "strength of mixup: alpha of its beta distribution, 0 for none", low=0)
    test_time: str = option("plain", "views averaged for a prediction", choices=("plain", "flip", "ten-crop"))
    val_fraction: float = option(0.15, "share of the pictures to choose on, when no val/ is given", low=0, below=1)
    test_fraction: float = option(
        0.15, "share of the pictures to measure on, when no test/ is given; 0 for none", low=0, below=1
    )
    max_bad: float = option(0.1, "share of unreadable files beyond which the run stops", low=0, below=1.01)
    max_pixels: int = option(MAX_PIXELS, "largest picture that is decoded", low=1)
    cache: bool = option(True, "keep activations of frozen stages for later runs (see finetune cache)")
    precision: str = option(
        "auto", "auto: bfloat16 where the processor is faster with it", choices=("auto", "float32", "bfloat16")
    )
    log: str = option(
        "none", "where every epoch's figures go beside history.jsonl", choices=("none", "tensorboard", "wandb")
    )
    device: str = option("auto", "", choices=("auto", "cpu", "cuda"))
    workers: int | None = option(None, "processes that decode pictures", low=0)
    seed: int = option(0, "of everything random", low=0, below=2**32)

    def __post_init__(self) -> None:
        if isinstance(self.weights, os.PathLike):
            object.__setattr__(self, "weights", os.fspath(self.weights))
        super().__post_init__()
        if self.val_fraction + self.test_fraction >= 1:
            raise InputError("--val-fraction and --test-fraction leave nothing to train on: their sum must be below 1")
        if self.drop_above is not None and self.strategy == "scratch":
            raise InputError("--drop-above goes with pretrained stages, not with --strategy scratch")
        if self.unfreeze is not None and self.strategy not in ("auto", "partial"):
            raise InputError(f"--unfreeze goes with --strategy partial, not {self.strategy}")
