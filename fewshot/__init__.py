"""One-shot learning: embeddings, nearest neighbours, recognition from one example, Siamese training."""

from __future__ import annotations

from finetune.errors import FewtuneError, InputError, UnreadablePicture

TYPE_CHECKING = False  # as in typing, whose import would delay the handling of signals
if TYPE_CHECKING:
    from typing import Any

    from fewshot.app.serve import make_app
    from fewshot.cli.demo import run_demo
    from fewshot.cli.info import info
    from fewshot.collection.merging import merge_parts
    from fewshot.collection.ray_engine import RayEngine
    from fewshot.collection.ray_index import embed_with_ray
    from fewshot.collection.shards import embed_shard
    from fewshot.embedding.embedder import Embedder, Embeddings
    from fewshot.estimators import EmbeddingTransformer, RecognizerClassifier
    from fewshot.evaluation.benchmark import benchmark
    from fewshot.evaluation.threshold import Calibration, calibrate
    from fewshot.omniglot.download import download
    from fewshot.recognition.answers import Recognition, Trial
    from fewshot.recognition.operating_point import Share, Threshold
    from fewshot.recognition.recognizer import Recognizer, change_gallery
    from fewshot.recognition.verifier import Verification, Verifier
    from fewshot.report.report import write_report
    from fewshot.search.index import Index
    from fewshot.search.neighbours import Neighbour
    from fewshot.search.picture_index import embed_folder, open_index, search_pictures
    from fewshot.search.table.lance_index import LanceIndex
    from fewshot.training.config import SiameseConfig
    from fewshot.training.train import train_folder, train_omniglot
    from finetune.open_set.metrics import open_set

__all__ = [
    "Calibration",
    "Embedder",
    "EmbeddingTransformer",
    "Embeddings",
    "FewtuneError",
    "Index",
    "InputError",
    "LanceIndex",
    "Neighbour",
    "RayEngine",
    "Recognition",
    "Recognizer",
    "RecognizerClassifier",
    "Share",
    "SiameseConfig",
    "Threshold",
    "Trial",
    "UnreadablePicture",
    "Verification",
    "Verifier",
    "benchmark",
    "calibrate",
    "change_gallery",
    "download",
    "embed_folder",
    "embed_shard",
    "embed_with_ray",
    "info",
    "make_app",
    "merge_parts",
    "open_index",
    "open_set",
    "run_demo",
    "search_pictures",
    "train_folder",
    "train_omniglot",
    "write_report",
]

_ROOMS = {
    "Calibration": "evaluation.threshold",
    "Embedder": "embedding.embedder",
    "EmbeddingTransformer": "estimators",
    "Embeddings": "embedding.embedder",
    "Index": "search.index",
    "LanceIndex": "search.table.lance_index",
    "Neighbour": "search.neighbours",
    "RayEngine": "collection.ray_engine",
    "Recognition": "recognition.answers",
    "Recognizer": "recognition.recognizer",
    "RecognizerClassifier": "estimators",
    "Share": "recognition.operating_point",
    "SiameseConfig": "training.config",
    "Threshold": "recognition.operating_point",
    "Trial": "recognition.answers",
    "Verification": "recognition.verifier",
    "Verifier": "recognition.verifier",
    "benchmark": "evaluation.benchmark",
    "calibrate": "evaluation.threshold",
    "change_gallery": "recognition.recognizer",
    "download": "omniglot.download",
    "embed_folder": "search.picture_index",
    "embed_shard": "collection.shards",
    "embed_with_ray": "collection.ray_index",
    "info": "cli.info",
    "make_app": "app.serve",
    "merge_parts": "collection.merging",
    "open_index": "search.picture_index",
    "open_set": "finetune.open_set.metrics",
    "run_demo": "cli.demo",
    "search_pictures": "search.picture_index",
    "train_folder": "training.train",
    "train_omniglot": "training.train",
    "write_report": "report.report",
}


def __getattr__(name: str) -> Any:
    # On first use: importing torch takes seconds, which `fewshot --help` should not wait for.
    if name in _ROOMS:
        from importlib import import_module

        room = _ROOMS[name]
        return getattr(import_module(room if room.startswith("finetune.") else f"fewshot.{room}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
