from __future__ import annotations

import csv
from pathlib import Path

import pytest

from finetune.classifier.answers.prediction import Prediction
from finetune.classifier.answers.table import check_table, write_table
from finetune.errors import InputError, UnreadablePicture

ANSWERS = [
    Prediction("cat", 0.75, (("cat", 0.75), ("-dog", 0.25)), "a,b.jpg"),
    UnreadablePicture("@bad.jpg", "not a picture"),
    Prediction("-dog", 0.5, (("-dog", 0.5), ("cat", 0.5)), "=HYPERLINK(1).jpg", unsure=True),
    Prediction("cat", 0.75, (("cat", 0.75), ("-dog", 0.25)), "other.jpg", unknown=True),
]


def test_a_row_for_each_picture_and_no_formula(tmp_path: Path) -> None:
    path = tmp_path / "new" / "predictions.csv"
    check_table(path)
    write_table(path, ANSWERS, top=2)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["path", "label", "probability", "unsure", "unknown", "error", "label_2", "probability_2"],
        ["a,b.jpg", "cat", "0.750000", "no", "no", "", "'-dog", "0.250000"],
        ["'@bad.jpg", "", "", "", "", "not a picture", "", ""],
        ["'=HYPERLINK(1).jpg", "'-dog", "0.500000", "yes", "no", "", "cat", "0.500000"],
        ["other.jpg", "cat", "0.750000", "no", "yes", "", "'-dog", "0.250000"],
    ]
    check_table(path)


def test_a_table_of_an_older_version_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("path,label,probability,unsure,error\na.jpg,cat,0.7,no,\n")
    check_table(tmp_path / "old.csv")


def test_only_a_table_of_predictions_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,label\na.jpg,cat\n")
    with pytest.raises(InputError, match=r"labels\.csv \(--csv\) exists"):
        check_table(tmp_path / "labels.csv")
    with pytest.raises(InputError, match="is a folder"):
        check_table(tmp_path)
