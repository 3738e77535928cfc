from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeFolder
from safetensors.torch import load_file, save_file
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


def history(run: Path) -> list[dict[str, float]]:
    with (run / "history.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def fit(folder: Path, out: Path, count: int, *, stop: bool = False, **options: Any) -> None:
    """Fit in `count` processes; each writes its weights beside the run. stop: end after the first epoch."""

    def after_epoch(result: EpochResult) -> None:
        if stop:
            raise Stop

    def job(rank: int) -> None:
        last = weights_of_last_step()
        classifier = finetune.fit(folder, out, on_epoch=after_epoch, **OPTIONS | options)
        weights = {name: tensor.contiguous() for name, tensor in classifier.network.state_dict().items()}
        save_file(last, out.parent / f"{out.name}-last-{rank}.safetensors")
        save_file(weights, out.parent / f"{out.name}-{rank}.safetensors")

    outputs = several(count, out.parent / f"{out.name}-output", job)
    if stop:
        assert "Stop" in outputs[0][1]
        assert outputs[1:] == [(0, "")] * (count - 1)
    else:
        assert outputs == [(0, "")] * count


def assert_same_training(run: Path, other: Path) -> None:
    for row, expected in zip(history(run), history(other), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def assert_equal_ranks(run: Path) -> None:
    first, second = (load_file(run.parent / f"{run.name}-{rank}.safetensors") for rank in range(2))
    last = [(run.parent / f"{run.name}-last-{rank}.safetensors").read_bytes() for rank in range(2)]
    assert last[0] == last[1]
    saved = finetune.load(run, device="cpu").network.state_dict()
    assert all(first[name].equal(tensor) and second[name].equal(tensor) for name, tensor in saved.items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"strategy": "full"}, {"strategy": "partial"}, {"strategy": "full", "mixup": 0.4}])
def test_two_processes_train_as_one_with_the_same_global_batch(
    options: dict[str, Any], make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"blue": 7, "red": 8, "green": 8}, noise=90)
    alone, together = tmp_path / "alone", tmp_path / "together"
    fit(folder, alone, 1, **options)
    fit(folder, together, 2, **options)
    assert_same_training(together, alone)
    assert_equal_ranks(together)
    assert finetune.load(together, device="cpu").metrics["accuracy"] == finetune.load(alone).metrics["accuracy"]


@pytest.mark.slow
def test_a_run_of_two_processes_continues_with_two_and_with_one(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"blue": 7, "red": 8}, noise=90)
    whole = tmp_path / "whole"
    fit(folder, whole, 1, strategy="full")
    for count in (1, 2):
        run = tmp_path / f"with{count}"
        fit(folder, run, 2, stop=True, strategy="full")
        fit(folder, run, count, strategy="full", resume=True)
        assert_same_training(run, whole)


@pytest.mark.slow
def test_a_head_of_two_processes_is_that_of_one_bit_by_bit(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"blue": 20, "red": 20}, noise=90)
    fit(folder, tmp_path / "alone", 1, strategy="head", epochs=None)
    fit(folder, tmp_path / "together", 2, strategy="head", epochs=None)
    assert (tmp_path / "alone-0.safetensors").read_bytes() == (tmp_path / "together-1.safetensors").read_bytes()
