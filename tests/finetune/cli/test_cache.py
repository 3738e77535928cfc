from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from called import Answer, caller
from conftest import MakeFolder
from made_activations import KEY, aged, filled, of
from told import NothingSaid

from finetune.cli.cache import cache as cache_command
from finetune.config import Config
from finetune.data.folder import list_folder
from finetune.data.split_record import record_splits, recorded_splits
from finetune.features.cache_files import entries, size_of
from finetune.options.command_line import run_command


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    monkeypatch.setenv("FEWTUNE_CACHE", str(tmp_path))
    return caller(lambda: run_command(cache_command, "finetune cache"), "finetune cache", monkeypatch, capfd)


def test_the_command_lists_what_there_is(command: Callable[..., Answer], tmp_path: Path) -> None:
    folder = tmp_path / "activations"
    assert "0 bytes of at most" in command("list").out
    assert not folder.exists()
    long = replace(KEY, backbone="a_network_with_a_very_long_name_" * 4, seed=7)
    filled(folder, range(3), long)
    filled(folder, range(20), of(1))
    aged(folder, long, days=3.1)
    listed = command("list").out
    for part in (long.backbone, "random, seed 7", "3 days ago", "net1", "evaluation", "within the hour", str(folder)):
        assert part in listed
    answer = json.loads(command("list", "--json").out)
    assert answer["folder"] == str(folder)
    assert answer["bytes"] == size_of(folder) == sum(row["bytes"] for row in answer["families"])
    assert [(row["about"]["backbone"], row["pictures"]) for row in answer["families"]] == [
        ("net1", 20),
        (long.backbone, 3),
    ]


def test_the_command_deletes_what_it_is_told_and_nothing_that_is_not_its_own(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    folder = tmp_path / "activations"
    for number in range(3):
        filled(folder, range(3), of(number))
        aged(folder, of(number), days=number * 10)
    foreign = [folder / "mine.txt", folder / of(2).name / "notes.txt", folder / ("f" * 32) / "about.json"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    assert "1 file" in command("clear", "--older-than", 15).out
    assert {kept.about["backbone"] for kept in entries(folder)} == {"net0", "net1"}
    assert json.loads(command("clear", "--backbone", "net1", "--json").out)["families"] == 1
    assert {kept.about["backbone"] for kept in entries(folder)} == {"net0"}
    command("clear")
    assert entries(folder) == []
    assert all(path.exists() for path in foreign)
    assert command("clear", "--older-than", "x").code == 2


def test_the_command_forgets_splits(command: Callable[..., Answer], make_folder: MakeFolder, tmp_path: Path) -> None:
    folders = [make_folder(name, classes={"blue": 2, "red": 2}) for name in ("one", "two", "three")]
    listings = [list_folder(folder) for folder in folders]
    for listing in listings:
        for config in (Config(), Config(val_fraction=0.3)):
            record_splits(listing, {"aa": "test"}, config, NothingSaid())
    foreign = tmp_path / "splits" / "notes.json"
    foreign.write_text("[]")
    command("clear")
    assert recorded_splits(listings[0], Config()) == {"aa": "test"}, "no activation, and cannot be computed again"
    assert command("forget-splits", folders[0]).out == "2 records forgotten\n"
    assert [recorded_splits(listing, Config()) for listing in listings[:2]] == [{}, {"aa": "test"}]
    assert json.loads(command("forget-splits", "--json").out) == {"records": 4}
    assert recorded_splits(listings[2], Config()) == {}
    assert list((tmp_path / "splits").iterdir()) == [foreign]
