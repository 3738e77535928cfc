"""The head is shown and saved before training; training improves on it, or leaves it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeFolder
from killing import assert_same_weights
from rich.console import Console

import finetune
from finetune.progress import Advance, Display
from finetune.training.loop import EpochResult

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {
    "backbone": "fewtune_conv4", "image_size": 20, "device": "cpu", "workers": 0, "trivial_augment": False,
    "batch_size": 8,
}  # fmt: skip
TWO = {"green": 24, "red": 24}


@pytest.fixture
def folder(make_folder: MakeFolder) -> Path:
    return make_folder(classes=TWO, noise=60)


class CtrlC(Display):
    """Ctrl-C as soon as a picture is done below the bar of this name."""

    def __init__(self, label: str):
        super().__init__()
        self._label = label

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        def advance(done: int, note: str) -> None:
            if label == self._label and done > 0:
                raise KeyboardInterrupt

        yield advance


def test_the_head_is_shown_and_saved_before_training_begins(folder: Path, tmp_path: Path) -> None:
    run, shown = tmp_path / "run", io.StringIO()
    seen: list[tuple[str, bool]] = []

    def look(epoch: EpochResult) -> None:
        loaded = finetune.load(run, device="cpu")
        assert loaded.predict(folder / "red" / "000.png").label in TWO
        assert "head: accuracy" in shown.getvalue()
        assert "training full: about" in shown.getvalue()
        assert "Ctrl-C" in shown.getvalue()
        seen.append((loaded.metrics["kept"], loaded.metrics["interrupted"]))

    display = Display(Console(file=shown, width=200))
    finetune.fit(folder, run, strategy="full", epochs=2, on_epoch=look, display=display, **SMALL)
    assert seen == [("head", True)] * 2
    assert json.loads((run / "metrics.json").read_text())["interrupted"] is False


@pytest.mark.parametrize(("strategy", "label"), [("full", "training"), ("partial", "frozen stages")])
def test_ctrl_c_at_any_moment_of_training_keeps_the_head_and_can_be_resumed(
    strategy: str, label: str, folder: Path, tmp_path: Path
) -> None:
    run, options = tmp_path / "run", {"strategy": strategy, "epochs": 2, **SMALL}
    stopped = finetune.fit(folder, run, display=CtrlC(label), **options)
    assert stopped.metrics["interrupted"] is True
    assert (stopped.metrics["kept"], stopped.metrics["epochs"]) == ("head", 0)
    head = finetune.fit(folder, strategy="head", **SMALL)
    picture = folder / "red" / "000.png"
    assert stopped.predict(picture) == head.predict(picture) == finetune.load(run, device="cpu").predict(picture)
    assert (run / "state").exists()

    finetune.fit(folder, run, resume=True, **options)
    finetune.fit(folder, tmp_path / "at once", **options)
    assert_same_weights(run, tmp_path / "at once")
    assert not (run / "state").exists()


def test_a_resumed_run_keeps_what_was_trained_until_it_ends(folder: Path, tmp_path: Path) -> None:
    run, options = tmp_path / "run", {"strategy": "full", "epochs": 3, "keep": "trained", **SMALL}

    def stop(epoch: EpochResult) -> None:
        raise KeyboardInterrupt

    assert finetune.fit(folder, run, on_epoch=stop, **options).metrics["kept"] == "full"
    kept_on_resume: list[str] = []

    def look(epoch: EpochResult) -> None:
        kept_on_resume.append(finetune.load(run, device="cpu").metrics["kept"])

    finetune.fit(folder, run, resume=True, on_epoch=look, **options)
    assert kept_on_resume == ["full"] * 2


def test_a_callback_gets_every_epoch_and_what_it_raises_is_passed_on(folder: Path, tmp_path: Path) -> None:
    run, seen = tmp_path / "run", list[EpochResult]()
    finetune.fit(folder, tmp_path / "whole", strategy="full", epochs=2, on_epoch=seen.append, **SMALL)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "history.jsonl").read_text().splitlines()]
    assert [(epoch.epoch, epoch.epochs) for epoch in seen] == [(1, 2), (2, 2)]
    for epoch, row in zip(seen, rows, strict=True):
        assert (epoch.train_loss, epoch.val_loss) == (row["train_loss"], row["val_loss"])
        assert (epoch.val_accuracy, epoch.lr) == (row["val_accuracy"], row["lr"])
        assert epoch.seconds > 0

    def fail(epoch: EpochResult) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        finetune.fit(folder, run, strategy="full", epochs=2, on_epoch=fail, **SMALL)
    assert finetune.load(run, device="cpu").metrics["kept"] == "head"
    finetune.fit(folder, run, resume=True, strategy="full", epochs=2, **SMALL)
    assert_same_weights(run, tmp_path / "whole")


def test_training_stops_where_validation_gains_nothing(make_folder: MakeFolder) -> None:
    folder, told = make_folder(classes=TWO), io.StringIO()  # so easy that nothing is left to gain
    display = Display(Console(file=told, width=200))
    metrics = finetune.fit(folder, strategy="full", epochs=40, lr=0.05, display=display, **SMALL).metrics
    assert metrics["epochs"] < 40
    assert "validation has not improved for 8 epochs" in told.getvalue()


def test_auto_does_not_train_what_so_few_pictures_cannot_show(make_folder: MakeFolder) -> None:
    folder, told = make_folder(classes={"green": 40, "red": 40}, noise=60), io.StringIO()
    display = Display(Console(file=told, width=250))
    metrics = finetune.fit(folder, display=display, **SMALL).metrics
    assert (metrics["strategy"], metrics["epochs"]) == ("head", 0)
    assert "--strategy partial trains in any case" in metrics["reason"]
    assert told.getvalue().count(metrics["reason"]) == 1


@pytest.mark.parametrize("option", [{"epochs": 1}, {"lr": 1e-4}, {"unfreeze": "blocks.3"}])
def test_auto_trains_where_an_option_of_training_is_given(option: dict[str, Any], make_folder: MakeFolder) -> None:
    folder = make_folder(classes={"green": 40, "red": 40}, size=20)
    metrics = finetune.fit(folder, **option, **SMALL | {"image_size": 16}).metrics
    assert metrics["strategy"] == "partial"
    assert metrics["epochs"] > 0
