from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from conftest import MakeFolder
from safetensors.torch import save_file
from several import several, weights_of_last_step

import finetune
from finetune.training.loop import EpochResult

OPTIONS: dict[str, Any] = {
    "backbone": "fewtune_conv4",
    "device": "cpu",
    "precision": "float32",
    "image_size": 32,
    "workers": 0,
    "batch_size": 5,
    "epochs": 2,
    "keep": "trained",
    "cache": False,
}


class Stop(Exception):
    pass


def fit(folder: Path, results: Path, count: int, *, stop: bool = False, **options: Any) -> None:
    """Fit in `count` processes, and keep what each has found in `results`. stop: end after the first epoch."""

    def job(rank: int) -> None:
        epochs: list[dict[str, float]] = []

        def after_epoch(result: EpochResult) -> None:
            epochs.append(asdict(result) | {"seconds": 0})
            if stop:
                raise Stop

        last = weights_of_last_step()
        classifier = finetune.fit(folder, on_epoch=after_epoch, **OPTIONS | options)
        weights = {name: tensor.contiguous() for name, tensor in classifier.network.state_dict().items()}
        save_file(weights, results / f"{rank}.safetensors")
        save_file(last, results / f"last{rank}.safetensors")
        found = {"epochs": epochs, "accuracy": classifier.metrics["accuracy"]}
        (results / f"{rank}.json").write_text(json.dumps(found))

    outputs = several(count, results, job)
    if stop:
        assert "Stop" in outputs[0][1]
        assert outputs[1:] == [(0, "")] * (count - 1)
    else:
        assert outputs == [(0, "")] * count


def assert_same_training(results: Path, expected: Path, *, first_epoch: int = 1) -> None:
    found, of_one = (json.loads((folder / "0.json").read_text()) for folder in (results, expected))
    assert found["accuracy"] == of_one["accuracy"]
    for row, other in zip(found["epochs"], of_one["epochs"][first_epoch - 1 :], strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def same_files(*files: Path) -> bool:
    return len({file.read_bytes() for file in files}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"strategy": "full", "mixup": 0.4}, {"strategy": "partial"}])
def test_two_processes_train_as_one_with_the_same_global_batch(
    options: dict[str, Any], make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"blue": 6, "red": 7, "green": 7}, noise=90)
    alone, together = tmp_path / "alone", tmp_path / "together"
    fit(folder, alone, 1, epochs=1, **options)
    fit(folder, together, 2, epochs=1, **options)
    assert_same_training(together, alone)
    assert same_files(together / "last0.safetensors", together / "last1.safetensors")
    assert same_files(together / "0.safetensors", together / "1.safetensors")
    assert json.loads((together / "1.json").read_text())["epochs"] == []  # the first process alone reports


@pytest.mark.slow
def test_a_run_of_two_processes_continues_with_two_and_with_one(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"blue": 7, "red": 8}, noise=90)
    whole, first, run = tmp_path / "whole", tmp_path / "first", tmp_path / "run"
    fit(folder, whole, 1, strategy="full")
    fit(folder, first, 2, stop=True, strategy="full", out=run)
    copytree(run, tmp_path / "copy")
    for count, out in ((1, run), (2, tmp_path / "copy")):
        fit(folder, tmp_path / f"with{count}", count, strategy="full", out=out, resume=True)
        assert_same_training(tmp_path / f"with{count}", whole, first_epoch=2)


@pytest.mark.slow
def test_a_head_of_two_processes_is_that_of_one_bit_by_bit(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"blue": 20, "red": 20}, noise=90)
    for count in (1, 2):
        fit(folder, tmp_path / f"with{count}", count, strategy="head", epochs=None)
    assert same_files(tmp_path / "with1" / "0.safetensors", tmp_path / "with2" / "1.safetensors")
