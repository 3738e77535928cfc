"""Every hyper-parameter, in one frozen dataclass that the API, the command line and the saved config.json share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from finetune.errors import InputError
from finetune.options.fields import Options, flag, option
from finetune.strategies import STRATEGIES

# The value of `Config.lr` that has the learning rate found by a sweep, and of `Config.backbone` that has networks
# compared.
AUTO = "auto"
DEFAULT_BACKBONE = "tf_efficientnet_lite0"

# Word for --drop-above: what the probe curve says.
BEST = "best"

MAX_PIXELS = 89_478_485  # Pillow's own bound, which a program may have changed before it imports this

# Largest side of a network's input in pixels: with more, one picture takes gigabytes.
MOST_SIDE = 4096

# Heading of the help text.
_OTHER = "Rarely needed"

# Commands beside `fit` that use an option: those that read pictures, and the one that trains.
_READS, _TRAINS, _COMPARES = ("inspect", "probe", "lr-find"), ("lr-find",), ("probe", "lr-find")
_PRETRAINED = ("head", "partial", "full", "train")

# What the options of training have in common.
_TRAINING: dict[str, Any] = {
    "section": "Training (not used by --strategy head)",
    "commands": _TRAINS,
    "only_with": ("strategy", ("partial", "full", "train", "scratch")),
}
_AUGMENTATION = _TRAINING | {"section": "Augmentation (not used by --strategy head)"}


@dataclass(frozen=True, kw_only=True)
class Config(Options):
    """All options of a run, in the order of the help text. None: the run chooses the value and reports it.

    Raises InputError, naming the option, for a value of the wrong type or out of its range.

    Example:
        >>> from finetune import Config
        >>> Config(strategy="partial", epochs=5).lr is None  # None: the strategy's own
        True
    """

    strategy: str = option(
        "auto",
        "Which layers are trained: head (only the linear head), partial (the head and the top stages), full (all "
        "layers, lower ones more slowly), train (all layers at one rate) or scratch (all layers, from random weights). "
        "auto chooses by the number of pictures per class.",
        choices=("auto", *STRATEGIES),
        commands=_TRAINS,
    )
    backbone: str = option(
        DEFAULT_BACKBONE,
        "Name of the pretrained network: any timm model, fewtune_conv4, or auto, which compares several on these "
        "pictures and takes the best.",
        metavar="NAME|auto",
        commands=_READS,
    )
    backbones: str | None = option(
        None,
        "Names of the networks that --backbone auto compares, separated by commas.",
        unset="the default list and the files in --weights-dir, as far as their weights are at hand",
        metavar="NAME,NAME",
        commands=_COMPARES,
    )
    max_ms: float | None = option(
        None,
        "Most milliseconds a picture, on this machine, that a network of --backbone auto may take.",
        above=0,
        unset="no bound",
        metavar="FLOAT",
        commands=_COMPARES,
    )
    weights: str | None = option(
        None,
        "File with the weights of the backbone: safetensors, or a torch file of plain tensors.",
        unset="the published weights, from the local cache or downloaded",
        metavar="FILE",
        commands=_READS,
        only_with=("strategy", _PRETRAINED),
    )
    weights_dir: str | None = option(
        None,
        "Folder with files of weights, NAME.safetensors for network NAME.",
        unset="none",
        metavar="DIR",
        commands=_READS,
        only_with=("strategy", _PRETRAINED),
    )
    epochs: int | None = option(
        None,
        "Number of passes over the training pictures. --strategy head needs none.",
        low=1,
        unset="chosen by strategy and number of pictures",
        commands=_TRAINS,
        only_with=_TRAINING["only_with"],
    )
    minutes: float | None = option(
        None,
        "Duration of the whole run in minutes, report included. Speeds are measured, and give the strategy, the number "
        "of epochs and, where need be, the number of pictures that are read.",
        unset="no limit",
    )
    image_size: int | None = option(
        None,
        "Side of the network's square input, in pixels.",
        low=8,
        high=MOST_SIDE,
        unset="the size the backbone was trained at",
        commands=_READS,
    )
    test_fraction: float = option(
        0.15,
        "Share of the pictures set aside to measure the result, where the folder has no test/. 0 sets none aside.",
        low=0,
        below=1,
        commands=_READS,
    )
    val_fraction: float = option(
        0.15,
        "Share of the pictures set aside to choose between settings, where the folder has no val/.",
        low=0,
        below=1,
        commands=_READS,
    )
    unlabelled: str | None = option(
        None,
        "Folder of pictures without labels, from which the head learns too as far as cross-validation shows that they "
        "help. Their sub-folders do not matter.",
        unset="none",
        metavar="DIR",
        commands=("inspect",),
        only_with=("strategy", _PRETRAINED),
    )
    background: str | None = option(
        None,
        "Folder of pictures of none of the classes, such as come in use, for `finetune predict --false-accept-rate`. "
        "The run keeps their features. From about ten on they outweigh the classes that are held out.",
        unset="none",
        metavar="DIR",
    )
    class_weights: str = option(
        "auto",
        "Whether rare classes weigh more in the loss. auto weighs them where the largest class has over 3 times the "
        "pictures of the smallest.",
        choices=("auto", "balanced", "none"),
        commands=_TRAINS,
    )
    device: str = option(
        "auto",
        "Device to compute on. auto uses a CUDA GPU where there is one.",
        choices=("auto", "cpu", "cuda"),
        commands=_READS,
    )
    seed: int = option(0, "Seed of all random numbers.", low=0, below=2**32, commands=_TRAINS)

    lr: float | str | None = option(
        None,
        "Learning rate of the head. Lower stages get less, see --stage-decay. The word auto has it found by a sweep "
        "before training.",
        low=0,
        metavar="FLOAT|auto",
        word=AUTO,
        unset="chosen by the strategy",
        **_TRAINING | {"commands": ()},
    )
    batch_size: int = option(
        32,
        "Number of pictures in each training step.",
        low=1,
        **_TRAINING,
    )
    patience: int | None = option(
        None,
        "Stop training after this many epochs without a better validation result.",
        low=1,
        unset="chosen by the number of epochs",
        **_TRAINING | {"commands": ()},
    )
    unfreeze: str | None = option(
        None,
        "Name of the lowest stage that --strategy partial trains.",
        unset="the top quarter of the stages, or more for unusual pictures",
        metavar="STAGE",
        **_TRAINING | {"only_with": ("strategy", ("partial",))},
    )
    optimizer: str = option(
        "adamw",
        "Optimiser of the training loop.",
        choices=("adamw", "sgd"),
        **_TRAINING,
    )
    weight_decay: float = option(
        0.02,
        "Weight decay: decoupled for AdamW, an L2 penalty for SGD. Norm layers and biases are not decayed.",
        low=0,
        **_TRAINING,
    )
    label_smoothing: float = option(
        0.05,
        "Share of the target probability that is spread over all classes.",
        low=0,
        below=1,
        **_TRAINING,
    )
    warmup: float = option(
        0.1,
        "Share of the training steps in which the learning rate rises.",
        low=0,
        below=1,
        **_TRAINING | {"commands": ()},
    )
    stage_decay: float | None = option(
        None,
        "Factor from the learning rate of one stage to that of the stage below it.",
        low=0,
        unset="chosen by the strategy",
        **_TRAINING,
    )
    keep: str = option(
        "best",
        "Weights to keep after training: best (the trained weights, a mixture of them with those before training, or "
        "the linear head, whichever is best on the validation pictures) or trained (the weights of the best epoch, "
        "even where the head is better).",
        choices=("best", "trained"),
        **_TRAINING | {"only_with": ("strategy", ("partial", "full", "train")), "commands": ()},
    )

    flip: bool = option(
        True,
        "Mirror training pictures left to right at random. Switch it off where left and right differ in meaning.",
        **_AUGMENTATION,
    )
    crop_scale: float = option(
        0.35,
        "Smallest share of a picture that a random crop keeps.",
        low=0.01,
        high=1,
        **_AUGMENTATION,
    )
    trivial_augment: bool = option(
        True,
        "Apply one random change of colour or shape to each training picture (TrivialAugment).",
        **_AUGMENTATION,
    )
    mixup: float = option(
        0.0,
        "Strength of mixup: alpha of its beta distribution. 0 switches it off.",
        low=0,
        **_AUGMENTATION,
    )
    views: int = option(
        12,
        "Number of augmented views of each picture that frozen stages compute.",
        low=1,
        **_AUGMENTATION | {"only_with": ("strategy", ("partial",))},
    )

    test_time: str = option(
        "plain",
        "Views of a picture that are averaged for one prediction.",
        choices=("plain", "flip", "ten-crop"),
        section=_OTHER,
    )
    drop_above: str | None = option(
        None,
        f"Remove the stages above this one, for a smaller and faster network. {BEST} keeps up to the stage with the "
        "best linear probe.",
        unset="no stage is removed",
        metavar="STAGE",
        section=_OTHER,
        commands=_TRAINS,
        only_with=("strategy", _PRETRAINED),
    )
    max_bad: float = option(
        0.1,
        "Stop where more than this share of the files is unreadable.",
        low=0,
        high=1,
        section=_OTHER,
        commands=_READS,
    )
    max_pixels: int = option(
        MAX_PIXELS, "Most pixels of a picture; larger ones count as unreadable.", low=1, section=_OTHER, commands=_READS
    )
    cache: bool = option(
        True,
        "Keep the outputs of frozen stages on disk for later runs. `finetune cache list` shows them.",
        section=_OTHER,
        commands=_READS,
    )
    keep_features: bool = option(
        True,
        "Keep the features of the pictures in the run folder, for `finetune extend` and `finetune forget`. They take "
        "about 10 kB a picture, and --strategy partial, full, train and scratch read the pictures once more for them.",
        section=_OTHER,
    )
    precision: str = option(
        "auto",
        "Number format of the computation. auto uses bfloat16 where the processor is faster with it.",
        choices=("auto", "float32", "bfloat16"),
        section=_OTHER,
        commands=_READS,
    )
    workers: int | None = option(
        None,
        "Number of processes or threads that decode pictures.",
        low=0,
        unset="one per CPU core",
        section=_OTHER,
        commands=_READS,
    )
    log: str = option(
        "none",
        "Where each epoch's metrics are sent, in addition to history.jsonl in the run folder.",
        choices=("none", "tensorboard", "wandb"),
        section=_OTHER,
    )

    def __post_init__(self) -> None:
        for name in ("weights", "weights_dir", "unlabelled", "background"):
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        super().__post_init__()
        self._check_backbone()
        if self.val_fraction + self.test_fraction >= 1:
            raise InputError("--val-fraction and --test-fraction leave nothing to train on: their sum must be below 1")
        if self.minutes is not None and self.minutes <= 0:
            raise InputError(f"--minutes must be above 0, not {self.minutes}")
        if self.minutes is not None and self.epochs is not None:
            raise InputError("--minutes and --epochs both set the length of the training: give one of them")
        if self.minutes is not None and self.unlabelled is not None:
            raise InputError("--minutes does not bound the reading of --unlabelled: give one of them")
        if self.minutes is not None and self.background is not None:
            raise InputError("--minutes does not bound the reading of --background: give one of them")
        if self.drop_above is not None and self.strategy == "scratch":
            raise InputError("--drop-above goes with pretrained stages, not with --strategy scratch")
        if self.unfreeze is not None and self.strategy not in ("auto", "partial"):
            raise InputError(f"--unfreeze goes with --strategy partial, not {self.strategy}")

    def _check_backbone(self) -> None:
        """--backbones implies --backbone auto, and both exclude what belongs to one network."""
        if self.backbones is not None:
            if self.backbone not in (AUTO, DEFAULT_BACKBONE):
                raise InputError(
                    f"--backbones compares networks and --backbone {self.backbone} names one; give one of them"
                )
            object.__setattr__(self, "backbone", AUTO)
        if self.weights is not None and self.weights_dir is not None:
            raise InputError("--weights names a file and --weights-dir a folder of files; give one of them")
        if self.backbone != AUTO:
            if self.max_ms is not None:
                raise InputError(f"--max-ms goes with --backbone auto; --backbone {self.backbone} is taken in any case")
            return
        if self.weights is not None:
            raise InputError(
                "--weights is the file of one network, and --backbone auto compares several; put the files into a "
                "folder as NAME.safetensors and give --weights-dir DIR"
            )
        if self.minutes is not None:
            raise InputError(
                "--minutes bounds a run with one network, and --backbone auto first compares several; choose one by "
                "`finetune probe --backbones`, then give --backbone NAME"
            )
        if self.strategy == "scratch":
            raise InputError("--backbone auto compares pretrained networks, which --strategy scratch does not use")
        for name, free in (("unfreeze", None), ("drop_above", BEST)):
            if getattr(self, name) not in (None, free):
                raise InputError(f"{flag(name)} names a stage of one network; with --backbone auto none is known yet")
