"""Transfer learning that measures what it has and picks its own strategy."""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import would delay the handling of signals
if TYPE_CHECKING:
    from typing import Any

    from finetune.api.backbones import compare_backbones
    from finetune.api.changes.extend import extend
    from finetune.api.changes.forget import forget
    from finetune.api.changes.undo import drop_history, history, undo
    from finetune.api.demo import run_demo
    from finetune.api.evaluate import evaluate
    from finetune.api.fit import fit
    from finetune.api.inspect import Inspection, inspect_folder
    from finetune.api.preview import find_rate, probe_folder
    from finetune.app.serve import make_app
    from finetune.classifier.answers.prediction import Prediction
    from finetune.classifier.answers.sorting import sort_pictures
    from finetune.classifier.answers.table import write_table
    from finetune.classifier.classifier import Classifier
    from finetune.classifier.explain import HeatMap, heat_maps
    from finetune.classifier.export import export
    from finetune.classifier.loading import load
    from finetune.classifier.published.push import push_to_hub
    from finetune.config import Config
    from finetune.data.digits import write_digits
    from finetune.data.split_record import forget_splits
    from finetune.errors import FewtuneError, InputError, TrainingDiverged, UnreadablePicture
    from finetune.features.cache_files import clear_cache
    from finetune.kept.history import Change
    from finetune.linear.comparison import BackboneComparison
    from finetune.linear.probe import ProbeCurve
    from finetune.progress import Display
    from finetune.report.backbones import write_comparison
    from finetune.report.report import write_report
    from finetune.training.loop import EpochResult
    from finetune.training.lr_finder import Sweep

__all__ = [
    "BackboneComparison",
    "Change",
    "Classifier",
    "Config",
    "Display",
    "EpochResult",
    "FewtuneError",
    "HeatMap",
    "InputError",
    "Inspection",
    "Prediction",
    "ProbeCurve",
    "Sweep",
    "TrainingDiverged",
    "UnreadablePicture",
    "clear_cache",
    "compare_backbones",
    "drop_history",
    "evaluate",
    "export",
    "extend",
    "find_rate",
    "fit",
    "forget",
    "forget_splits",
    "heat_maps",
    "history",
    "inspect_folder",
    "load",
    "make_app",
    "probe_folder",
    "push_to_hub",
    "run_demo",
    "sort_pictures",
    "undo",
    "write_comparison",
    "write_digits",
    "write_report",
    "write_table",
]

_ROOMS = {
    "BackboneComparison": "linear.comparison",
    "Classifier": "classifier.classifier",
    "Config": "config",
    "Display": "progress",
    "Change": "kept.history",
    "EpochResult": "training.loop",
    "FewtuneError": "errors",
    "HeatMap": "classifier.explain",
    "InputError": "errors",
    "Inspection": "api.inspect",
    "Prediction": "classifier.answers.prediction",
    "ProbeCurve": "linear.probe",
    "Sweep": "training.lr_finder",
    "TrainingDiverged": "errors",
    "UnreadablePicture": "errors",
    "clear_cache": "features.cache_files",
    "compare_backbones": "api.backbones",
    "drop_history": "api.changes.undo",
    "evaluate": "api.evaluate",
    "export": "classifier.export",
    "extend": "api.changes.extend",
    "find_rate": "api.preview",
    "fit": "api.fit",
    "forget": "api.changes.forget",
    "forget_splits": "data.split_record",
    "heat_maps": "classifier.explain",
    "history": "api.changes.undo",
    "inspect_folder": "api.inspect",
    "load": "classifier.loading",
    "make_app": "app.serve",
    "probe_folder": "api.preview",
    "push_to_hub": "classifier.published.push",
    "run_demo": "api.demo",
    "sort_pictures": "classifier.answers.sorting",
    "undo": "api.changes.undo",
    "write_comparison": "report.backbones",
    "write_digits": "data.digits",
    "write_report": "report.report",
    "write_table": "classifier.answers.table",
}


def __getattr__(name: str) -> Any:
    # On first use: importing torch takes seconds, which `finetune --help` and a mistyped option should not wait for.
    if name in _ROOMS:
        import importlib

        return getattr(importlib.import_module(f"finetune.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
