from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from conftest import MakeFolder
from hypothesis import given
from hypothesis import strategies as st

from finetune.api.prepare import Prepared, prepare
from finetune.config import Config
from finetune.data.folder import list_folder
from finetune.errors import InputError
from finetune.progress import Display, in_words
from finetune.training.budget import Deadline, OutOfTime, TrainingCosts, expected_seconds
from finetune.training.plan import Plan, TrainingTask
from finetune.training.step import weights_on_cpu


def prepared_for(folder: Path, strategy: str) -> tuple[Prepared, Config]:
    config = Config(strategy=strategy, backbone="fewtune_conv4", device="cpu", workers=0, batch_size=8)
    return prepare(list_folder(folder), config, None, Display()), config


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["partial", "full", "scratch"])
def test_the_estimate_leaves_weights_and_random_state_as_they_are(strategy: str, make_folder: MakeFolder) -> None:
    prepared, config = prepared_for(make_folder(classes={"green": 20, "red": 20}), strategy)
    network, _ = prepared.starting_network(config)
    plan, material = prepared.plan(network, config), prepared.training_data(config)
    network.backbone.freeze_below(plan.lowest, batch_norm_trains=plan.batch_norm_trains)
    before, random = weights_on_cpu(network), torch.get_rng_state()
    assert 0 < expected_seconds(TrainingTask(prepared.fabric, network, plan, config, material)) < 600
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.slow
def test_a_changed_picture_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder(classes={"green": 20, "red": 20})
    prepared, config = prepared_for(folder, "full")
    network, _ = prepared.starting_network(config)
    material = prepared.training_data(config)
    path = Path(str(material.pictures.sources[material.indices[0]]))
    path.write_bytes(b"something else")
    task = TrainingTask(prepared.fabric, network, prepared.plan(network, config), config, material)
    with pytest.raises(InputError, match=f"{path.name} was changed"):
        expected_seconds(task)


@pytest.mark.parametrize(
    ("seconds", "words"), [(1, "5 s"), (22, "20 s"), (89, "90 s"), (100, "2 min"), (3600, "60 min"), (9000, "2.5 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == f"about {words}"


@given(
    st.floats(0.1, 100), st.floats(0, 10), st.floats(0.1, 10), st.integers(1, 40), st.integers(1, 12),
    st.floats(0, 1000),
)  # fmt: skip
def test_the_longest_training_that_fits_is_planned(
    once: float, view: float, epoch: float, epochs: int, views: int, seconds: float
) -> None:
    costs = TrainingCosts(once=once, view=view, epoch=epoch, validation=0.1, picture=0.01)
    found = costs.fitted(epochs, views, seconds)
    if found is None:
        assert costs.seconds(1, 1) > seconds
        return
    assert costs.seconds(*found) <= seconds
    assert 1 <= found[0] <= epochs
    assert 1 <= found[1] <= min(views, found[0])
    if costs.seconds(epochs, min(views, epochs)) <= seconds:
        assert found == (epochs, min(views, epochs))
    if found[0] < epochs:  # views are reduced first
        assert found[1] <= 2


def plan(epochs: int) -> Plan:
    return Plan(epochs, patience=3, steps_per_epoch=5, lr=1.0, stage_decay=1.0, lowest=0, batch_norm_trains=False)


def test_the_first_epoch_replaces_the_estimate_and_later_ones_only_shorten_the_plan() -> None:
    deadline = Deadline(time.monotonic() + 100, most_epochs=8, epoch=50.0)
    assert deadline.replanned(plan(2), 1, 1.0).epochs == 8
    assert deadline.replanned(plan(8), 1, 24.0).epochs == 4
    assert deadline.replanned(plan(4), 2, 1.0).epochs == 4
    assert deadline.replanned(plan(8), 2, 60.0).epochs == 3
    assert deadline.before(100).replanned(plan(8), 2, 60.0).epochs == 2
    assert deadline.before(100).passed
    assert not deadline.passed


def test_frozen_stages_that_leave_no_time_for_an_epoch_are_given_up() -> None:
    done: list[int] = []
    patient = Deadline(time.monotonic() + 100, most_epochs=8, epoch=1.0).watched(lambda n, _: done.append(n), 100)
    patient(90, "")
    hasty = Deadline(time.monotonic() - 1, most_epochs=8, epoch=1.0).watched(lambda n, _: done.append(n), 100)
    with pytest.raises(OutOfTime) as slow:
        hasty(10, "")
    assert slow.value.share == 0
    assert done == [90, 10]
