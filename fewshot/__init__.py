"""One-shot learning: embeddings, nearest neighbours, recognition from one example, Siamese training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from finetune.errors import FewtuneError, InputError, UnreadablePicture

if TYPE_CHECKING:
    from fewshot.embedding.embedder import Embedder
    from fewshot.estimators import EmbeddingTransformer, RecognizerClassifier
    from fewshot.evaluation.open_set import open_set
    from fewshot.evaluation.threshold import Calibration, calibrate
    from fewshot.recognition.operating_point import Share, Threshold
    from fewshot.recognition.recognizer import Recognition, Recognizer, Trial
    from fewshot.recognition.verifier import Verification, Verifier
    from fewshot.search.index import Index

__all__ = [
    "Calibration",
    "Embedder",
    "EmbeddingTransformer",
    "FewtuneError",
    "Index",
    "InputError",
    "Recognition",
    "Recognizer",
    "RecognizerClassifier",
    "Share",
    "Threshold",
    "Trial",
    "UnreadablePicture",
    "Verification",
    "Verifier",
    "calibrate",
    "open_set",
]

_ROOMS = {
    "Calibration": "evaluation.threshold",
    "Embedder": "embedding.embedder",
    "EmbeddingTransformer": "estimators",
    "Index": "search.index",
    "Recognition": "recognition.recognizer",
    "Recognizer": "recognition.recognizer",
    "RecognizerClassifier": "estimators",
    "Share": "recognition.operating_point",
    "Threshold": "recognition.operating_point",
    "Trial": "recognition.recognizer",
    "Verification": "recognition.verifier",
    "Verifier": "recognition.verifier",
    "calibrate": "evaluation.threshold",
    "open_set": "evaluation.open_set",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use: importing torch takes seconds, which `fewshot --help` does not need."""
    if name in _ROOMS:
        return getattr(import_module(f"fewshot.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
