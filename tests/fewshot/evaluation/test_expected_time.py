from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from fake_omniglot import runs, zipped
from small_omniglot import small_omniglot, small_splits
from torch import Tensor

from fewshot.evaluation import measure as expected_time
from fewshot.evaluation.measure import NEEDED, WORK, drawings_to_embed, seconds_to_measure
from fewshot.evaluation.models import Model, by_embedding
from fewshot.omniglot.dataset import Omniglot, lake_runs

pytestmark = pytest.mark.slow


def slow_embed(drawings: Tensor) -> Tensor:
    time.sleep(0.001 * len(drawings))
    return drawings.flatten(1)[:, :16].float() + 1


def omniglot_of(drawings: int) -> Omniglot:
    zeros = torch.zeros(drawings, dtype=torch.int64)
    return Omniglot(torch.zeros(drawings, 105, 105, dtype=torch.uint8), zeros, zeros, zeros, (), ())


def test_every_protocol_has_an_expected_time() -> None:
    assert {name for name in NEEDED if NEEDED[name]} == WORK.keys()


def test_drawings_are_counted_once_for_each_turn() -> None:
    assert drawings_to_embed([]) == 0
    assert drawings_to_embed(["within"]) == drawings_to_embed(["within", "all-way-659"]) == 659 * 20
    assert drawings_to_embed(["vinyals-upright"]) == 423 * 20
    assert drawings_to_embed(["vinyals"]) == 4 * 423 * 20
    assert drawings_to_embed([], "evaluation") == 659 * 20


def test_the_estimate_depends_on_the_encoder_and_the_number_of_drawings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expected_time, "unit_seconds", lambda device: 0.0)
    model = by_embedding("slow", slow_embed)
    seconds = seconds_to_measure([model], ["within"], omniglot_of(300), ())
    assert 13.1 < seconds < 80  # 13,180 drawings of 1 ms each, on a machine that may be busy
    twice = seconds_to_measure([model, model], ["within"], omniglot_of(300), ())
    assert twice > 26.3


def test_a_distance_between_pictures_is_timed_on_pairs_of_a_run(tmp_path: Path) -> None:
    compared: list[int] = []

    def distance(test: Tensor, train: Tensor) -> Tensor:
        compared.append(len(test) * len(train))
        time.sleep(0.1 * len(test) * len(train))
        return torch.zeros(len(test), len(train))

    zipped(tmp_path / "all_runs.zip", runs())
    seconds = seconds_to_measure([Model("slow", distance)], ["lake"], None, lake_runs(tmp_path))
    assert 800 <= seconds < 4000  # 20 runs of 400 pairs, 0.1 s each
    assert sum(compared) < 40


@pytest.mark.parametrize("command", ["benchmark", "report"])
def test_a_measurement_first_shows_its_expected_time(  # type: ignore[no-untyped-def]
    command: str, call, tmp_path: Path
) -> None:
    data = small_omniglot(tmp_path)
    words = {
        "benchmark": ["benchmark", "--protocol", "within", "--protocol", "lake"],
        "report": ["report", "omniglot", "--out", tmp_path / "page.html"],
    }
    with small_splits():
        answer = call(*words[command], "--data", data, "--device", "cpu")
    assert answer.code == 0, answer.err
    assert re.search(r"expected time: about \d+ (s|min)", answer.err)
