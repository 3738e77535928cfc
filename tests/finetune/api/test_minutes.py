"""`--minutes`: the run ends in its time, with a measured classifier, and says what more time would buy."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeFolder
from killing import assert_same_weights
from rich.console import Console

import finetune
from finetune.errors import InputError
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.progress import Display
from finetune.training.loop import EpochResult

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "backbone": "fewtune_conv4", "image_size": 20, "device": "cpu", "workers": 0, "batch_size": 8,
    "trivial_augment": False,
}  # fmt: skip
TWO = {"red": 20, "green": 20}


def late(seconds: float, minutes: float = 1) -> float:
    """A start that leaves so many seconds of a budget."""
    return time.monotonic() - 60 * minutes + seconds


def test_with_enough_time_the_whole_training_is_planned_and_written_down(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=TWO, size=20)
    finetune.fit(folder, tmp_path / "run", minutes=20, strategy="full", **SMALL)
    metrics = read_json(tmp_path / "run" / "metrics.json")
    budget = metrics["budget"]
    assert budget["epochs_planned"] == budget["epochs_at_end"] >= metrics["epochs"] > 0
    assert (budget["minutes"], budget["pictures_found"], budget["pictures_read"]) == (20, 40, 40)
    assert 0 < budget["used_seconds"] == pytest.approx(metrics["seconds"], abs=0.1)
    assert budget["more_time"] is None
    assert f"{budget['planned_seconds']:.0f} s planned" in (tmp_path / "run" / "report.html").read_text()


def test_a_strategy_that_was_asked_for_and_does_not_fit_leaves_the_head(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=dict.fromkeys(("red", "green"), 100), size=20)
    said = io.StringIO()
    classifier = finetune.fit(
        folder, tmp_path / "run", minutes=10, strategy="full", started=late(2, 10),
        display=Display(Console(file=said, width=1000)), **SMALL,
    )  # fmt: skip
    metrics = classifier.metrics
    assert (metrics["strategy"], metrics["kept"], metrics["epochs"], metrics["interrupted"]) == (
        "full",
        "head",
        0,
        False,
    )
    told = (
        r"full does not fit in --minutes 10, so the linear head is kept; full with \d+ epochs needs .*: --minutes \d+ "
    )
    assert re.search(told, said.getvalue())
    assert re.search(told, metrics["reason"])
    assert re.search(told, metrics["budget"]["more_time"])
    assert not (tmp_path / "run" / "state").exists()
    assert (tmp_path / "run" / "report.html").exists()


def test_a_budget_that_is_over_before_every_class_was_read_is_refused_and_nothing_is_left(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=TWO, size=20)
    with pytest.raises(
        InputError, match=r"--minutes 1 is too short for .*: there is time to read 0 .*, and 2 classes need 8"
    ):
        finetune.fit(folder, tmp_path / "run", minutes=1, started=late(-1), **SMALL)
    assert not (tmp_path / "run").exists()


class Stopped(Exception):
    pass


def stop(result: EpochResult) -> None:
    if result.epoch == 1:
        raise Stopped


def stopped_after_an_epoch(folder: Path, run: Path, **options: Any) -> Path:
    """The record of the budget of a run that was stopped after its first epoch."""
    with pytest.raises(Stopped):
        finetune.fit(folder, run, on_epoch=stop, **options)
    return run / "state" / "budget.json"


def test_a_resumed_run_has_the_recorded_plan_and_the_weights_of_a_run_that_never_stopped(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=TWO, size=20)
    options: dict[str, Any] = {"minutes": 20, "strategy": "partial"} | SMALL
    whole = finetune.fit(folder, tmp_path / "whole", **options)
    stopped_after_an_epoch(folder, tmp_path / "run", **options)
    resumed = finetune.fit(folder, tmp_path / "run", resume=True, **options)
    assert resumed.metrics["epochs"] == whole.metrics["epochs"]
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_resumed_run_has_the_time_that_was_left(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=TWO, size=20)
    options: dict[str, Any] = {"minutes": 20, "strategy": "full", "keep": "trained"} | SMALL
    record = stopped_after_an_epoch(folder, tmp_path / "run", **options)
    kept = read_json(record)
    assert 0 < kept["spent"] < 1200
    write_json(record, kept | {"spent": 1199.0})
    metrics = finetune.fit(folder, tmp_path / "run", resume=True, **options).metrics
    assert (metrics["epochs"], metrics["kept"], metrics["interrupted"]) == (1, "full", False)
    assert metrics["budget"]["used_seconds"] > 1199


def test_a_training_that_becomes_slow_ends_at_the_last_epoch_that_fits(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(classes=TWO, size=20)
    epochs: list[EpochResult] = []
    clock, ahead = time.monotonic, 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock() + ahead)
    started = time.monotonic()
    ends = started + 60

    def slow_down(result: EpochResult) -> None:
        nonlocal ahead
        epochs.append(result)
        ahead += max(0.0, ends - time.monotonic() - 1)

    metrics = finetune.fit(
        folder, minutes=1, started=started, strategy="full", keep="trained", on_epoch=slow_down, **SMALL
    ).metrics
    assert len(epochs) == metrics["epochs"] == 1 < metrics["budget"]["epochs_planned"]
    assert (metrics["best_epoch"], metrics["kept"], metrics["interrupted"]) == (metrics["epochs"], "full", False)
    assert 59 < metrics["budget"]["used_seconds"] < 1.1 * 60
