from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeFolder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import finetune
from finetune import Config, InputError
from finetune.training.loggers import LINES_FILE, open_log

ROWS = [{"epoch": epoch, "train_loss": 1 / epoch, "val_accuracy": 0.5, "lr": 0.1} for epoch in (1, 2, 3)]
RESULT = {"test_accuracy": 0.75, "best_epoch": 2.0}


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LINES_FILE).read_text().splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_every_epoch_is_written_when_it_ends(tmp_path: Path) -> None:
    with open_log(Config(), tmp_path) as log:
        log.begin([])
        for done, row in enumerate(ROWS, 1):
            log.epoch(row)
            found = lines_of(tmp_path)
            assert len(found) == done
            assert found[-1].pop("seconds") >= 0
            assert found[-1] == row


def test_a_continued_run_has_each_epoch_once(tmp_path: Path) -> None:
    """Killed between the log and the checkpoint of the second epoch: it is repeated, and half a line is removed."""
    with open_log(Config(), tmp_path) as log:
        log.begin([])
        log.epoch(ROWS[0])
        log.epoch(ROWS[1])
    first = lines_of(tmp_path)[0]
    with (tmp_path / LINES_FILE).open("a") as file:
        file.write('{"epoch": 3, "tra')
    with open_log(Config(), tmp_path) as log:
        log.begin(ROWS[:1])
        assert lines_of(tmp_path) == [first]
        log.epoch(ROWS[1])
        log.epoch(ROWS[2])
    assert [line["epoch"] for line in lines_of(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\xff\xfe", b'{"epoch": []}', b'{"epoch": 1e999}', b"7"])
def test_damaged_lines_are_written_again(line: bytes, tmp_path: Path) -> None:
    (tmp_path / LINES_FILE).write_bytes(line + b"\n")
    with open_log(Config(), tmp_path) as log:
        log.begin(ROWS[:2])
    assert lines_of(tmp_path) == ROWS[:2]


def test_epochs_whose_lines_were_lost_are_written_again(tmp_path: Path) -> None:
    with open_log(Config(), tmp_path) as log:
        log.begin(ROWS[:2])
    assert lines_of(tmp_path) == ROWS[:2]


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    with open_log(Config(log="tensorboard"), tmp_path) as log:
        log.begin([])
        log.epoch(ROWS[0])
        log.epoch(ROWS[1])
    with open_log(Config(log="tensorboard"), tmp_path) as log:
        log.begin(ROWS[:1])
        for row in ROWS[1:]:
            log.epoch(row)
        log.result(RESULT)
    found = scalars(tmp_path)
    assert found["train_loss"] == [(row["epoch"], pytest.approx(row["train_loss"])) for row in ROWS]
    assert found["result/test_accuracy"] == [(3, 0.75)]
    assert {"lr", "val_accuracy", "seconds"} <= found.keys()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_ends_early_leaves_a_whole_log(tmp_path: Path, stop: type[BaseException]) -> None:
    def run() -> None:
        with open_log(Config(log="tensorboard"), tmp_path) as log:
            log.begin([])
            log.epoch(ROWS[0])
            raise stop

    with pytest.raises(stop):
        run()
    assert scalars(tmp_path)["val_accuracy"] == [(1, 0.5)]
    assert len(lines_of(tmp_path)) == 1


def test_a_tracker_without_a_run_folder_is_refused() -> None:
    with pytest.raises(InputError, match="--out"), open_log(Config(log="tensorboard"), None):
        pass


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_names_the_extra(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pip install 'fewtune\[wandb\]'"):
        finetune.fit(make_folder(classes={"a": 6, "b": 6}), tmp_path / "run", log="wandb", backbone="fewtune_conv4")
    assert not (tmp_path / "run").exists()


def test_weights_and_biases_keeps_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for history in ([], ROWS[:1]):
        with open_log(Config(log="wandb"), tmp_path) as log:
            log.begin(history)
            for row in ROWS[len(history) :]:
                log.epoch(row)
            log.result(RESULT)
    name = (tmp_path / "wandb" / "run-id").read_text()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb"))) >= 1
    assert [line["epoch"] for line in lines_of(tmp_path)] == [1, 2, 3]


def test_a_tracker_is_imported_only_for_its_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # which makes its import fail
    with open_log(Config(), tmp_path) as log:
        log.begin([])
        log.epoch(ROWS[0])
        log.result(RESULT)
    assert len(lines_of(tmp_path)) == 1


@pytest.mark.slow
def test_a_run_leaves_its_history_line_by_line(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"blue": 12, "red": 12})
    options: dict[str, Any] = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0, "log": "tensorboard"}
    classifier = finetune.fit(folder, tmp_path / "run", strategy="full", epochs=2, lr=1e-4, **options)
    found = lines_of(tmp_path / "run")
    assert [line["epoch"] for line in found] == [1, 2]
    assert {"train_loss", "val_loss", "val_accuracy", "lr", "seconds"} <= found[0].keys()
    assert 0 < found[1]["lr"] < 1e-4
    assert classifier.metrics["lr"] == 1e-4
    assert scalars(tmp_path / "run")["result/test_accuracy"] == [(2, pytest.approx(classifier.metrics["accuracy"]))]
