"""A run written down: metrics.json, predictions.csv, probabilities, pictures.csv, history.csv, and the classifier."""

from __future__ import annotations

from collections.abc import Sequence

from finetune.classifier.classifier import METRICS_FILE, Classifier
from finetune.classifier.run_folder import (
    HISTORY_FILE,
    PICTURES_FILE,
    PICTURES_HEADER,
    PREDICTIONS_FILE,
    PREDICTIONS_HEADER,
    PROBABILITIES_FILE,
    RunFolder,
    prediction_rows,
)
from finetune.features.table import SPLITS, Rows
from finetune.files import write_csv, write_json, write_tensors
from finetune.models.device import describe
from finetune.training.checkpoint import Course
from finetune.verdict import Measured


def write_run(run: RunFolder, classifier: Classifier, rows: Rows, measured: Measured, course: Course) -> None:
    """Fill the run folder; config.json goes last, because a run with class names in it can be loaded."""
    if course.history:
        write_csv(run.path / HISTORY_FILE, list(course.history[0]), [list(row.values()) for row in course.history])
    predictions = [
        (sample, split, row)
        for split, log_probabilities in measured.judged.items()
        for sample, row in zip(rows.samples(split), log_probabilities, strict=True)
    ]
    write_csv(run.path / PREDICTIONS_FILE, PREDICTIONS_HEADER, prediction_rows(classifier.classes, predictions))
    write_tensors(run.path / PROBABILITIES_FILE, measured.judged)
    write_csv(run.path / PICTURES_FILE, PICTURES_HEADER, _picture_rows(rows, measured.learned))
    write_json(run.path / METRICS_FILE, classifier.metrics)
    classifier.save(
        run.path,
        {
            "folder": str(rows.listing.root.resolve()),
            **({} if rows.listing.table is None else {"table": rows.listing.table}),
            "strategy": classifier.metrics["strategy"],
            "kept": classifier.metrics["kept"],
            "made_with": describe(classifier.fabric),
        },
    )


def _picture_rows(rows: Rows, learned: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        (sample.path, split, sample.label, rows.hashes[index], "yes" if split in learned else "no")
        for split in SPLITS
        for sample, index in zip(rows.samples(split), rows.indices(split), strict=True)
    ]
