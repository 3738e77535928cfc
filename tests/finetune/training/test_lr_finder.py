from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from conftest import MakeFolder
from hypothesis import given
from hypothesis import strategies as st
from told import Told
from torch import Tensor

import finetune
from finetune import Config, InputError
from finetune.api.prepare import prepare
from finetune.api.preview import find_rate
from finetune.cli.main import cli
from finetune.data.folder import list_folder
from finetune.models.backbone import Network
from finetune.progress import Display
from finetune.training.loggers import Log
from finetune.training.loop import TrainingResult, train
from finetune.training.lr_finder import DIVERGED, Sweep, suggested, valley
from finetune.training.plan import TrainingTask

SMALL: dict[str, Any] = {
    "backbone": "fewtune_conv4", "device": "cpu", "workers": 0, "batch_size": 4, "trivial_augment": False,
    "image_size": 16,
}  # fmt: skip
THREE = {"blue": 8, "green": 8, "red": 8}


class StopsAt(Log):
    """A log that fails as a full disk would, at one epoch."""

    def __init__(self, epoch: int):
        self.at = epoch

    def epoch(self, row: Any) -> None:
        if row["epoch"] == self.at:
            raise OSError("no room")


def train_once(
    folder: Path, config: Config, checkpoint: Path | None, log: Log | None = None
) -> tuple[TrainingResult, Network]:
    prepared = prepare(list_folder(folder), config, None, Display())
    network, start = prepared.starting_network(config)
    task = TrainingTask(
        prepared.fabric, network, prepared.plan(network, config), config, prepared.training_data(config)
    )
    result = train(task, start_logits=start, checkpoint=checkpoint, display=Display(), log=log)
    return result, network


def weights_of(network: Network) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_the_valley_is_the_longest_run_of_falling_losses(losses: list[int]) -> None:
    start, end = valley(losses)
    falling = [
        chosen
        for size in range(1, len(losses) + 1)
        for chosen in itertools.combinations(range(len(losses)), size)
        if all(losses[a] > losses[b] for a, b in itertools.pairwise(chosen))
    ]
    longest = max(len(chosen) for chosen in falling)
    assert any(len(chosen) == longest and (chosen[0], chosen[-1]) == (start, end) for chosen in falling)


def test_the_suggestion_lies_two_thirds_down_the_slope() -> None:
    rates = [10.0 ** (step / 10 - 6) for step in range(60)]
    losses = [2.0] * 20 + [2.0 - 0.05 * step for step in range(31)] + [1 + step for step in range(9)]
    assert suggested(rates, losses, True) == (rates[20 + 20], None)


@pytest.mark.parametrize(
    ("losses", "diverged", "why"),
    [
        ([1.0, 2.0, 9.0], True, "from the first steps on"),
        ([1.0, float("nan")], True, "from the first steps on"),
        ([0.5] * 60, False, "did not change"),
        ([0.5 + 0.001 * (step % 3) for step in range(60)], False, "did not change"),
        ([0.5 + 0.1 * step for step in range(30)], True, "it only grew"),
    ],
)
def test_a_curve_without_a_slope_suggests_nothing_and_says_why(losses: list[float], diverged: bool, why: str) -> None:
    found, trouble = suggested([float(step) for step in range(len(losses))], losses, diverged)
    assert found is None
    assert why in (trouble or "")
    sweep = Sweep((1.0,), (float("nan"),), (float("nan"),), None, trouble, {"head": 1.0}, True)
    assert why in sweep.summary(1e-4)
    assert "0.0001" in sweep.summary(1e-4)
    json.dumps(sweep.to_dict(), allow_nan=False)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"strategy": "full"}, {"strategy": "scratch", "optimizer": "sgd", "mixup": 0.2}])
def test_a_sweep_is_reproducible_and_ends_when_the_loss_diverges(
    make_folder: MakeFolder, options: dict[str, Any]
) -> None:
    folder, config = make_folder(classes=THREE, size=20), Config(**SMALL, **options)
    sweep = find_rate(folder, config=config)
    assert sweep == find_rate(folder, config=config)
    assert all(a < b for a, b in itertools.pairwise(sweep.rates))
    if sweep.diverged:
        assert not sweep.smoothed[-1] <= DIVERGED * min(sweep.smoothed[:-1])
    if sweep.suggestion is not None and options["strategy"] == "full":
        assert sweep.stage_rates is not None
        assert sweep.stage_rates["head"] == sweep.suggestion
        assert list(sweep.stage_rates.values()) == sorted(sweep.stage_rates.values())


@pytest.mark.slow
def test_training_with_auto_starts_from_the_weights_that_it_was_given(make_folder: MakeFolder) -> None:
    """With the rate that the sweep found given as a number, and no sweep, every weight comes out the same."""
    folder = make_folder(classes=THREE, size=20)
    auto = Config(**SMALL, strategy="scratch", epochs=2, lr="auto")
    found, network = train_once(folder, auto, None)
    assert found.sweep is not None
    assert found.lr == found.sweep["suggestion"]
    given, same = train_once(folder, Config(**auto.to_dict() | {"lr": found.lr}), None)
    assert given.sweep is None
    assert given.history == found.history
    for name, tensor in weights_of(network).items():
        assert torch.equal(tensor, weights_of(same)[name]), name


@pytest.mark.slow
def test_a_resumed_run_keeps_its_rate_and_ends_with_the_same_weights(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE, noise=60, size=20)
    config = Config(**SMALL, strategy="train", epochs=3, lr="auto")
    straight, network = train_once(folder, config, None)
    with pytest.raises(OSError, match="no room"):
        train_once(folder, config, tmp_path / "checkpoint", StopsAt(2))
    result, resumed = train_once(folder, config, tmp_path / "checkpoint")
    assert (result.lr, result.sweep, result.history) == (straight.lr, straight.sweep, straight.history)
    for name, tensor in weights_of(network).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name


def test_the_strategy_head_has_no_rate_to_find(make_folder: MakeFolder) -> None:
    with pytest.raises(InputError, match="--strategy"):
        find_rate(
            make_folder(classes=THREE, size=20), config=Config(**SMALL, strategy="head"), display=(told := Told())
        )
    assert told.lines == [], "before anything is read"


@pytest.mark.slow
def test_the_head_is_solved_without_a_rate_and_says_so(make_folder: MakeFolder) -> None:
    told = Told()
    finetune.fit(make_folder(classes=THREE, size=20), config=Config(**SMALL, strategy="head", lr="auto"), display=told)
    assert any("--lr" in line and "no effect with strategy head" in line for line in told.lines)


@pytest.mark.slow
def test_the_command_draws_the_curve_and_gives_its_points(make_folder: MakeFolder) -> None:
    arguments = [
        "lr-find",
        str(make_folder(classes=THREE, size=20)),
        "--strategy",
        "scratch",
        "--backbone",
        "fewtune_conv4",
    ]
    arguments += ["--batch-size", "4", "--device", "cpu", "--workers", "0", "--image-size", "16"]
    drawn = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert drawn.exit_code == 0
    assert "█" in drawn.stdout
    assert "← suggested" in drawn.stdout
    found = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).stdout)
    assert found["points"][0].keys() == {"lr", "loss", "smoothed"}
    assert f"--lr {found['suggestion']:.2g}" in drawn.stdout


@pytest.mark.parametrize("option", ["--lr", "--warmup", "--patience", "--test-time", "--log"])
def test_an_option_without_effect_in_a_sweep_is_refused(option: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(cli, ["lr-find", str(tmp_path), option, "1"])
    assert answer.exit_code == 2
    assert f"No such option '{option}'" in answer.output
