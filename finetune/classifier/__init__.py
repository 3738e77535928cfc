"""What a user keeps: the classifier, its run folder, probabilities, export."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HANDED_ON = ("Classifier", "Prediction", "_unpickled")


def __getattr__(name: str) -> Any:
    # Pickles of classifiers from before the package had rooms name `finetune.classifier`.
    if name in _HANDED_ON:
        return getattr(import_module("finetune.classifier.classifier"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
