from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeFolder
from safetensors.torch import save_file
from several import several, weights_of_last_step

from fewshot.training.config import SiameseConfig
from fewshot.training.train import train_folder

# Batches of 18 pictures; with two processes, each embeds 9.
OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "lr": 1e-4,  # AdamW makes large steps of small gradients, and so of rounding errors, more with every step
    "network": "fewtune_conv4",
    "side": 16,
    "alphabets": 1,
    "ways": 6,
    "shots": 3,
    "device": "cpu",
    "precision": "float32",
}


def losses(run: Path) -> list[float]:
    with (run / "history.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def trained(folder: Path, out: Path, count: int) -> None:
    """Train in `count` processes; each writes its weights beside the run."""

    def job(rank: int) -> None:
        last = weights_of_last_step()
        train_folder(folder, out, config=SiameseConfig(**OPTIONS))
        save_file(last, out.parent / f"{out.name}-{rank}.safetensors")

    assert several(count, out.parent / f"{out.name}-output", job) == [(0, "")] * count


@pytest.mark.slow
def test_two_processes_train_as_one_over_the_pairs_of_the_whole_batch(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={f"class{number}": 5 for number in range(7)}, size=20, noise=90)
    alone, together = tmp_path / "alone", tmp_path / "together"
    trained(folder, alone, 1)
    trained(folder, together, 2)
    assert losses(together) == pytest.approx(losses(alone), rel=1e-5, abs=1e-5)
    first, second = ((tmp_path / f"together-{rank}.safetensors").read_bytes() for rank in range(2))
    assert first == second
