"""The files of a run or of an evaluation, read and checked, as a report needs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from finetune.classifier.run_config import CONFIG_FILE, RunConfig, read_run_config
from finetune.classifier.run_folder import (
    HISTORY_FILE,
    PICTURES_FILE,
    PREDICTIONS_FILE,
    PREDICTIONS_HEADER,
    PROBABILITIES_FILE,
)
from finetune.classifier.run_metrics import (
    METRICS_FILE,
    EvaluationMetrics,
    EvaluationSource,
    RunMetrics,
    read_metrics,
)
from finetune.errors import InputError
from finetune.files.reading import read_tensors
from finetune.files.tables import read_csv
from finetune.files.tensors import FLOATING
from finetune.kept.history import Change, read_changes

# A log-probability is at most 0, apart from rounding.
_LARGEST = 1e-3
# Beyond this size a number of an epoch cannot be drawn.
_LARGEST_NUMBER = 1e100
# Columns of history.csv that are read.
_OF_AN_EPOCH = ("epoch", "train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Answer:
    """The prediction for one picture. path: below the folder of pictures. probability: of `predicted`;
    probability_of_label: of the true class."""

    path: str
    label: str
    predicted: str
    probability: float
    probability_of_label: float

    @property
    def right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class RunResults:
    """A run, or an evaluation of one, as its files describe it.

    answers: the predictions on the pictures that the figures are of. log_probabilities: a row (classes,) for each of
    these, None where a run has not kept them. pictures: their folder. per_split: how many of each (split, class).
    changes: of a run that was extended.
    """

    path: Path
    metrics: RunMetrics | EvaluationMetrics
    config: RunConfig
    classes: tuple[str, ...]
    answers: tuple[Answer, ...]
    log_probabilities: Tensor | None
    history: tuple[dict[str, float], ...]
    pictures: Path
    per_split: Counter[tuple[str, str]]
    changes: tuple[Change, ...] = ()

    @property
    def run(self) -> RunMetrics | None:
        """The metrics where they are of a run."""
        return self.metrics if isinstance(self.metrics, RunMetrics) else None

    @property
    def evaluated(self) -> EvaluationSource | None:
        """What was evaluated, where the metrics are of an evaluation."""
        return self.metrics.evaluated if isinstance(self.metrics, EvaluationMetrics) else None


def read_results(path: Path) -> RunResults:
    """Read the files of a run folder, or of a folder that `evaluate` wrote.

    Raises:
        InputError: If `path` is neither, or a file in it is damaged; the message names the file.
    """
    metrics = read_metrics(path) if (path / METRICS_FILE).exists() else None
    evaluated = metrics.evaluated if isinstance(metrics, EvaluationMetrics) else None
    if evaluated is None:
        source = path / CONFIG_FILE
        config = read_run_config(path)
        folder = config.folder
    else:
        source = path / METRICS_FILE
        config = RunConfig.from_dict(evaluated.config, str(source))
        folder = evaluated.folder
    if metrics is None:
        raise InputError(f"{path} holds no finished run: it has no {METRICS_FILE}")
    if config.classes is None:
        raise InputError(f"{path} holds no finished run: {source} has no classes")
    if folder is None:
        raise InputError(f"{source} names no folder of pictures: it is no run's")
    if not {"backbone", "seed"} <= config.config.keys():
        raise InputError(f"{source} may be damaged: backbone or seed is missing")
    missing = [name for name in config.classes if name not in metrics.per_class]
    if missing:
        raise InputError(
            f"{path / METRICS_FILE} does not belong to {path / CONFIG_FILE}: it lacks class {missing[0]!r}"
        )
    rows = _table(path / PREDICTIONS_FILE, PREDICTIONS_HEADER)
    per_split: Counter[tuple[str, str]] = Counter()
    if (path / PICTURES_FILE).exists():
        per_split.update((row["split"], row["label"]) for row in _table(path / PICTURES_FILE, ("split", "label")))
    else:
        per_split.update((row["split"], row["label"]) for row in rows)
    measured = [row for row in rows if row["split"] == metrics.split]
    return RunResults(
        path=path,
        metrics=metrics,
        config=config,
        classes=config.classes,
        answers=_answers(measured, config.classes, path),
        log_probabilities=_log_probabilities(path, metrics.split, len(measured), len(config.classes)),
        history=_history(path / HISTORY_FILE),
        pictures=Path(folder),
        per_split=per_split,
        changes=() if evaluated is not None else read_changes(path),
    )


def _answers(rows: list[dict[str, str]], classes: Sequence[str], path: Path) -> tuple[Answer, ...]:
    known = set(classes)
    try:
        answers = tuple(
            Answer(
                row["path"],
                row["label"],
                row["predicted"],
                float(row["probability"]),
                float(row["probability_of_label"]),
            )
            for row in rows
        )
        for answer in answers:
            if not known >= {answer.label, answer.predicted}:
                raise ValueError("it has a class that the run does not know")
            if not (0 <= answer.probability <= 1 and 0 <= answer.probability_of_label <= 1):
                raise ValueError("a probability is not between 0 and 1")
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path / PREDICTIONS_FILE} may be damaged: {error}") from error
    return answers


def _log_probabilities(path: Path, split: str | None, rows: int, classes: int) -> Tensor | None:
    file = path / PROBABILITIES_FILE
    if split is None or not file.exists():
        return None
    found = read_tensors(file).get(split)
    if found is None or found.shape[:1] != (rows,):
        raise InputError(f"{file} does not belong to {path / PREDICTIONS_FILE}: they are of different pictures")
    is_table = found.shape == (rows, classes) and found.dtype in FLOATING
    if not is_table or not bool((found <= _LARGEST).all()):
        raise InputError(f"{file} holds no log-probabilities of {classes} classes; it may be damaged")
    return found.float()


def _history(path: Path) -> tuple[dict[str, float], ...]:
    if not path.exists():
        return ()
    try:
        rows = tuple({name: float(row[name]) for name in _OF_AN_EPOCH} for row in _table(path, _OF_AN_EPOCH))
        if not all(abs(value) <= _LARGEST_NUMBER for row in rows for value in row.values()):
            raise ValueError("a number in it is not finite")
        return rows
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} may be damaged: {error}") from error


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table of the run that has at least these columns."""
    if not path.exists():
        raise InputError(f"{path} is missing: a report needs it")
    return read_csv(path, columns)
