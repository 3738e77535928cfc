"""CSV tables, written and read."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finetune.errors import InputError
from finetune.files.writing import write_text


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header that names these `columns`, and maybe others. InputError when it is missing
    or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, there = list(reader), set(reader.fieldnames or ())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is no CSV table ({error}); it may be damaged") from error
    lacking = [column for column in columns if column not in there]
    if lacking:
        raise InputError(f"{path} has no column {lacking[0]}; it may be damaged")
    if any(row[column] is None for row in rows for column in columns):
        raise InputError(f"{path} has a row that is cut short; it may be damaged")
    return rows
