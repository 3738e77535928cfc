from __future__ import annotations

from command_help import complaints, listed

from fewshot.cli.main import cli
from fewshot.evaluation.measure import NEEDED


def test_every_option_has_a_whole_sentence_and_its_default() -> None:
    assert complaints(cli, "fewshot") == []


def test_commands_are_listed_in_the_order_of_use() -> None:
    rows = listed(cli, "fewshot")
    names = [name for name, _ in rows]
    assert names == list(cli.commands)
    assert [name for name in names if name in ("enrol", "recognize", "embed", "search", "train", "benchmark")] == [
        "enrol",
        "recognize",
        "embed",
        "search",
        "train",
        "benchmark",
    ]
    assert [name for name, line in rows if not line.endswith(".") or line.endswith("...")] == []


def test_the_help_of_train_explains_minutes() -> None:
    assert "--minutes limits the training steps alone" in " ".join((cli.commands["train"].help or "").split())


def test_the_help_of_benchmark_names_every_protocol() -> None:
    protocol = next(option for option in cli.commands["benchmark"].params if option.name == "protocols")
    text = getattr(protocol, "help", "")
    assert [name for name in NEEDED if name not in text] == []
