"""Every hyper-parameter, in one frozen dataclass that the API, the command line and the saved config.json share."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from finetune.errors import InputError
from finetune.images import MAX_PIXELS
from finetune.strategy import STRATEGIES


def _option(
    default: Any, about: str, *, choices: tuple[str, ...] = (), low: float | None = None, below: float | None = None
) -> Any:
    return field(default=default, metadata={"about": about, "choices": choices, "low": low, "below": below})


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a run is made. None means: chosen by the run, which says what it chose.

    Raises InputError, naming the option, for a value of the wrong type or out of its range.
    """

    backbone: str = _option("tf_efficientnet_lite0", "any timm model, by name")
    weights: str | None = _option(
        None, "file with the backbone's weights: safetensors, or a torch file of plain tensors"
    )
    strategy: str = _option("auto", "which layers learn", choices=("auto", *STRATEGIES))
    unfreeze: str | None = _option(None, "lowest stage that 'partial' trains, by name")
    epochs: int | None = _option(None, "passes over the training pictures, for strategies that need them", low=1)
    batch_size: int = _option(32, "pictures per step", low=1)
    optimizer: str = _option("adamw", "", choices=("adamw", "sgd"))
    lr: float | None = _option(None, "learning rate of the head", low=0)
    stage_decay: float | None = _option(None, "what a stage's learning rate keeps of the one above it", low=0)
    weight_decay: float = _option(0.02, "decoupled for AdamW, L2 for SGD; never on norms and biases", low=0)
    warmup: float = _option(0.1, "share of the steps during which the learning rate rises", low=0, below=1)
    label_smoothing: float = _option(0.05, "share of the target spread over all classes", low=0, below=1)
    class_weights: str = _option(
        "auto",
        "weigh rare classes up; auto: when the largest is over 3 times the smallest",
        choices=("auto", "balanced", "none"),
    )
    patience: int | None = _option(None, "epochs without a better validation result before training stops", low=1)
    image_size: int | None = _option(None, "side of the square that the network sees, in pixels", low=8)
    crop_scale: float = _option(0.35, "smallest share of a picture that a random crop keeps", low=0.01, below=1.01)
    flip: bool = _option(True, "mirror pictures left to right at random")
    trivial_augment: bool = _option(True, "one random colour or shape distortion a picture (TrivialAugment)")
    mixup: float = _option(0.0, "strength of mixup: alpha of its beta distribution, 0 for none", low=0)
    test_time: str = _option("plain", "views averaged for a prediction", choices=("plain", "flip", "ten-crop"))
    val_fraction: float = _option(0.15, "share of the pictures to choose on, when no val/ is given", low=0, below=1)
    test_fraction: float = _option(
        0.15, "share of the pictures to measure on, when no test/ is given; 0 for none", low=0, below=1
    )
    max_bad: float = _option(0.1, "share of unreadable files beyond which the run stops", low=0, below=1.01)
    max_pixels: int = _option(MAX_PIXELS, "largest picture that is decoded", low=1)
    precision: str = _option(
        "auto", "auto: bfloat16 where the processor is faster with it", choices=("auto", "float32", "bfloat16")
    )
    device: str = _option("auto", "", choices=("auto", "cpu", "cuda"))
    workers: int | None = _option(None, "processes that decode pictures", low=0)
    seed: int = _option(0, "of everything random", low=0, below=2**32)

    def __post_init__(self) -> None:
        if isinstance(self.weights, os.PathLike):
            object.__setattr__(self, "weights", os.fspath(self.weights))
        for option in dataclasses.fields(self):
            _check(option, getattr(self, option.name))
        if self.val_fraction + self.test_fraction >= 1:
            raise InputError("--val-fraction and --test-fraction leave nothing to train on: their sum must be below 1")
        if self.unfreeze is not None and self.strategy not in ("auto", "partial"):
            raise InputError(f"--unfreeze goes with --strategy partial, not {self.strategy}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The configuration saved as `values`. InputError for an unknown key."""
        known = {option.name for option in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def flag(name: str) -> str:
    """The command-line spelling of an option's name."""
    return "--" + name.replace("_", "-")


def kind(option: dataclasses.Field[Any]) -> type:
    """str, int, float or bool: the type of an option's values."""
    return {"str": str, "int": int, "float": float, "bool": bool}[str(option.type).removesuffix(" | None")]


def _check(option: dataclasses.Field[Any], value: Any) -> None:
    if value is None and str(option.type).endswith("| None"):
        return
    expected = kind(option)
    right = isinstance(value, (int, float) if expected is float else expected)
    if not right or (isinstance(value, bool) and expected is not bool):
        raise InputError(f"{flag(option.name)} must be of type {expected.__name__}, not {value!r}")
    if expected is float and not math.isfinite(value):
        raise InputError(f"{flag(option.name)} must be a finite number, not {value}")
    choices, low, below = (option.metadata[key] for key in ("choices", "low", "below"))
    if choices and value not in choices:
        raise InputError(f"{flag(option.name)} must be one of {', '.join(choices)}, not {value!r}")
    if low is not None and value < low:
        raise InputError(f"{flag(option.name)} must be at least {low}, not {value}")
    if below is not None and value >= below:
        raise InputError(f"{flag(option.name)} must be below {below}, not {value}")
