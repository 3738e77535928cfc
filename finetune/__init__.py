"""Transfer learning that measures what it has and picks its own strategy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune.api.evaluate import evaluate
    from finetune.api.fit import fit
    from finetune.classifier.classifier import Classifier, Prediction, load
    from finetune.config import Config
    from finetune.errors import FewtuneError, InputError, TrainingDiverged, UnreadablePicture
    from finetune.training.loop import EpochResult

__all__ = [
    "Classifier",
    "Config",
    "EpochResult",
    "FewtuneError",
    "InputError",
    "Prediction",
    "TrainingDiverged",
    "UnreadablePicture",
    "evaluate",
    "fit",
    "load",
]

_HOME = {
    "Classifier": "classifier.classifier",
    "Config": "config",
    "EpochResult": "training.loop",
    "FewtuneError": "errors",
    "InputError": "errors",
    "Prediction": "classifier.classifier",
    "TrainingDiverged": "errors",
    "UnreadablePicture": "errors",
    "evaluate": "api.evaluate",
    "fit": "api.fit",
    "load": "classifier.classifier",
}


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, which `finetune --help` and a mistyped option need not wait for.
    if name not in _HOME:
        raise AttributeError(f"module 'finetune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"finetune.{_HOME[name]}"), name)
