"""Suggestions for wrong names of options, commands and choices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

# Names in other tools -> names here, in order of preference. Only names that exist are suggested.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "rate": ("lr",),
    "lr_backbone": ("stage_decay",),
    "layer_decay": ("stage_decay",),
    "wd": ("weight_decay",),
    "epoch": ("epochs",),
    "num_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "max_epochs": ("epochs",),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "model": ("backbone", "network", "encoder"),
    "model_name": ("backbone", "network", "encoder"),
    "arch": ("backbone", "network", "encoder"),
    "architecture": ("backbone", "network", "encoder"),
    "network": ("backbone", "encoder"),
    "checkpoint": ("weights",),
    "pretrained": ("weights",),
    "img_size": ("image_size", "side"),
    "imgsz": ("image_size", "side"),
    "input_size": ("image_size", "side"),
    "resolution": ("image_size", "side"),
    "size": ("image_size", "side"),
    "method": ("strategy",),
    "mode": ("strategy",),
    "freeze": ("unfreeze",),
    "optim": ("optimizer",),
    "early_stopping": ("patience",),
    "smoothing": ("label_smoothing",),
    "class_weight": ("class_weights",),
    "val_split": ("val_fraction",),
    "val_size": ("val_fraction",),
    "validation_split": ("val_fraction",),
    "test_split": ("test_fraction",),
    "test_size": ("test_fraction",),
    "hflip": ("flip",),
    "tta": ("test_time",),
    "num_workers": ("workers",),
    "n_jobs": ("workers",),
    "jobs": ("workers",),
    "dtype": ("precision",),
    "amp": ("precision",),
    "fp16": ("precision",),
    "random_state": ("seed",),
    "random_seed": ("seed",),
    "gpu": ("device",),
    "cuda": ("device",),
    "logger": ("log",),
    "output": ("out",),
    "output_dir": ("out",),
    "force": ("overwrite",),
    "threshold": ("min_probability",),
    "confidence": ("min_probability",),
    "k": ("top",),
    "topk": ("top",),
}
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "train": ("fit",),
    "fit": ("train", "enrol"),
    "finetune": ("fit",),
    "learn": ("fit", "train"),
    "test": ("evaluate", "benchmark"),
    "eval": ("evaluate", "benchmark"),
    "score": ("evaluate", "benchmark"),
    "validate": ("evaluate",),
    "evaluate": ("benchmark",),
    "classify": ("predict", "recognize"),
    "infer": ("predict", "recognize"),
    "inference": ("predict", "recognize"),
    "predict": ("recognize",),
    "identify": ("recognize", "predict"),
    "recognise": ("recognize", "predict"),
    "check": ("inspect", "info"),
    "audit": ("inspect",),
    "convert": ("export",),
    "onnx": ("export",),
    "gradcam": ("explain",),
    "find_lr": ("lr-find",),
    "enroll": ("enrol",),
    "add": ("enrol",),
    "register": ("enrol",),
    "remove": ("forget",),
    "delete": ("forget",),
    "compare": ("verify",),
    "query": ("search",),
    "find": ("search",),
    "index": ("embed",),
    "encode": ("embed",),
}
CHOICES: Mapping[str, tuple[str, ...]] = {
    "linear": ("head",),
    "probe": ("head",),
    "linear_probe": ("head",),
    "frozen": ("head",),
    "top": ("partial",),
    "finetune": ("full",),
    "fine_tune": ("full",),
    "all": ("full",),
    "random": ("scratch",),
    "gpu": ("cuda",),
    "bf16": ("bfloat16",),
    "fp32": ("float32",),
    "float": ("float32",),
    "tta": ("flip",),
    "tb": ("tensorboard",),
    "pt2": ("torch-export",),
    "torch": ("torch-export",),
}


def suggestion(name: str, known: Iterable[str], synonyms: Mapping[str, tuple[str, ...]] = OPTIONS) -> str | None:
    """The name in `known` that is closest to `name`; None where none is close.

    Case, leading dashes, and dashes for underscores do not count. A synonym comes before a similar spelling.
    """
    spelled = {_plain(each): each for each in known}
    plain = _plain(name)
    for meant in (plain, *synonyms.get(plain, ())):
        if _plain(meant) in spelled:
            return spelled[_plain(meant)]
    close = difflib.get_close_matches(plain, spelled, n=1)
    return spelled[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], synonyms: Mapping[str, tuple[str, ...]] = OPTIONS) -> str:
    """The end of an error message, "; did you mean ...?"; empty where no name is close."""
    meant = suggestion(name, known, synonyms)
    return "" if meant is None else f"; did you mean {meant}?"


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").casefold()
