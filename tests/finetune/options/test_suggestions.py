"""Wrong names of options, commands and choices get a suggestion, in the API and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from called import Answer, caller

import fewshot.cli.main
import finetune.cli.main
from finetune import Config, InputError, fit
from finetune.options.suggestions import COMMANDS, suggestion

Run = Callable[..., Answer]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return caller(finetune.cli.main.main, "finetune", monkeypatch, capfd)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("learning_rate", "lr"),
        ("learning-rate", "lr"),
        ("model", "backbone"),
        ("img_size", "image_size"),
        ("batch", "batch_size"),
        ("num_epochs", "epochs"),
        ("epocs", "epochs"),
        ("LR", "lr"),
    ],
)
def test_a_wrong_option_of_the_api_gets_a_suggestion(name: str, meant: str, tmp_path: Path) -> None:
    wrong: dict[str, Any] = {name: 1}
    for call in (lambda: Config(**wrong), lambda: fit(tmp_path, **wrong), lambda: Config.from_dict(wrong)):
        with pytest.raises(InputError, match=rf"^unknown option '{name}'; did you mean {meant}\?$"):
            call()


def test_a_wrong_choice_of_the_api_gets_a_suggestion_and_case_does_not_matter() -> None:
    with pytest.raises(InputError, match=r"not 'Heads'; did you mean head\?"):
        Config(strategy="Heads")
    assert Config(strategy="Head", precision="Float32") == Config(strategy="head", precision="float32")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "{here}"], "No such command 'train'. Did you mean fit?"),
        (["preditc", "{here}"], "No such command 'preditc'. Did you mean predict?"),
        (["fit", "{here}", "--out", "{new}", "--learning-rate", "3"], "'--learning-rate'. Did you mean --lr?"),
        (["fit", "{here}", "--out", "{new}", "--no-flp"], "'--no-flp'. Did you mean --no-flip?"),
        (["fit", "{here}", "--out", "{new}", "--strategy", "Heads"], "'scratch'. Did you mean head?"),
        (["evaluate", "{here}", "{here}", "--device", "GPU"], "'cuda'. Did you mean cuda?"),
    ],
)
def test_the_command_line_suggests_in_one_line(words: list[str], said: str, run: Run, tmp_path: Path) -> None:
    answer = run(*(word.format(here=tmp_path, new=tmp_path / "new") for word in words))
    assert answer.code == 2
    assert said in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_the_other_command_suggests_its_own_names(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = caller(fewshot.cli.main.main, "fewshot", monkeypatch, capfd)("predict")
    assert "Did you mean recognize?" in answer.err


def test_nothing_is_suggested_where_nothing_is_close() -> None:
    assert suggestion("xyzzy", ["lr", "epochs"]) is None
    with pytest.raises(
        InputError, match="unknown option 'xyzzy'; known are backbone, backbones, background, batch_size"
    ):
        Config.from_dict({"xyzzy": 1})


def test_a_synonym_is_suggested_only_where_its_command_exists() -> None:
    assert suggestion("classify", ["enrol", "recognize"], COMMANDS) == "recognize"
    assert suggestion("classify", ["fit", "predict"], COMMANDS) == "predict"
