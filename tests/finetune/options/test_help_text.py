from __future__ import annotations

import dataclasses

import click
import pytest
from command_help import complaints, listed

from finetune import Config
from finetune.cli.main import cli


def test_every_option_has_a_whole_sentence_and_its_default() -> None:
    assert complaints(cli, "finetune") == []


@pytest.mark.parametrize("path", ["finetune", "finetune cache"])
def test_commands_are_listed_in_the_order_of_use(path: str) -> None:
    group = cli if path == "finetune" else cli.commands["cache"]
    assert isinstance(group, click.Group)
    rows = listed(group, path)
    assert [name for name, _ in rows] == list(group.commands)
    assert [name for name, line in rows if not line.endswith(".") or line.endswith("...")] == []


def test_a_group_begins_with_what_is_used_first() -> None:
    assert [name for name, _ in listed(cli, "finetune")][:4] == ["inspect", "fit", "evaluate", "predict"]


def test_fit_shows_what_is_often_needed_first_and_what_is_rarely_needed_last() -> None:
    text = cli.commands["fit"].get_help(click.Context(cli.commands["fit"], info_name="finetune fit"))
    options = [f"\n  {option} " for option in ("--out", "--strategy", "--backbone", "--weights", "--epochs", "--json")]
    places = [text.index(each) for each in (*options, "\n  --lr ", "\n  --flip ", "\n  --max-pixels ")]
    assert places == sorted(places)
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[0] == "Options:"
    assert headings[-1] == "Rarely needed:"


def test_an_option_that_is_not_given_says_what_the_run_takes() -> None:
    for option in dataclasses.fields(Config):
        assert option.default is not None or option.metadata["unset"], option.name
    text = " ".join(cli.commands["fit"].get_help(click.Context(cli.commands["fit"])).split())
    assert "(chosen by strategy and number of pictures)" in text
