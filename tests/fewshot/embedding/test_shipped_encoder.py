"""The encoder that ships: its size, its fingerprint and its recorded accuracy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drawings import character

import fewshot.embedding.embedder
from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.protocols import distance_by, lake
from fewshot.omniglot.dataset import lake_runs
from fewshot.omniglot.splits import BACKGROUND, characters_of


def test_the_shipped_encoder_is_small_and_is_the_measured_one() -> None:
    folder = Path(fewshot.embedding.embedder.__file__).parent / "weights" / "omniglot"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 4_000_000
    shipped = Embedder.load("omniglot", device="cpu")
    results = Path(__file__).parents[3] / "benchmarks" / "results" / "omniglot.json"
    assert json.loads(results.read_text())["rows"]["background"]["fingerprint"] == shipped.fingerprint
    assert shipped.trained_on == characters_of(BACKGROUND)


def test_the_shipped_encoder_distinguishes_new_characters_from_one_example() -> None:
    support, query = ([255 - character(number, drawer) for number in range(20)] for drawer in (0, 1))
    embedder = Embedder.load("omniglot", device="cpu")
    nearest = (embedder.embed(query) @ embedder.embed(support).T).argmax(1)
    assert (nearest == np.arange(20)).mean() >= 0.8


@pytest.mark.slow
def test_the_shipped_encoder_reaches_its_recorded_accuracy_on_lake(real_data: Path) -> None:
    results = Path(__file__).parents[3] / "benchmarks" / "results" / "omniglot.json"
    (recorded,) = (
        result
        for result in json.loads(results.read_text())["rows"]["background"]["results"]
        if result["protocol"] == "lake"
    )
    shipped = Embedder.load("omniglot", device="cpu")
    measured = lake(distance_by(shipped.embed_drawings), lake_runs(real_data), trained_on=shipped.trained_on)
    # Another machine adds up in another order: a question or two may tip.
    assert measured.accuracy == pytest.approx(recorded["accuracy"], abs=0.0051)
    assert measured.accuracy > 0.975
