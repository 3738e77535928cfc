"""`evaluate`: a finished run measured on labelled pictures, without those that it was trained on."""

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

from finetune.classifier.loading import load
from finetune.classifier.published.fetched import run_at
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
from finetune.files.folders import check_free, check_writable
from finetune.files.reading import read_json
from finetune.files.tables import read_csv, write_csv
from finetune.files.writing import write_tensors
from finetune.hub.address import is_address
from finetune.metrics import measure_predictions
from finetune.progress import Display
from finetune.report.report import write_report

# Use of a picture that the run has learned from, which cannot measure it.
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
    """Measure the classifier of a run on labelled pictures.

    Pictures of the run are recognised by their content. Those that it was trained on are left out, and so are those
    that it was chosen on, unless there are no others. Identical pictures under two labels are left out.

    Args:
        run: A run folder, or an address such as hf://user/name.
        folder: One sub-folder of pictures for each class, or the same below train/, val/ and test/; or a table, as
            `fit` takes it.
        split: Which of train, val and test to measure on, where there are such; by default test, else val, else all.
        out: Folder for metrics.json, predictions.csv, probabilities.safetensors and report.html; an evaluation that is
            there is replaced. None writes nothing.
        device: One of auto, cpu, cuda.
        display: Shows progress.

    Returns:
        The content of metrics.json, and the path of the report. Its `split` is "val" where the pictures are those that
        the run was chosen on, else "test".

    Raises:
        InputError: If a class is not one of the run's, no picture is left, or `out` holds something else.

    Example:
        >>> from finetune import evaluate
        >>> evaluate("runs/photos", "photos/", device="cpu")["n"] < 40  # without the pictures that the run trained on
        True
    """
    started = time.monotonic()
    given, display = run, display or Display()
    listing = list_pictures(folder, to_train=False)
    run = run_at(given, display)
    if out is not None:
        _check_out(Path(out), run, listing.root if listing.table is None else None)
    classifier = load(run, device=device)
    samples = _wanted(listing, split)
    unknown = sorted({sample.label for sample in samples} - set(classifier.classes))
    if unknown:
        raise InputError(
            f"{listing.name} has a class that {given} does not know: {unknown[0]!r}; "
            f"it knows {', '.join(classifier.classes)}"
        )
    found, index, contents = classifier.log_probabilities(
        [listing.root / sample.path for sample in samples], display=display
    )

    used = _used_by_content(run)
    if not used and is_address(given):
        display.say(f"{given} has no hashes of its pictures: those that it was trained on are not left out")
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
        raise InputError(f"{listing.name} cannot measure {given}: {why}")
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
        run=str(given if is_address(given) else run.resolve()),
        folder=str(listing.root.resolve()),
        asked=split,
        table=listing.table,
        config=read_json(run / CONFIG_FILE),
    )
    judged = [samples[position] for position in index[fair].tolist()]
    _write(Path(out), replace(metrics, evaluated=source), judged, found[fair], classifier.classes)
    report = write_report(out, classifier=classifier)
    return metrics.to_dict() | {"evaluated": source.to_dict(), "report": str(report)}


def place_for(run: Path, folder: Path) -> Path:
    """The folder below `run` for an evaluation on a folder or table, by the name of that; numbered where the folder of
    this name holds an evaluation on other pictures."""
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
    """Write the files of an evaluation; metrics.json is last, because with it there is an evaluation."""
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
    """The use of each picture of the run, by its content: LEARNED, "val" or "test"."""
    path = run / PICTURES_FILE
    if not path.exists():
        if read_run_config(run).folder is not None:
            raise InputError(f"{path} is missing: without it, pictures that the run was trained on cannot be left out")
        return {}  # saved by Classifier.save, without a run
    rows = read_csv(path, ("sha256", "learned", "split"))
    return {row["sha256"]: LEARNED if row["learned"] == "yes" else row["split"] for row in rows}
