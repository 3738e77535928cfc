"""How good a finished run is on a folder of pictures, classes matched by name and training pictures left out."""

from __future__ import annotations

import csv
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from finetune.audit import Unreadable
from finetune.classifier import load, read_config
from finetune.errors import InputError
from finetune.folder import Sample, list_folder
from finetune.metrics import summary
from finetune.progress import Display
from finetune.verdict import PICTURES_FILE


def evaluate(
    run: str | Path,
    folder: str | Path,
    *,
    split: str | None = None,
    device: str = "auto",
    display: Display | None = None,
) -> dict[str, Any]:
    """Measure the classifier in `run` on `folder`: one sub-folder per class, or the same below train/, val/, test/.

    split: which of these, when there are such; by default test/, else val/, else all there is. Pictures that the run
    was trained on are recognised by content and left out. The result's `split` is "val" when some of the pictures
    served to choose in that run, else "test". InputError when a class of `folder` is not one of the run's, or nothing
    is left.
    """
    started = time.monotonic()
    display = display or Display()
    classifier = load(run, device=device)
    listing = list_folder(Path(folder), to_train=False)
    samples = _wanted(listing.samples, split, Path(folder))
    unknown = sorted({sample.label for sample in samples} - set(classifier.classes))
    if unknown:
        raise InputError(
            f"{folder} has a class that {run} does not know: {unknown[0]!r}; it knows {', '.join(classifier.classes)}"
        )
    found, index, contents = classifier.log_probabilities(
        [listing.root / sample.path for sample in samples], display=display
    )

    used = _splits_by_content(Path(run))
    served = [used.get(contents[position].sha256) for position in index.tolist()]
    fair = torch.tensor([split != "train" for split in served], dtype=torch.bool)
    labels = torch.tensor([classifier.classes.index(samples[position].label) for position in index.tolist()])
    unreadable = [
        asdict(Unreadable(samples[position].path, content.reason))
        for position, content in sorted(contents.items())
        if content.reason
    ]
    if not fair.any():
        why = "every readable picture in it was trained on" if served else "none of its pictures can be read"
        raise InputError(f"{folder} cannot measure {run}: {why}")
    counts = Counter(name for name in served if name)
    return {
        **summary(found[fair], labels[fair], classifier.classes),
        "split": "val" if counts["val"] else "test",
        "used_for_selection": counts["val"] > 0,
        "strategy": classifier.metrics.get("strategy"),
        "left_out_trained_on": counts["train"],
        "unreadable": unreadable,
        "seconds": round(time.monotonic() - started, 2),
    }


def _wanted(samples: tuple[Sample, ...], split: str | None, folder: Path) -> list[Sample]:
    there = {sample.split for sample in samples}
    if split is None:
        split = next((name for name in ("test", "val") if name in there), None)
    elif split not in there:
        raise InputError(f"{folder} has no {split}/ (--split)")
    return [sample for sample in samples if split is None or sample.split == split]


def _splits_by_content(run: Path) -> dict[str, str]:
    path = run / PICTURES_FILE
    if not path.exists():
        if "folder" in read_config(run):
            raise InputError(f"{path} is missing: without it, pictures that the run was trained on cannot be left out")
        return {}  # a classifier saved through the API alone
    with path.open(newline="", encoding="utf-8") as file:
        try:
            return {row["sha256"]: row["split"] for row in csv.DictReader(file)}
        except KeyError as error:
            raise InputError(f"{path} has no column {error}; it may be damaged") from error
