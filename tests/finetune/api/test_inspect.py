from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from called import Answer, caller
from conftest import MakeFolder
from hostile import hostile, state
from PIL import Image

from finetune.cli.main import main
from finetune.data.digits import write_digits

FAST = ("--backbone", "fewtune_conv4", "--device", "cpu")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


@pytest.fixture
def folder(make_folder: MakeFolder) -> Path:
    """12 pictures of each of two classes, and what is wrong with five more."""
    folder = make_folder(classes={"blue": 12, "red": 12})
    (folder / "red" / "copy.png").write_bytes((folder / "blue" / "001.png").read_bytes())
    blobs = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    scene = Image.fromarray(blobs).resize((240, 180), Image.Resampling.BICUBIC)
    scene.save(folder / "blue" / "scene.png")
    scene.resize((120, 90)).save(folder / "blue" / "scene.jpg", quality=80)
    scene.transpose(Image.Transpose.ROTATE_180).resize((400, 20)).convert("L").save(folder / "red" / "long.png")
    (folder / "red" / "bad[0].jpg").write_bytes(b"no picture")
    return folder


def test_everything_is_told_in_json_and_nothing_changed(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    before = state(folder)
    answer = run("inspect", folder, *FAST, "--json")
    assert (answer.code, answer.err) == (0, "")
    found = json.loads(answer.out)
    assert state(folder) == before
    assert found["pictures"] == 29
    assert {label: sum(counts.values()) for label, counts in found["counts"].items()} == {"blue": 14, "red": 14}
    assert found["balance"] == 1
    assert found["unreadable"] == [{"path": "red/bad[0].jpg", "reason": "not a picture"}]
    (identical,) = found["identical"]
    assert identical["paths"] == ["blue/001.png", "red/copy.png"]
    assert identical["labels"] == ["blue", "red"]
    assert len(identical["splits"]) == 1
    (near,) = found["near"]
    assert near["paths"] == ["blue/scene.jpg", "blue/scene.png"]
    assert len(near["splits"]) == 1, "splits that are made have them on one side"
    sizes = found["sizes"]
    assert sizes["smallest"] == sizes["median"] == [40, 40]
    assert sizes["largest"] == [240, 180]
    assert sizes["odd"] == ["red/long.png"]
    assert sizes["formats"] == {"PNG": 27, "JPEG": 1}
    assert sizes["modes"] == {"RGB": 27, "L": 1}
    assert found["refusal"] is None
    assert len(found["examples"]["red"]) == 6
    assert json.loads(run("inspect", folder, *FAST, "--json").out) == found, "from the cache"


def test_a_person_reads_the_worst_first_with_paths_to_copy(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    text = run("inspect", folder, *FAST).out
    order = [
        "29 pictures, 2 classes",
        "1 unreadable",
        f"{folder}/red/bad[0].jpg  not a picture",
        "1 group of identical",
        f"{folder}/blue/001.png  {folder}/red/copy.png  labels blue, red",
        "1 group of near-duplicates",
        "\nclass ",
        "sizes",
    ]
    places = [text.index(each) for each in order]
    assert places == sorted(places)


@pytest.mark.slow
def test_flipped_labels_are_told_and_drawn(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    write_digits(tmp_path / "digits", per_class=20)
    folder = tmp_path / "digits"
    for path in [path for number, path in enumerate(sorted(folder.glob("test/*/*"))) if number % 100]:
        path.unlink()
    shutil.rmtree(folder / "val")
    flipped = [folder / "train" / "0" / "flipped.png", folder / "train" / "6" / "flipped.png"]
    for path, source in zip(flipped, ("7", "1"), strict=True):
        next(iter(sorted((folder / "train" / source).iterdir()))).rename(path)
    sheet = tmp_path / "sheet.png"
    found = json.loads(run("inspect", folder, *FAST, "--sheet", sheet, "--json").out)
    suspects = {each["path"]: each["predicted"] for each in found["suspects"]}
    assert [suspects.get(f"train/{label}/flipped.png") for label in "06"] == ["7", "1"]
    assert len(suspects) < 30
    assert not any(path.startswith("test/") for path in suspects), "what measures is left alone"
    margins = [each["margin"] for each in found["suspects"]]
    assert margins == sorted(margins)
    assert all(margin < 0 for margin in margins)
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width == 1278


def test_near_duplicates_across_given_splits_come_first(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "split"
    for split in ("train", "val", "test"):
        for label in ("blue", "red"):
            (root / split / label).mkdir(parents=True)
    for number, path in enumerate(sorted(folder.glob("*/0*.png"))):
        (root / ("train", "val")[number % 2] / path.parent.name / path.name).write_bytes(path.read_bytes())
    (root / "test" / "red" / "001.png").write_bytes((folder / "red" / "001.png").read_bytes())
    for split, name in (("train", "scene.png"), ("test", "scene.jpg")):
        (root / split / "blue" / name).write_bytes((folder / "blue" / name).read_bytes())
    found = json.loads(run("inspect", root, *FAST, "--json").out)
    assert [group["splits"] for group in found["near"]] == [["train", "test"]]
    assert [group["splits"] for group in found["identical"]] == [["val", "test"]]
    told = "Near-duplicates in different splits are kept, 1 pair: test/blue/scene.jpg ~ train/blue/scene.png."
    assert told in found["notes"]


def test_a_folder_that_no_run_could_use_is_inspected_all_the_same(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    hostile(tmp_path / "hostile")
    before = state(tmp_path / "hostile")
    found = json.loads(run("inspect", tmp_path / "hostile", *FAST, "--json").out)
    assert "5 of 17 pictures" in found["refusal"]
    assert {entry["path"]: entry["reason"] for entry in found["unreadable"]}["dog/cut.jpg"] == "cut short"
    assert found["judged"] == 10
    text = run("inspect", tmp_path / "hostile", *FAST, "--sheet", tmp_path / "sheet.png").out
    assert "A run would stop: " in text
    assert "größe 大" in text
    assert (tmp_path / "sheet.png").exists()
    assert state(tmp_path / "hostile") == before


def test_what_cannot_be_done_is_refused_before_anything_is_read(run, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link").symlink_to(folder)
    before = state(folder)
    for words, named in (
        ((folder, "--sheet", tmp_path / "sheet.jpg"), "ends in .png"),
        ((folder, "--sheet", folder / "red" / "copy.png"), "nothing is changed"),
        ((folder, "--sheet", tmp_path / "link" / "new.png"), "nothing is changed"),
        ((folder, "--sheet", folder / "red" / "copy.png" / "sheet.png"), "--sheet"),
        ((folder, "--sheet", tmp_path / "folder.png"), "(--sheet) cannot be written, because it is a folder"),
        ((tmp_path, "--val-fraction", "0.9"), "--val-fraction"),
        ((tmp_path / "blue",), "blue"),
        ((folder, "--epochs", "3"), "--epochs"),
    ):
        answer = run("inspect", *words, *FAST)
        assert answer.code == 2
        assert named in answer.err
        assert len(answer.err.strip().splitlines()) == 1
    assert state(folder) == before


def test_where_no_picture_can_be_read_there_is_no_sheet_and_all_else_is_told(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for label in ("blue", "red"):
        (tmp_path / "folder" / label).mkdir(parents=True)
        (tmp_path / "folder" / label / "text.png").write_text("no picture")
    answer = run("inspect", tmp_path / "folder", *FAST, "--sheet", tmp_path / "sheet.png", "--json")
    assert (answer.code, len(answer.err.splitlines())) == (2, 1)
    assert "sheet.png (--sheet) was not drawn" in answer.err
    assert len(json.loads(answer.out)["unreadable"]) == 2
    assert not (tmp_path / "sheet.png").exists()


def test_names_stay_on_their_line(run, make_folder: MakeFolder) -> None:  # type: ignore[no-untyped-def]
    folder = make_folder(classes={"one\nline": 1, "[red]": 1})
    (folder / "[red]" / "a\nb\x1b[31m.png").write_text("no picture")
    text = run("inspect", folder, *FAST).out
    assert f"{folder}/[red]/a\\nb\\x1b[31m.png  not a picture" in text
    assert "\none\\nline  " in text
    assert "3 pictures, 2 classes" in text
