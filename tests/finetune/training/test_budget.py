from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import MakeFolder

from finetune.api.prepare import Prepared, prepare
from finetune.config import Config
from finetune.data.folder import list_folder
from finetune.errors import InputError
from finetune.progress import Display, in_words
from finetune.training.budget import expected_seconds
from finetune.training.plan import TrainingTask
from finetune.training.step import weights_on_cpu

pytestmark = pytest.mark.slow


def prepared_for(folder: Path, strategy: str) -> tuple[Prepared, Config]:
    config = Config(strategy=strategy, backbone="fewtune_conv4", device="cpu", workers=0, batch_size=8)
    return prepare(list_folder(folder), config, None, Display()), config


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
