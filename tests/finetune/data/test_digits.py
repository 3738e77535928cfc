"""The bundled digits as a folder: counts, determinism, appearance, and never half a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from finetune.data.digits import write_digits
from finetune.errors import InputError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "below" / "digits"
    write_digits(folder, per_class=10, seed=0)
    return folder


def test_every_digit_is_written_once_and_the_rest_is_for_testing(digits: Path) -> None:
    names = [path.name for path in digits.rglob("*.png")]
    assert len(names) == len(set(names)) == 1797
    for split in ("train", "val"):
        assert {path.name: len(list(path.iterdir())) for path in (digits / split).iterdir()} == dict.fromkeys(
            "0123456789", 10
        )
    assert len(list(digits.glob("test/*/*.png"))) == 1597


def test_a_picture_lies_in_the_folder_of_its_class(digits: Path) -> None:
    target = load_digits().target
    assert all(target[int(path.stem)] == int(path.parent.name) for path in digits.rglob("*.png"))


def test_pictures_are_dark_ink_on_white_paper_large_enough_to_look_at(digits: Path) -> None:
    scans = load_digits().images
    for path in digits.glob("train/*/*.png"):
        with Image.open(path) as picture:
            assert (picture.size, picture.mode) == ((32, 32), "L")
            small = np.asarray(picture.resize((8, 8), Image.Resampling.BOX), dtype=float)
        assert np.corrcoef(small.ravel(), scans[int(path.stem)].ravel())[0, 1] < -0.9


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes_and_another_chooses_others(digits: Path, tmp_path: Path) -> None:
    write_digits(tmp_path / "again", per_class=10, seed=0)
    write_digits(tmp_path / "other", per_class=10, seed=1)
    assert contents(tmp_path / "again") == contents(digits)
    assert contents(tmp_path / "other").keys() != contents(digits).keys()


def test_a_complete_folder_is_left_alone(digits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    write_digits(digits, per_class=10, seed=0)
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    write_digits(tmp_path, per_class=2)
    assert len(list(tmp_path.glob("train/*/*.png"))) == 20


@pytest.mark.parametrize("options", [{"per_class": 9}, {"seed": 1}])
def test_a_folder_of_another_choice_is_refused(digits: Path, options: dict[str, int]) -> None:
    with pytest.raises(InputError, match="something other than these digits"):
        write_digits(digits, **options)


def test_a_folder_or_file_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for place in (tmp_path, mine):
        with pytest.raises(InputError, match="something other than these digits"):
            write_digits(place)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("per_class", [0, -1, 87, 1000])
def test_a_number_of_digits_that_leaves_an_empty_split_is_refused(tmp_path: Path, per_class: int) -> None:
    with pytest.raises(InputError, match="from 1 to 86"):
        write_digits(tmp_path / "digits", per_class=per_class)


def test_the_folder_may_be_a_text(tmp_path: Path) -> None:
    write_digits(str(tmp_path / "digits"), per_class=1)
    assert len(list((tmp_path / "digits" / "train").iterdir())) == 10
