"""On real photographs with real ImageNet weights, where FEWTUNE_DATA points at them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from killing import assert_same_weights, fit_until_stopped

import finetune
from finetune import Config

pytestmark = pytest.mark.slow

PER_CLASS = 40


@pytest.fixture(scope="module")
def cats_dogs(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linked(real_data, tmp_path_factory.mktemp("real") / "cats-dogs", PER_CLASS)


def linked(real_data: Path, folder: Path, per_class: int) -> Path:
    """Links to the first pictures of each class and split."""
    for split in ("train", "val"):
        for label in ("cats", "dogs"):
            (folder / split / label).mkdir(parents=True)
            for picture in sorted((real_data / "cats-dogs" / split / label).iterdir())[:per_class]:
                os.symlink(picture, folder / split / label / picture.name)
    return folder


@pytest.fixture(scope="module")
def options(real_data: Path) -> dict[str, object]:
    weights = real_data / "weights" / "tf_efficientnet_lite0.safetensors"
    return {"backbone": "tf_efficientnet_lite0", "weights": str(weights), "device": "cpu"}


@pytest.fixture(scope="module")
def small(real_data: Path) -> dict[str, object]:
    """A network several times faster, on smaller pictures, for what trains."""
    weights = real_data / "weights" / "tf_mobilenetv3_small_100.safetensors"
    return {"backbone": "tf_mobilenetv3_small_100", "weights": str(weights), "image_size": 128, "device": "cpu"}


@pytest.fixture(scope="module")
def run(cats_dogs: Path, options: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    finetune.fit(cats_dogs, run, strategy="head", **options)
    return run


def test_forty_cats_and_dogs_are_told_apart(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["val"]["accuracy"] >= 0.95
    assert metrics["val"]["n"] == 2 * PER_CLASS
    config = json.loads((run / "config.json").read_text())
    assert config["preprocessing"] == {
        "size": 224,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


def test_partial_never_ends_below_the_head(cats_dogs: Path, small: dict[str, object]) -> None:
    metrics = finetune.fit(cats_dogs, strategy="partial", epochs=1, **small).metrics
    head = finetune.fit(cats_dogs, strategy="head", **small).metrics
    assert metrics["val"]["accuracy"] >= head["val"]["accuracy"]


def test_full_killed_and_resumed_ends_with_the_same_weights(
    real_data: Path, small: dict[str, object], tmp_path: Path
) -> None:
    cats_dogs = linked(real_data, tmp_path / "cats-dogs", 12)
    choices = small | {"strategy": "full", "epochs": 2, "patience": 2, "workers": 1, "image_size": 64}
    finetune.fit(cats_dogs, tmp_path / "whole", **choices)
    fit_until_stopped(cats_dogs, tmp_path / "killed", choices)
    finetune.fit(cats_dogs, tmp_path / "killed", resume=True, **choices)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert (tmp_path / "whole" / "history.csv").read_text() == (tmp_path / "killed" / "history.csv").read_text()


def test_what_was_learned_fast_holds_in_plain_float32(cats_dogs: Path, run: Path) -> None:
    pictures = sorted((cats_dogs / "val").rglob("*.jpg"))[::2]
    fast = finetune.load(run, device="cpu").log_probabilities(pictures)[0].exp()
    plain = finetune.load(run, device="cpu", precision="float32").log_probabilities(pictures)[0].exp()
    assert (fast.argmax(1) == plain.argmax(1)).float().mean() >= 0.97
    torch.testing.assert_close(fast, plain, atol=0.1, rtol=0)


def test_weights_with_an_imagenet_classifier_are_taken(cats_dogs: Path, small: dict[str, object]) -> None:
    config = Config(strategy="head", **small)  # type: ignore[arg-type]
    assert finetune.fit(cats_dogs, config=config).metrics["val"]["accuracy"] >= 0.85
