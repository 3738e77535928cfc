from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import Config, InputError
from finetune.cli.main import cli
from finetune.linear.choice import choose
from finetune.strategies import STRATEGIES


def test_survives_json_unchanged() -> None:
    config = Config(strategy="partial", unfreeze="blocks.5", epochs=7, lr=1e-3, flip=False)
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_path_to_weights_is_taken_as_its_text() -> None:
    assert Config(weights=Path("a") / "b.safetensors") == Config(weights=str(Path("a") / "b.safetensors"))  # type: ignore[arg-type]


def test_the_learning_rate_is_a_number_or_auto() -> None:
    for lr in (None, 0.1, 1, "auto"):
        config = Config(lr=lr)
        assert config.lr == lr
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_command_line_takes_a_learning_rate_as_number_or_auto() -> None:
    (lr,) = (option for option in cli.commands["fit"].params if option.name == "lr")
    assert [lr.type.convert(text, lr, None) for text in ("auto", "AUTO", "0.001")] == ["auto", "auto", 0.001]
    assert isinstance(lr.type.convert("1", lr, None), float)
    with pytest.raises(InputError, match="--lr must be of type float, or 'auto', not 'fast'"):
        Config(lr=lr.type.convert("fast", lr, None))


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3  # type: ignore[misc]


def test_unknown_key_is_an_error_that_names_it() -> None:
    with pytest.raises(InputError, match="'epocs'"):
        Config.from_dict({"epocs": 3})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": 0}, "--epochs"),
        ({"epochs": 2.5}, "--epochs"),
        ({"epochs": True}, "--epochs"),
        ({"lr": float("nan")}, "--lr"),
        ({"lr": -1.0}, "--lr"),
        ({"lr": "fast"}, "--lr must be of type float, or 'auto', not 'fast'"),
        ({"lr": True}, "--lr"),
        ({"log": "mlflow"}, "--log"),
        ({"lr": float("inf")}, "--lr"),
        ({"mixup": float("inf")}, "--mixup"),
        ({"strategy": "everything"}, "--strategy"),
        ({"batch_size": "32"}, "--batch-size"),
        ({"label_smoothing": 1.0}, "--label-smoothing"),
        ({"minutes": 0}, "--minutes must be above 0, not 0"),
        ({"minutes": 3, "unlabelled": "pile"}, "--minutes does not bound the reading of --unlabelled"),
        ({"minutes": 3, "epochs": 2}, "--minutes and --epochs both set the length of the training: give one of them"),
        ({"max_bad": 1.5}, "--max-bad must be at most 1, not 1.5"),
        ({"flip": 1}, "--flip"),
        ({"backbone": None}, "--backbone"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "--val-fraction and --test-fraction"),
        ({"strategy": "full", "unfreeze": "blocks.5"}, "--unfreeze"),
    ],
)
def test_value_out_of_place_is_an_error_that_names_the_option(options: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Config(**options)  # type: ignore[arg-type]


def test_every_option_is_documented_or_a_plain_choice() -> None:
    for option in dataclasses.fields(Config):
        assert option.metadata["about"] or option.metadata["choices"], option.name


def test_a_strategy_asked_for_is_taken() -> None:
    for name in STRATEGIES:
        assert choose(name, 1).strategy.name == name


@given(st.floats(1, 1e6))
def test_auto_takes_more_of_the_network_the_more_pictures_there_are(per_class: float) -> None:
    order = ["head", "partial", "full"]
    fewer, more = choose("auto", per_class).strategy.name, choose("auto", per_class * 2).strategy.name
    assert order.index(fewer) <= order.index(more)
    count = "1 training picture" if round(per_class) == 1 else f"{per_class:.0f} training pictures"
    assert f"{count} per class" in choose("auto", per_class).reason


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "auto", "weights": "a.safetensors"}, "--weights is the file of one network"),
        ({"backbones": "a,b", "weights": "a.safetensors"}, "--weights is the file of one network"),
        ({"backbones": "a,b", "backbone": "resnet18"}, "--backbones compares networks and --backbone resnet18 names"),
        ({"weights": "a.safetensors", "weights_dir": "folder"}, "give one of them"),
        ({"backbone": "auto", "strategy": "scratch"}, "--strategy scratch does not use"),
        (
            {"backbone": "auto", "strategy": "partial", "unfreeze": "blocks.3"},
            "--unfreeze names a stage of one network",
        ),
        ({"backbone": "auto", "drop_above": "blocks.3"}, "--drop-above names a stage of one network"),
        ({"backbone": "auto", "max_ms": 0}, "--max-ms must be above 0"),
        ({"backbone": "auto", "minutes": 3}, "--minutes bounds a run with one network"),
        ({"max_ms": 3}, "--max-ms goes with --backbone auto"),
    ],
)
def test_options_of_one_network_do_not_go_with_auto(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**options)


def test_backbones_imply_auto() -> None:
    assert Config(backbones="a,b").backbone == "auto"
    assert Config(backbone="auto", drop_above="best").drop_above == "best"
    assert Config(backbones="a,b", max_ms=3).max_ms == 3
