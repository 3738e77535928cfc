from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from conftest import MakeFolder
from rich.console import Console

import finetune
from finetune import Config
from finetune.api.inspect import inspect_folder
from finetune.api.preview import find_rate, probe_folder
from finetune.cli.main import cli
from finetune.progress import Display

pytestmark = pytest.mark.slow

SMALL = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded(Config):
    """Options that record which of them a job reads. Saving all of them counts as reading none."""

    read: ClassVar[set[str]] = set()

    def __getattribute__(self, name: str) -> Any:
        Recorded.read.add(name)
        return super().__getattribute__(name)

    def to_dict(self) -> dict[str, Any]:
        before = set(Recorded.read)
        values = super().to_dict()
        Recorded.read.clear()
        Recorded.read.update(before)
        return values

    def without_effect(self, **resolved: str) -> list[str]:
        return []


@pytest.fixture
def record() -> Iterator[Any]:
    def recorded(**options: Any) -> Recorded:
        config = Recorded(**SMALL | options)
        Recorded.read.clear()
        return config

    yield recorded
    Recorded.read.clear()


@pytest.mark.parametrize("command", ["inspect", "probe", "lr-find", "fit"])
def test_a_command_reads_every_option_that_it_offers(
    command: str, record: Any, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"blue": 6, "red": 6})
    options = {option.name for option in cli.commands[command].params} & {f.name for f in dataclasses.fields(Config)}
    options -= {"backbones", "max_ms"}  # of --backbone auto; what they change is in api/test_backbones.py
    config = record() if command in ("inspect", "probe") else record(strategy="partial", epochs=1)
    if command == "inspect":
        inspect_folder(folder, config=config)
    elif command == "probe":
        probe_folder(folder, config=config)
    elif command == "lr-find":
        find_rate(folder, config=config)
    else:
        finetune.fit(folder, tmp_path / "run", config=config)
    assert options - Recorded.read == set()


def test_an_option_that_is_said_to_have_no_effect_has_none_and_is_named_once(make_folder: MakeFolder) -> None:
    folder = make_folder(classes={"blue": 6, "red": 6})
    changed = {
        "epochs": 2, "lr": 0.5, "batch_size": 3, "patience": 1, "optimizer": "sgd", "weight_decay": 0.5,
        "label_smoothing": 0.3, "warmup": 0.4, "stage_decay": 0.2, "flip": False, "crop_scale": 0.9,
        "trivial_augment": False, "mixup": 0.4, "views": 3, "keep": "trained",
    }  # fmt: skip
    said = io.StringIO()
    display = Display(Console(file=said, width=1000))
    plain = finetune.fit(folder, strategy="head", **SMALL)
    other = finetune.fit(folder, config=Config(strategy="head", **SMALL, **changed), display=display)
    assert torch.equal(plain.network.head.weight, other.network.head.weight)
    flags = [f"--{name.replace('_', '-')}" for name in changed]
    (line,) = [line for line in said.getvalue().splitlines() if "no effect" in line]
    assert sorted(line.removesuffix(" have no effect with strategy head.").split(", ")) == sorted(flags)
    assert sorted(Config(**SMALL, **changed).without_effect(strategy="head")) == sorted(changed)


def test_options_with_an_effect_are_not_named(make_folder: MakeFolder) -> None:
    config = Config(strategy="partial", epochs=1, views=2, lr=1e-3, unfreeze="block4")
    assert config.without_effect(strategy="partial") == []
    assert config.without_effect(strategy="full") == ["unfreeze", "views"]
