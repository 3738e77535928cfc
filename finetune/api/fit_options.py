"""The options of `fit` as typed keywords, for editors and type checkers."""

from __future__ import annotations

import os
from typing import Literal, TypedDict


class FitOptions(TypedDict, total=False):
    """The fields of `Config`, none of them required. Literals beside `str` are what an editor completes."""

    strategy: Literal["auto", "head", "partial", "full", "train", "scratch"] | str
    backbone: str
    backbones: str | None
    max_ms: float | None
    weights: str | os.PathLike[str] | None
    weights_dir: str | os.PathLike[str] | None
    epochs: int | None
    minutes: float | None
    image_size: int | None
    test_fraction: float
    val_fraction: float
    unlabelled: str | os.PathLike[str] | None
    background: str | os.PathLike[str] | None
    class_weights: Literal["auto", "balanced", "none"] | str
    device: Literal["auto", "cpu", "cuda"] | str
    seed: int
    lr: float | str | None
    batch_size: int
    patience: int | None
    unfreeze: str | None
    optimizer: Literal["adamw", "sgd"] | str
    weight_decay: float
    label_smoothing: float
    warmup: float
    stage_decay: float | None
    keep: Literal["best", "trained"] | str
    flip: bool
    crop_scale: float
    trivial_augment: bool
    mixup: float
    views: int
    test_time: Literal["plain", "flip", "ten-crop"] | str
    drop_above: str | None
    max_bad: float
    max_pixels: int
    cache: bool
    keep_features: bool
    precision: Literal["auto", "float32", "bfloat16"] | str
    workers: int | None
    log: Literal["none", "tensorboard", "wandb"] | str
