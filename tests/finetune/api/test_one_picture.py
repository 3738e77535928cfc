"""One picture of each class: the head is fitted, and measured only where the folder has a test/."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import MakeFolder

import finetune
from finetune import InputError
from finetune.classifier.run_metrics import RunMetrics, read_run_metrics
from finetune.cli.main import cli
from finetune.files.tables import read_csv

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "backbone": "fewtune_conv4",
    "image_size": 20,
    "device": "cpu",
    "workers": 0,
    "precision": "float32",
}
ONE = {"blue": 1, "green": 1, "red": 1}
WHY = "accuracy was not measured: no class has two different pictures"


@pytest.fixture
def single(make_folder: MakeFolder) -> Path:
    return make_folder("single", classes=ONE, size=20)


@pytest.fixture
def with_test(make_folder: MakeFolder, tmp_path: Path, single: Path) -> Path:
    """One training picture of each class, and ten pictures that measure."""
    shutil.copytree(single, tmp_path / "divided" / "train")
    shutil.copytree(make_folder("ten", classes=dict.fromkeys(ONE, 10), size=20, seed=1), tmp_path / "divided" / "test")
    return tmp_path / "divided"


def test_a_run_without_test_pictures_predicts_and_says_that_it_was_not_measured(single: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    classifier = finetune.fit(single, run, **SMALL)
    metrics = classifier.metrics
    assert [metrics[name] for name in ("accuracy", "interval", "balanced_accuracy", "loss", "split")] == [None] * 5
    assert (metrics["n"], metrics["val"], metrics["calibration"]) == (0, None, None)
    assert (metrics["strategy"], metrics["pictures"]) == ("head", {"train": 3, "val": 0, "test": 0})
    assert metrics["train"]["accuracy"] == 1.0
    assert classifier.temperature == 1.0
    loaded = finetune.load(run, device="cpu")
    assert loaded.predict(single / "red" / "000.png").label == "red"
    page = " ".join((run / "report.html").read_text().split())
    assert "Accuracy was not measured: no class has two different pictures; put pictures" in page
    assert 'id="confusion"' not in page
    assert read_csv(run / "predictions.csv", ["path"]) == []
    assert read_run_metrics(run).to_dict() == json.loads((run / "metrics.json").read_text()) == metrics


def test_the_same_head_is_measured_on_test_pictures(single: Path, with_test: Path, tmp_path: Path) -> None:
    metrics = finetune.fit(with_test, tmp_path / "run", **SMALL).metrics
    assert (metrics["split"], metrics["n"], metrics["val"]) == ("test", 30, None)
    assert metrics["accuracy"] > 0.6
    assert metrics["baselines"]["nearest_class_mean"]["accuracy"] > 0.6
    finetune.fit(single, tmp_path / "alone", **SMALL)
    evaluated = finetune.evaluate(tmp_path / "alone", with_test, device="cpu")
    assert evaluated["accuracy"] == pytest.approx(metrics["accuracy"], abs=0.04)
    assert (evaluated["split"], evaluated["n"]) == ("test", 30)
    page = " ".join((tmp_path / "run" / "report.html").read_text().split())
    assert "The probabilities are not calibrated: there are no validation pictures to do it on." in page


def test_the_export_is_checked_on_the_training_pictures(single: Path, tmp_path: Path) -> None:
    finetune.fit(single, tmp_path / "run", **SMALL)
    about = finetune.export(tmp_path / "run", tmp_path / "model.pt2", format="torch-export")
    assert about["parity"]["pictures"] == 3


def test_the_command_says_it_in_a_sentence_and_a_finished_run_is_not_repeated(single: Path, tmp_path: Path) -> None:
    words = ["--backbone", "fewtune_conv4", "--image-size", "20", "--device", "cpu", "--workers", "0"]
    fit = ["fit", str(single), "--out", str(tmp_path / "run"), *words]
    for command in (fit, [*fit, "--resume"]):
        done = CliRunner().invoke(cli, command)
        assert (done.exit_code, done.stdout.splitlines()[0].startswith(WHY)) == (0, True)
    refused = CliRunner().invoke(cli, ["evaluate", str(tmp_path / "run"), str(single), "--device", "cpu"])
    assert isinstance(refused.exception, InputError)
    assert "every readable picture in it was trained on" in str(refused.exception)


@pytest.mark.parametrize("strategy", ["partial", "full", "train", "scratch"])
def test_other_strategies_are_refused_and_leave_nothing(strategy: str, single: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^--strategy {strategy} needs validation pictures.*--strategy head$"):
        finetune.fit(single, tmp_path / "run", strategy=strategy, **SMALL)
    assert not (tmp_path / "run").exists()


def test_auto_takes_the_head_where_all_pictures_of_a_class_are_copies(single: Path) -> None:
    for label in ONE:
        for number in range(1, 25):
            shutil.copy(single / label / "000.png", single / label / f"{number:03d}.png")
    metrics = finetune.fit(single, epochs=1, **SMALL).metrics
    assert (metrics["strategy"], metrics["accuracy"], metrics["pictures"]["train"]) == ("head", None, 75)


def test_a_second_picture_of_one_class_is_for_validation(single: Path, make_folder: MakeFolder) -> None:
    shutil.copy(
        make_folder("more", classes={"red": 1}, size=20, seed=7) / "red" / "000.png", single / "red" / "001.png"
    )
    metrics = finetune.fit(single, **SMALL).metrics
    assert (metrics["split"], metrics["n"], metrics["val"]["n"]) == ("val", 1, 1)


def test_figures_of_a_run_are_known_together_or_not_at_all(single: Path) -> None:
    metrics = finetune.fit(single, **SMALL).metrics
    with pytest.raises(InputError, match="belong together"):
        RunMetrics.from_dict(metrics | {"accuracy": 0.5})
