from __future__ import annotations

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeFolder
from PIL import Image
from told import NothingSaid, Told

import finetune
from finetune.api.inspect import inspect_folder
from finetune.config import Config
from finetune.data.folder import IN_MEMORY, Listing, Sample, list_folder
from finetune.data.split_record import record_splits, recorded_splits
from finetune.files.reading import read_json

SMALL = {"backbone": "fewtune_conv4", "device": "cpu", "strategy": "head", "cache": False}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def splits(run: Path) -> dict[str, str]:
    with (run / "pictures.csv").open(newline="") as file:
        return {row["path"]: row["split"] for row in csv.DictReader(file)}


def add(folder: Path, label: str, count: int) -> None:
    random = np.random.default_rng(7)
    for number in range(count):
        pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / label / f"more{number}.png")


@pytest.mark.slow
def test_pictures_stay_in_their_split_when_others_are_added(
    make_folder: MakeFolder, tmp_path: Path, cache: Path
) -> None:
    folder = make_folder(classes={"blue": 30, "green": 30})
    finetune.fit(folder, tmp_path / "first", **SMALL)
    before = splits(tmp_path / "first")
    for label in ("blue", "green"):
        sides = [split for path, split in before.items() if path.startswith(label)]
        assert [sides.count(split) for split in ("train", "val", "test")] == [21, 4, 5]
    add(folder, "blue", 60)
    finetune.fit(folder, tmp_path / "second", **SMALL)
    after = splits(tmp_path / "second")
    assert {path: after[path] for path in before} == before
    sides = [split for path, split in after.items() if path.startswith("blue")]
    assert [sides.count(split) for split in ("train", "val", "test")] == [63, 13, 14]
    assert inspect_folder(folder, config=Config(**SMALL)).counts["blue"] == {"train": 63, "val": 13, "test": 14}
    shutil.rmtree(cache)
    finetune.fit(folder, tmp_path / "third", **SMALL)
    assert splits(tmp_path / "third") != after, "without the record the folder is new"


@pytest.mark.slow
def test_a_run_goes_on_with_its_splits_when_the_record_is_gone(
    make_folder: MakeFolder, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = make_folder(classes={"blue": 20, "green": 20}), SMALL | {"strategy": "full", "epochs": 1}
    finetune.fit(folder, tmp_path / "first", **SMALL)
    before = splits(tmp_path / "first")
    add(folder, "blue", 40)

    class Stop(Exception):
        pass

    def fail(*args: object, **options: object) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("finetune.api.fit.train", fail)
        with pytest.raises(Stop):
            finetune.fit(folder, tmp_path / "run", **options)
    shutil.rmtree(cache)
    finetune.fit(folder, tmp_path / "run", resume=True, **options)
    after = splits(tmp_path / "run")
    assert {path: after[path] for path in before} == before


def test_records_are_of_one_folder_and_its_fractions(make_folder: MakeFolder, cache: Path) -> None:
    listing, config = list_folder(make_folder(classes={"blue": 2, "green": 2})), Config()
    record_splits(listing, {"aa": "test"}, config, NothingSaid())
    record_splits(listing, {"bb": "val", "cc": "train"}, config, NothingSaid())
    assert recorded_splits(listing, config) == {"aa": "test", "bb": "val", "cc": "train"}
    assert recorded_splits(listing, Config(val_fraction=0.2)) == {}
    assert recorded_splits(list_folder(make_folder("other", classes={"blue": 2, "green": 2})), config) == {}
    unnamed = Listing(listing.root, listing.samples, (), table=IN_MEMORY)
    record_splits(unnamed, {"dd": "test"}, config, NothingSaid())
    assert recorded_splits(unnamed, config) == {}


def test_a_picture_of_an_earlier_run_moves_to_its_new_split(make_folder: MakeFolder, cache: Path) -> None:
    listing, config = list_folder(make_folder(classes={"blue": 2, "green": 2})), Config()
    record_splits(listing, {"bb": "val", "aa": "test"}, config, NothingSaid())
    (path,) = (cache / "splits").iterdir()
    written = path.stat().st_ino
    record_splits(listing, {"aa": "test"}, config, NothingSaid())
    assert path.stat().st_ino == written, "nothing is new, so nothing is written"
    record_splits(listing, {"aa": "val"}, config, NothingSaid())
    assert recorded_splits(listing, config) == {"aa": "val", "bb": "val"}
    assert read_json(path) == {
        "format": 1,
        "pictures": str(listing.root.resolve()),
        "val_fraction": config.val_fraction,
        "test_fraction": config.test_fraction,
        "splits": {"train": [], "val": ["aa", "bb"], "test": []},
    }


@pytest.mark.parametrize(("given", "recorded"), [(("val", "test"), False), (("train", "val"), True)])
def test_nothing_is_recorded_where_both_splits_are_given(given: tuple[str, str], recorded: bool, cache: Path) -> None:
    samples = tuple(Sample(f"{split}/a/0.png", "a", split, 1) for split in given)
    listing = Listing(Path("pictures"), samples, ())
    record_splits(listing, {"aa": "val"}, Config(), NothingSaid())
    assert recorded_splits(listing, Config()) == ({"aa": "val"} if recorded else {})


def test_the_splits_of_a_folder_or_a_table_or_all_are_forgotten(make_folder: MakeFolder, cache: Path) -> None:
    assert finetune.forget_splits() == 0
    folders = [make_folder(name, classes={"blue": 1, "green": 1}) for name in ("one", "other")]
    listings = [list_folder(folder) for folder in folders]
    listings.append(replace(listings[0], table=str(folders[0].resolve() / "table.csv")))
    fractions = [Config(), Config(val_fraction=0.3)]
    for listing in listings:
        for config in fractions:
            record_splits(listing, {"aa": "test"}, config, NothingSaid())
    for name, text in (("broken", "{"), ("list", "[]"), ("other", "{}")):
        (cache / "splits" / f"{name}.json").write_text(text)
    assert finetune.forget_splits(folders[0] / ".." / "one") == 2
    assert [bool(recorded_splits(listing, fractions[1])) for listing in listings] == [False, True, True]
    assert finetune.forget_splits(folders[0] / "table.csv") == 2
    assert finetune.forget_splits() == 2
    assert sorted(path.name for path in (cache / "splits").iterdir()) == ["broken.json", "list.json", "other.json"]


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 1, "splits": 3}', '{"format": 9}'])
def test_a_damaged_record_counts_as_none(text: str, make_folder: MakeFolder, cache: Path) -> None:
    listing, config = list_folder(make_folder(classes={"blue": 2, "green": 2})), Config()
    record_splits(listing, {"aa": "test"}, config, NothingSaid())
    (path,) = (cache / "splits").iterdir()
    path.write_text(text)
    assert recorded_splits(listing, config) == {}
    record_splits(listing, {"aa": "val"}, config, NothingSaid())
    assert recorded_splits(listing, config) == {"aa": "val"}


def test_one_line_says_that_a_record_cannot_be_written(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEWTUNE_CACHE", str(tmp_path / "file"))
    told = Told()
    listing = list_folder(make_folder(classes={"blue": 2, "green": 2}))
    record_splits(listing, {"aa": "test"}, Config(), told)
    assert len(told.lines) == 1
    assert "may move others" in told.lines[0]
