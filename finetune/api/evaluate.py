"""How good a finished run is on a folder of pictures, classes matched by name and training pictures left out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.classifier.classifier import load
from finetune.classifier.run_config import CONFIG_FILE, read_run_config
from finetune.classifier.run_folder import (
    PICTURES_FILE,
    PREDICTIONS_FILE,
    PREDICTIONS_HEADER,
    PROBABILITIES_FILE,
    prediction_rows,
)
from finetune.classifier.run_metrics import (
    METRICS_FILE,
    EvaluationMetrics,
    EvaluationSource,
    read_metrics,
    write_metrics,
)
from finetune.data.folder import Listing, Sample
from finetune.data.splits import Unreadable, contradictory_labels
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError
from finetune.files import check_free, check_writable, read_csv, read_json, write_csv, write_tensors
from finetune.metrics import measure_predictions
from finetune.progress import Display
from finetune.report.report import write_report

# A picture that the run has learned from, and so cannot be measured on.
LEARNED = "learned"


def evaluate(
    run: str | Path,
    folder: Source,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    display: Display | None = None,
) -> dict[str, Any]:
    """Measure the classifier in `run` on `folder`: one sub-folder per class, the same below train/, val/, test/, or a
    table of pictures as `fit` takes it.

    split: which of these, when there are such; by default test/, else val/, else all there is. Pictures of the run are
    recognised by content: those that it was trained on are left out, and so are those that it was chosen on, unless
    there are no others. Identical pictures under two labels are left out. The result's `split` is "val" when it is of
    pictures that the run was chosen on, else "test". out: folder to leave metrics.json, predictions.csv,
    probabilities.safetensors and report.html in, in place of an evaluation that is there; None leaves nothing.
    InputError when a class of `folder` is not one of the run's, or nothing is left.
    """
    started = time.monotonic()
    display = display or Display()
    listing = list_pictures(folder, to_train=False)
    if out is not None:
        _check_out(Path(out), Path(run), listing.root if listing.table is None else None)
    classifier = load(run, device=device)
    samples = _wanted(listing, split)
    unknown = sorted({sample.label for sample in samples} - set(classifier.classes))
    if unknown:
        raise InputError(
            f"{listing.name} has a class that {run} does not know: {unknown[0]!r}; "
            f"it knows {', '.join(classifier.classes)}"
        )
    found, index, contents = classifier.log_probabilities(
        [listing.root / sample.path for sample in samples], display=display
    )

    used = _used_by_content(Path(run))
    served = [used.get(contents[position].sha256) for position in index.tolist()]
    doubtful = contradictory_labels(samples, {row: contents[row].sha256 for row in index.tolist()})
    certain = torch.tensor([row not in doubtful for row in index.tolist()], dtype=torch.bool)
    unseen = certain & torch.tensor([use not in (LEARNED, "val") for use in served], dtype=torch.bool)
    chosen_on = not bool(unseen.any())
    fair = certain & torch.tensor([use == "val" for use in served], dtype=torch.bool) if chosen_on else unseen
    labels = torch.tensor([classifier.classes.index(samples[position].label) for position in index.tolist()])
    unreadable = tuple(
        Unreadable(samples[position].path, content.reason)
        for position, content in sorted(contents.items())
        if content.reason
    )
    if not fair.any():
        why = "every readable picture in it was trained on" if served else "none of its pictures can be read"
        raise InputError(f"{listing.name} cannot measure {run}: {why}")
    counts = Counter(name for name in served if name)
    metrics = EvaluationMetrics(
        **vars(measure_predictions(found[fair], labels[fair], classifier.classes)),
        split="val" if chosen_on else "test",
        used_for_selection=chosen_on,
        strategy=None if classifier.run_metrics is None else classifier.run_metrics.strategy,
        left_out_trained_on=counts[LEARNED],
        left_out_chosen_on=0 if chosen_on else counts["val"],
        unreadable=unreadable,
        left_out=tuple(Unreadable(samples[row].path, reason) for row, reason in sorted(doubtful.items())),
        seconds=round(time.monotonic() - started, 2),
    )
    if out is None:
        return metrics.to_dict()
    source = EvaluationSource(
        run=str(Path(run).resolve()),
        folder=str(listing.root.resolve()),
        asked=split,
        table=listing.table,
        config=read_json(Path(run) / CONFIG_FILE),
    )
    judged = [samples[position] for position in index[fair].tolist()]
    _write(Path(out), replace(metrics, evaluated=source), judged, found[fair], classifier.classes)
    report = write_report(out, classifier=classifier)
    return metrics.to_dict() | {"evaluated": source.to_dict(), "report": str(report)}


def place_for(run: Path, folder: Path) -> Path:
    """Where an evaluation of `run` on a folder or table goes by default: below the run, by its name, numbered where
    another one of this name has its evaluation there."""
    name = (folder.stem if folder.is_file() else folder.resolve().name) or "pictures"
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    places = (run / "evaluations" / name for name in names)
    return next(place for place in places if _evaluated(place) in (None, str(folder.resolve())))


def _evaluated(place: Path) -> str | None:
    """The folder or table whose evaluation lies in `place`; None where there is none, "" for anything else."""
    if not (place / METRICS_FILE).is_file():
        return None
    try:
        found = read_metrics(place)
    except InputError:
        return ""
    if not isinstance(found, EvaluationMetrics) or found.evaluated is None:
        return ""
    return found.evaluated.table or found.evaluated.folder


def _check_out(out: Path, run: Path, folder: Path | None) -> None:
    """InputError, before an hour of reading, where an evaluation cannot be written to `out`. folder: the pictures'."""
    in_run = Path(os.path.realpath(out)).is_relative_to(os.path.realpath(run))
    check_writable(out, "--out", is_folder=True, untouched=[] if folder is None or in_run else [folder])
    if not _evaluated(out):
        check_free(out, "--out", "evaluation")


def _write(
    out: Path, metrics: EvaluationMetrics, samples: Sequence[Sample], log_probabilities: Tensor, classes: Sequence[str]
) -> None:
    """metrics.json goes last: with it there is an evaluation."""
    predictions = [(sample, metrics.split, row) for sample, row in zip(samples, log_probabilities, strict=True)]
    write_csv(out / PREDICTIONS_FILE, PREDICTIONS_HEADER, prediction_rows(classes, predictions))
    write_tensors(out / PROBABILITIES_FILE, {metrics.split: log_probabilities.float()})
    write_metrics(out, metrics)


def _wanted(listing: Listing, split: str | None) -> list[Sample]:
    there = {sample.split for sample in listing.samples}
    if split is None:
        split = next((name for name in ("test", "val") if name in there), None)
    elif split not in there:
        raise InputError(f"{listing.name} has no {split}/ (--split)")
    return [sample for sample in listing.samples if split is None or sample.split == split]


def _used_by_content(run: Path) -> dict[str, str]:
    """For what each picture of the run served, by its content: LEARNED, "val" or "test"."""
    path = run / PICTURES_FILE
    if not path.exists():
        if read_run_config(run).folder is not None:
            raise InputError(f"{path} is missing: without it, pictures that the run was trained on cannot be left out")
        return {}  # a classifier saved through the API alone
    rows = read_csv(path, ("sha256", "learned", "split"))
    return {row["sha256"]: LEARNED if row["learned"] == "yes" else row["split"] for row in rows}
