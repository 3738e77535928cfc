"""The report of a run: one HTML file that opens anywhere, made from the run folder's files."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError

from finetune.classifier.classifier import CONFIG_FILE, METRICS_FILE
from finetune.config import Config
from finetune.data.folder import IN_MEMORY
from finetune.errors import InputError
from finetune.files import write_text
from finetune.options.fields import flag
from finetune.report.confusion import Explain, confusion_of, galleries, open_album, shown_in
from finetune.report.diagnosis import diagnose
from finetune.report.figures import (
    areas,
    calibration_error,
    head_inputs,
    kept_told,
    probe_chart,
    reliability_chart,
    result_chart,
    sweep_chart,
    training_charts,
)
from finetune.report.page import render
from finetune.report.results import RunResults, read_findings

REPORT_FILE = "report.html"
SPLITS = {"train": "training", "val": "validation", "test": "test"}
# Most rows of a list of files; metrics.json has the rest.
_LEDGER = 200


def write_report(run: str | Path, *, explain: Explain | None = None) -> Path:
    """Write report.html from the files of a run.

    Args:
        run: A run folder, or a folder that `evaluate` wrote.
        explain: Makes heat maps of the pictures whose paths it is given, for the confidently wrong predictions.

    Returns:
        The path of the page. Thumbnails are made from the run's folder of pictures; the page says where some are gone.

    Raises:
        InputError: If `run` holds no finished run, or a damaged one.
    """
    findings = read_findings(Path(run))
    path = findings.path / REPORT_FILE
    try:
        page = render("report.html.j2", **_values(findings, explain))
    # metrics.json and config.json are not validated in full: a wrong value raises where it is rendered.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError) as error:
        files = f"{findings.path / METRICS_FILE} or {CONFIG_FILE} beside it"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{files} is not as a run leaves it ({type(error).__name__}: {reason})") from error
    write_text(path, page)
    return path


def _values(findings: RunResults, explain: Explain | None) -> dict[str, Any]:
    """Everything that the template shows."""
    metrics, config = findings.metrics, findings.made["config"]
    confusion = confusion_of(findings.answers, findings.classes)
    shown = galleries(findings.answers, explained=explain is not None)
    album = open_album(findings.pictures, shown, confusion.cells, len(findings.answers))
    if explain is not None:
        album.explain([answer.path for gallery in shown if gallery.explained for answer in gallery.answers], explain)
    splits = [split for split in SPLITS if any(split == of for of, _ in findings.per_split)]
    return {
        "findings": findings,
        "metrics": metrics,
        "name": findings.pictures.name,
        "strategy": metrics.get("strategy") or findings.made.get("strategy"),
        "measured": SPLITS[metrics["split"]],
        "result_chart": result_chart(metrics),
        "diagnosis": None if findings.evaluated else _diagnosis(findings),
        "training_charts": training_charts(findings),
        "kept_told": kept_told(metrics),
        "head_inputs": head_inputs(metrics),
        "sweep_chart": sweep_chart(metrics.get("lr_sweep")),
        "probe_chart": probe_chart(metrics.get("probe_curve")),
        "confusion": confusion,
        "behind": [(cell, *shown_in(cell, album)) for cell in confusion.cells],
        "galleries": shown,
        "album": album,
        "areas": areas(findings),
        "reliability_chart": reliability_chart(findings),
        "calibration_error": calibration_error(findings),
        "splits": {split: SPLITS[split] for split in splits},
        "totals": {split: sum(n for (of, _), n in findings.per_split.items() if of == split) for split in splits},
        "ledger": _LEDGER,
        "command": command(findings),
        "changed": changed(config),
    }


def _diagnosis(findings: RunResults) -> Any:
    return diagnose(findings.metrics, findings.history, findings.made["config"], len(findings.classes))


def command(findings: RunResults) -> str:
    """The command line that repeats this run, or this evaluation."""
    if findings.evaluated:
        split = findings.evaluated.get("asked")
        words = ["finetune", "evaluate", findings.evaluated["run"], _pictures(findings.evaluated)]
        return shlex.join([*words, *(["--split", split] if split else []), "--out", str(findings.path)])
    words = ["finetune", "fit", _pictures(findings.made), "--out", str(findings.path)]
    for name, value in changed(findings.made["config"]).items():
        words += [flag(name if value else f"no_{name}")] if isinstance(value, bool) else [flag(name), str(value)]
    return shlex.join(words)


def _pictures(made: Mapping[str, Any]) -> str:
    """The folder or the table that a run or an evaluation was made of; TABLE.csv for a list or a data frame."""
    table = made.get("table", made["folder"])
    return "TABLE.csv" if table == IN_MEMORY else str(table)


def changed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that differ from their defaults, those of other versions of the package included."""
    defaults = {known.name: known.default for known in dataclasses.fields(Config)}
    return {
        name: value
        for name, value in config.items()
        if (name not in defaults or value != defaults[name]) and value is not None
    }
