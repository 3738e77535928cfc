"""`--keep trained`: what a strategy trained is kept, whatever validation says."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeFolder, write_bars
from killing import assert_same_weights
from rich.console import Console

import finetune
from finetune import Config
from finetune.progress import Display
from finetune.training.loop import EpochResult

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "backbone": "fewtune_conv4", "image_size": 20, "device": "cpu", "workers": 0, "batch_size": 8,
    "trivial_augment": False,
}  # fmt: skip
TWO = {"red": 20, "green": 20}


@pytest.mark.parametrize("strategy", ["partial", "full", "train"])
def test_a_training_that_is_worse_than_the_head_is_kept_and_measured_as_such(
    strategy: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=TWO, size=20)
    ruinous = {"strategy": strategy, "epochs": 2, "lr": 1.0} | SMALL
    best = finetune.fit(folder, **ruinous).metrics
    assert (best["kept"], best["best_epoch"]) == ("head", 0)
    classifier = finetune.fit(folder, tmp_path / "run", keep="trained", **ruinous)
    metrics = classifier.metrics
    assert (metrics["kept"], metrics["best_epoch"], metrics["share_of_the_way"]) == (strategy, 2, 1.0)
    assert metrics["val"]["loss"] > best["val"]["loss"]
    picture = folder / "red" / "000.png"
    assert finetune.load(tmp_path / "run", device="cpu").predict(picture) == classifier.predict(picture)
    page = " ".join((tmp_path / "run" / "report.html").read_text().split())
    assert "The weights of epoch 2 were kept. They were not compared with the linear head" in page
    assert "No mixture" not in page


def test_the_weights_are_those_of_the_best_epoch_and_never_a_mixture(tmp_path: Path) -> None:
    folder = write_bars(tmp_path / "bars", 50)
    options: dict[str, Any] = {
        "strategy": "full", "drop_above": "stem", "epochs": 4, "lr": 1e-2, "crop_scale": 1.0,
        "val_fraction": 0.5, "test_fraction": 0,
    }  # fmt: skip
    assert finetune.fit(folder, **options, **SMALL).metrics["share_of_the_way"] < 1
    epochs: list[EpochResult] = []
    metrics = finetune.fit(folder, keep="trained", on_epoch=epochs.append, **options, **SMALL).metrics
    best = max(epochs, key=lambda epoch: (epoch.val_accuracy, -epoch.val_loss))
    assert (metrics["best_epoch"], metrics["share_of_the_way"]) == (best.epoch, 1.0)
    assert metrics["val"]["accuracy"] == pytest.approx(best.val_accuracy)


def test_it_holds_for_the_strategy_that_auto_takes(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"red": 40, "green": 40}, size=20)
    options: dict[str, Any] = {"epochs": 1, "lr": 1.0, "unfreeze": "blocks.3", **SMALL}
    assert finetune.fit(folder, **options).metrics["kept"] == "head"
    metrics = finetune.fit(folder, tmp_path / "auto", keep="trained", **options).metrics
    assert (metrics["strategy"], metrics["kept"]) == ("partial", "partial")
    finetune.fit(folder, tmp_path / "named", keep="trained", strategy="partial", **options)
    assert_same_weights(tmp_path / "auto", tmp_path / "named")


def test_the_score_of_the_head_does_not_stop_the_training(make_folder: MakeFolder) -> None:
    folder = make_folder(classes=TWO, size=20)
    options: dict[str, Any] = {"strategy": "full", "epochs": 4, "patience": 1, "lr": 0.05, **SMALL}
    metrics = finetune.fit(folder, keep="trained", **options).metrics
    assert finetune.fit(folder, **options).metrics["epochs"] < metrics["epochs"]


def test_a_run_that_was_stopped_keeps_the_trained_weights_and_resumes_to_the_same(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, run = make_folder(classes=TWO, size=20), tmp_path / "run"
    options: dict[str, Any] = {"strategy": "full", "epochs": 3, "lr": 1.0, "keep": "trained", **SMALL}

    def stop(epoch: EpochResult) -> None:
        raise KeyboardInterrupt

    stopped = finetune.fit(folder, run, on_epoch=stop, **options).metrics
    assert (stopped["kept"], stopped["interrupted"], stopped["epochs"]) == ("full", True, 1)
    finetune.fit(folder, run, resume=True, **options)
    finetune.fit(folder, tmp_path / "whole", **options)
    assert_same_weights(run, tmp_path / "whole")


def test_it_has_no_effect_where_nothing_is_trained_or_nothing_else_could_be_kept(make_folder: MakeFolder) -> None:
    folder, said = make_folder(classes=TWO, size=20), io.StringIO()
    plain = finetune.fit(folder, strategy="head", **SMALL)
    display = Display(Console(file=said, width=200))
    other = finetune.fit(folder, strategy="head", keep="trained", display=display, **SMALL)
    assert torch.equal(plain.network.head.weight, other.network.head.weight)
    assert "--keep, --trivial-augment have no effect with strategy head." in said.getvalue()
    assert Config(keep="trained").without_effect(strategy="scratch") == ["keep"]
    assert Config(keep="trained").without_effect(strategy="partial") == []
