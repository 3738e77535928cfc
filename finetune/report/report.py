"""The report of a run: one HTML file, made from the files of the run folder."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune.classifier.classifier import Classifier
from finetune.classifier.run_metrics import RunMetrics
from finetune.config import Config
from finetune.data.folder import IN_MEMORY
from finetune.files.writing import write_text
from finetune.linear.probe import FAR
from finetune.open_set.unknown_metrics import MOST_REFUSED
from finetune.options.fields import flag
from finetune.report.backbones import cost_chart
from finetune.report.confusion import Album, confusion_of, galleries, open_album, shown_in
from finetune.report.diagnosis import diagnose
from finetune.report.figures import (
    areas,
    budget_told,
    calibration_error,
    head_inputs,
    kept_told,
    probe_chart,
    reliability_chart,
    result_chart,
    squared_errors,
    sweep_chart,
    training_charts,
)
from finetune.report.page import render
from finetune.report.results import RunResults, read_results
from finetune.report.unknown import oscr_chart, unknown_album
from finetune.strategies import NOT_MEASURED

REPORT_FILE = "report.html"
SPLITS = {"train": "training", "val": "validation", "test": "test"}
# Most rows of a list of files; all are in metrics.json.
_LEDGER = 200
# Most characters of the thumbnails of unlabelled pictures.
_UNLABELLED = 300_000


def write_report(run: str | Path, *, classifier: Classifier | None = None, at: Path | None = None) -> Path:
    """Write report.html from the files of a run.

    Args:
        run: A run folder, or a folder that `evaluate` wrote.
        classifier: Of the run, for heat maps of the confidently wrong predictions. None leaves them out.
        at: The folder that the files will be moved to, which the page names. None where they stay.

    Returns:
        The path of the page. Thumbnails are made from the run's folder of pictures; the page says where some are gone.

    Raises:
        InputError: If `run` holds no finished run, or a damaged one.

    Example:
        >>> from finetune import load, write_report
        >>> write_report("runs/photos", classifier=load("runs/photos", device="cpu")).name
        'report.html'
    """
    results = read_results(Path(run))
    path = results.path / REPORT_FILE
    results = results if at is None else dataclasses.replace(results, path=at)
    write_text(path, render("report.html.j2", **_values(results, classifier)))
    return path


def _values(results: RunResults, classifier: Classifier | None) -> dict[str, Any]:
    """Everything that the template shows."""
    metrics, run = results.metrics, results.run
    confusion = confusion_of(results.answers, results.classes)
    shown = galleries(results.answers, explained=classifier is not None)
    album = open_album(results.pictures, shown, confusion.cells, len(results.answers))
    if classifier is not None:
        explained = [answer.path for gallery in shown if gallery.explained for answer in gallery.answers]
        album.add_heat_maps(explained, classifier)
    splits = [split for split in SPLITS if any(split == of for of, _ in results.per_split)]
    strategy = metrics.strategy or results.config.strategy
    return {
        "results": results,
        "metrics": metrics,
        "run": run,
        "name": results.pictures.name,
        "strategy": strategy,
        "kept": None if run is None or run.kept == strategy else run.kept,
        "measured": None if metrics.split is None else SPLITS[metrics.split],
        "not_measured": NOT_MEASURED,
        "result_chart": result_chart(metrics),
        "diagnosis": None
        if run is None
        else diagnose(run, results.history, results.config.options(), len(results.classes)),
        "training_charts": training_charts(results),
        "kept_told": None if run is None else kept_told(run, results.config.options().keep),
        "budget_told": None if run is None or run.budget is None else budget_told(run, run.budget),
        "head_inputs": [] if run is None else head_inputs(run),
        "sweep_chart": None if run is None else sweep_chart(run.lr_sweep),
        "backbones_chart": None if run is None else cost_chart(run.backbones),
        "far": FAR,
        "probe_chart": None if run is None else probe_chart(run.probe_curve),
        "squared_errors": [] if run is None else squared_errors(run.probe_curve),
        "confusion": confusion,
        "behind": [(cell, *shown_in(cell, album)) for cell in confusion.cells],
        "galleries": shown,
        "album": album,
        "areas": areas(results),
        "reliability_chart": reliability_chart(results),
        "calibration_error": calibration_error(results),
        "unlabelled": None if run is None else run.unlabelled,
        "changes": results.changes,
        "to_label": _to_label(run),
        "unknown": None if run is None else run.unknown,
        "most_refused": MOST_REFUSED,
        "oscr_chart": None if run is None else oscr_chart(run.unknown),
        "unknown_album": None if run is None else unknown_album(run.unknown, results.pictures),
        "calibration": None if run is None else run.calibration,
        "splits": {split: SPLITS[split] for split in splits},
        "totals": {split: sum(n for (of, _), n in results.per_split.items() if of == split) for split in splits},
        "ledger": _LEDGER,
        "command": command(results),
        "changed": changed(results.config.config),
    }


def _to_label(run: RunMetrics | None) -> Album | None:
    """Thumbnails of the unlabelled pictures to label next."""
    if run is None or run.unlabelled is None or not run.unlabelled.label_next:
        return None
    album = Album(Path(run.unlabelled.folder))
    paths = [each.path for each in run.unlabelled.label_next]
    album.fill(paths, pictures=len(paths), characters=_UNLABELLED)
    return album


def command(results: RunResults) -> str:
    """The command line that repeats this run, or this evaluation."""
    evaluated, config = results.evaluated, results.config
    if evaluated is not None:
        words = ["finetune", "evaluate", evaluated.run, _pictures(evaluated.table, evaluated.folder)]
        asked = ["--split", evaluated.asked] if evaluated.asked else []
        return shlex.join([*words, *asked, "--out", str(results.path)])
    words = ["finetune", "fit", _pictures(config.table, str(config.folder)), "--out", str(results.path)]
    for name, value in changed(config.config).items():
        words += [flag(name if value else f"no_{name}")] if isinstance(value, bool) else [flag(name), str(value)]
    return shlex.join(words)


def _pictures(table: str | None, folder: str) -> str:
    """The folder or the table of pictures; TABLE.csv for a list or a data frame."""
    return "TABLE.csv" if table == IN_MEMORY else table or folder


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that differ from their defaults, those of other versions of the package included."""
    defaults = {known.name: known.default for known in dataclasses.fields(Config)}
    return {
        name: value
        for name, value in config.items()
        if (name not in defaults or value != defaults[name]) and value is not None
    }
