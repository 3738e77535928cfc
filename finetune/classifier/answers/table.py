"""Predictions as a CSV table, in which no cell is a formula to a spreadsheet."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from finetune.classifier.answers.prediction import Prediction
from finetune.errors import InputError, UnreadablePicture
from finetune.files.tables import write_csv

COLUMNS = ("path", "label", "probability", "unsure", "unknown", "error")
# First columns of the tables of every version, by which a table is known.
_FIRST = COLUMNS[:4]


def check_table(path: Path) -> None:
    """InputError where `path` holds anything but a table of predictions, which may be replaced."""
    if path.is_dir():
        raise InputError(f"{path} (--csv) is a folder; give the name of a file")
    if path.exists():
        with path.open("rb") as file:
            first = file.readline()
        if not first.startswith(",".join(_FIRST).encode()):
            raise InputError(f"{path} (--csv) exists and is no table of predictions; choose another name")


def write_table(path: Path, answers: Iterable[Prediction | UnreadablePicture], *, top: int) -> None:
    """Write predictions as a CSV table, one row per picture.

    A row has the path, label, probability, whether the answer is unsure or unknown, the reason for an unreadable
    picture, and the next classes. The file is complete or not written. A text that a spreadsheet would run as a
    formula, because it begins with = + - @, a tab or a line break, gets a ' in front, and so does a text that begins
    with '; without the first ' of such a cell, the text is the original one.

    Args:
        path: File to write.
        answers: Predictions, as `Classifier.predict_all` gives them, or the stream of `Classifier.predict_stream`.
        top: Number of classes in a row.

    Raises:
        InputError: If the file cannot be written.

    Example:
        >>> from finetune import load, write_table
        >>> write_table(Path("answers.csv"), load("runs/photos", device="cpu").predict_all(["new.png"]), top=2)
    """
    header = list(COLUMNS)
    for rank in range(2, top + 1):
        header += [f"label_{rank}", f"probability_{rank}"]
    write_csv(path, header, (_row(answer, len(header)) for answer in answers))


def _row(answer: Prediction | UnreadablePicture, width: int) -> list[str]:
    if isinstance(answer, UnreadablePicture):
        row = [answer.source, "", "", "", "", answer.reason]
    else:
        flags = ["yes" if flag else "no" for flag in (answer.unsure, answer.unknown)]
        row = [answer.path or "", answer.label, f"{answer.probability:.6f}", *flags, ""]
        for label, probability in answer.top[1:]:
            row += [label, f"{probability:.6f}"]
    return row + [""] * (width - len(row))
