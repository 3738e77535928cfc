"""A small Omniglot with splits, enough for every section of a report."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from drawings import character, omniglot_of
from fake_omniglot import runs, zipped
from PIL import Image

import fewshot.evaluation.intervals
import fewshot.evaluation.measure
import fewshot.evaluation.verification
import fewshot.report.hardest
import fewshot.report.map
from fewshot.omniglot.splits import EVALUATION, SPLITS, Split, characters_of

DRAWERS = 6  # enough drawings of a character for 5-shot
TESTED = ("Angelic", "Tengwar")
# What is trained on shares Tagalog with vinyals-test.
SMALL = {
    "background-train": ["Tagalog"],
    "background-val": ["Hebrew"],
    "evaluation": list(TESTED),
    "vinyals-test": ["Tagalog"],
    "koch-like-val": ["Angelic"],
    "koch-like-test": ["Tengwar"],
}


@contextmanager
def small_splits() -> Iterator[None]:
    """Small versions of the published splits, with fewer draws and a smaller map."""
    with pytest.MonkeyPatch.context() as patch:
        for name, alphabets in SMALL.items():
            patch.setitem(SPLITS, name, Split(characters_of(alphabets)))  # type: ignore[misc]
        patch.setattr(fewshot.evaluation.measure, "GRID", ((5, 1), (20, 5)))
        patch.setattr(fewshot.evaluation.verification, "CURVES", 20)
        patch.setattr(fewshot.evaluation.intervals, "RESAMPLINGS", 500)
        patch.setattr(fewshot.report.map, "_MOST_PICTURES", 60)
        patch.setattr(fewshot.report.hardest, "_QUESTIONS", 4_000)
        patch.setattr(fewshot.report.hardest, "_EPISODES_INSIDE", 200)
        yield


def small_omniglot(folder: Path) -> Path:
    """The archives: two alphabets for training, two for testing, and Lake's runs."""
    omniglot_of(folder, {"Tagalog": 3, "Hebrew": 2})
    files = {}
    for position, alphabet in enumerate(TESTED):
        for number in range(1, EVALUATION[alphabet] + 1):
            seed = 5000 + 100 * position + number
            for drawer in range(DRAWERS):
                file = io.BytesIO()
                Image.fromarray(character(seed, drawer) < 128).save(file, "PNG")
                name = f"{alphabet}/character{number:02d}/{seed:04d}_{drawer + 1:02d}.png"
                files[f"images_evaluation/{name}"] = file.getvalue()
    zipped(folder / "images_evaluation.zip", files)
    zipped(folder / "all_runs.zip", runs())
    return folder
