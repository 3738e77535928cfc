"""The tables of a run folder: names, headings, and a prediction as a row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from finetune.data.folder import Sample

# Key of metrics.json under which an evaluation says what it is of.
EVALUATED = "evaluated"

PREDICTIONS_FILE = "predictions.csv"
# Log-probabilities of every class, (n, classes) for each split, in the order of the predictions.
PROBABILITIES_FILE = "probabilities.safetensors"
PREDICTIONS_HEADER = ("path", "split", "label", "predicted", "probability", "probability_of_label")
PICTURES_FILE = "pictures.csv"
# A row for each epoch, once training is over; `loggers` has them while it goes on.
HISTORY_FILE = "history.csv"
# learned: whether what was kept has learned from it.
PICTURES_HEADER = ("path", "split", "label", "sha256", "learned")


def prediction_rows(classes: Sequence[str], predictions: Sequence[tuple[Sample, str, Tensor]]) -> list[tuple[str, ...]]:
    """Of each picture, with its split and its log-probabilities (classes,), the row of predictions.csv."""
    table: list[tuple[str, ...]] = []
    for sample, split, log_probabilities in predictions:
        row = log_probabilities.exp()
        best, truth = int(row.argmax()), float(row[classes.index(sample.label)])
        table.append((sample.path, split, sample.label, classes[best], f"{float(row[best]):.6f}", f"{truth:.6f}"))
    return table
