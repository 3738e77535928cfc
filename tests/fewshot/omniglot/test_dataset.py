from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_omniglot import drawing, pictures, png, runs, unpacked, zipped
from PIL import Image

from fewshot.omniglot.archive import contents
from fewshot.omniglot.dataset import Character, Omniglot, lake_runs, locate, read_omniglot
from finetune.errors import InputError, UnreadablePicture


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for kind in ("background", "evaluation"):
        zipped(tmp_path / f"images_{kind}.zip", pictures(kind))
    zipped(tmp_path / "all_runs.zip", runs())
    return tmp_path


@pytest.fixture(scope="module")
def real(real_data: Path) -> Omniglot:
    try:
        return read_omniglot(real_data)
    except InputError as error:
        pytest.skip(str(error))


# --- drawings ---------------------------------------------------------------------------------------------------------


def test_drawings_are_sorted_by_name(place: Path) -> None:
    omniglot = read_omniglot(place)
    assert omniglot.alphabets == ("Alpha", "Beta", "Gamma_(new)")
    assert omniglot.characters == tuple(
        Character(name, number)
        for name, count in (("Alpha", 2), ("Beta", 3), ("Gamma_(new)", 2))
        for number in range(1, count + 1)
    )
    assert omniglot.character.tolist() == [character for character in range(7) for _ in range(3)]
    assert omniglot.alphabet.tolist() == [0] * 6 + [1] * 9 + [2] * 6
    assert omniglot.drawer.tolist() == [0, 1, 2] * 7
    assert str(omniglot.characters[-1]) == "Gamma_(new)/character02"


def test_ink_is_255_on_0(place: Path) -> None:
    omniglot = read_omniglot(place, ("background",))
    assert omniglot.pictures.dtype == torch.uint8
    assert omniglot.pictures.shape == (len(omniglot), 105, 105) == (15, 105, 105)
    # Beta is the first in the fake set: its character 1 has number 1, and this is drawer 2's.
    assert np.array_equal(omniglot.pictures[7].numpy(), drawing(102) * np.uint8(255))


@pytest.mark.slow
def test_an_unpacked_archive_reads_like_its_zip(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked" / "omniglot"
    for kind in ("background", "evaluation"):
        unpacked(folder, pictures(kind))
    unpacked(folder / "all_runs", runs())
    (folder / "images_background" / "Alpha" / ".DS_Store").touch()
    ours, theirs = read_omniglot(folder.parent), read_omniglot(place)
    assert ours.characters == theirs.characters
    assert torch.equal(ours.pictures, theirs.pictures)
    for our, their in zip(lake_runs(folder), lake_runs(place), strict=True):
        assert torch.equal(our.test, their.test)
        assert torch.equal(our.answers, their.answers)


def test_grey_pictures_are_thresholded_at_middle_grey(tmp_path: Path) -> None:
    grey = np.full((105, 105), 200, np.uint8)
    grey[50:60, 50:60] = 90
    path = tmp_path / "images_background" / "Alpha" / "character01" / "0001_01.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(grey).save(path)
    assert torch.equal(read_omniglot(tmp_path, ("background",)).pictures[0] > 0, torch.from_numpy(grey < 128))


def test_files_that_macos_adds_are_ignored(tmp_path: Path) -> None:
    name = "images_background/Alpha/character01/0001_01.png"
    zipped(tmp_path / "images_background.zip", {name: png(drawing(0)), f"__MACOSX/{name}": b"junk"})
    assert len(read_omniglot(tmp_path, ("background",))) == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no pictures"),
        ({"Alpha/character01/0001_21.png": png(drawing(0))}, "0001_21.png"),
        ({"Alpha/0001_01.png": png(drawing(0))}, "not a name like"),
        ({"Alpha/character01/0001_01.png": b"junk"}, "not a PNG"),
        ({"Alpha/character01/0001_01.png": png(drawing(0)[:50])}, "105x50; Omniglot has 105x105"),
        ({f"{copy}Alpha/character01/0001_01.png": png(drawing(0)) for copy in ("", "copy/")}, "Alpha/character01"),
    ],
)
def test_files_that_are_not_omniglot_are_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    zipped(tmp_path / "images_background.zip", {f"images_background/{name}": file for name, file in files.items()})
    with pytest.raises(InputError, match=message):
        read_omniglot(tmp_path, ("background",))


def test_a_damaged_picture_raises_unreadable_picture(tmp_path: Path) -> None:
    zipped(tmp_path / "images_background.zip", {"Alpha/character01/0001_01.png": png(drawing(0))[:60]})
    with pytest.raises(UnreadablePicture, match=r"0001_01\.png"):
        read_omniglot(tmp_path, ("background",))


def test_unknown_sets_are_refused(place: Path) -> None:
    for sets in (("train",), ()):
        with pytest.raises(InputError, match="background and evaluation"):
            read_omniglot(place, sets)


# --- where it is ------------------------------------------------------------------------------------------------------


def test_the_folder_is_an_argument_or_an_environment_variable(
    place: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locate(place) == place
    parent = tmp_path_factory.mktemp("data")
    (parent / "omniglot").symlink_to(place)
    for root in (parent, parent / "omniglot"):
        monkeypatch.setenv("FEWTUNE_DATA", str(root))
        assert locate() == parent / "omniglot"
    assert locate(place) == place


def test_a_folder_without_omniglot_names_the_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"images_background\.zip"):
        locate(tmp_path)
    monkeypatch.setenv("FEWTUNE_DATA", "")
    with pytest.raises(InputError, match="FEWTUNE_DATA"):
        locate()
    zipped(tmp_path / "all_runs.zip", {})
    with pytest.raises(InputError, match=r"neither images_evaluation\.zip nor"):
        read_omniglot(tmp_path, ("evaluation",))


# --- unsafe and damaged archives --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../out.png", "a/../../out.png", "/etc/out.png", "C:/out.png", "c:out.png", "..\\out.png", "\\\\host\\out.png"],
)
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="leads out") as caught:
        list(contents(zipped(tmp_path / "images_background.zip", {"Alpha/a.png": b"", name: b""})))
    assert repr(name) in str(caught.value)


def test_links_and_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "images_background.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("Alpha/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match=r"'Alpha/link\.png' is a link"):
        list(contents(path))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Alpha/bomb.png", bytes(2_000_000))
    with pytest.raises(InputError, match=r"'Alpha/bomb\.png' is 2,000,000 bytes"):
        list(contents(path))


def test_a_damaged_archive_is_named(place: Path) -> None:
    path = place / "images_background.zip"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"images_background\.zip cannot be read"):
        read_omniglot(place)
    start = whole.index(b"IDAT")
    path.write_bytes(whole[:start] + b"????" + whole[start + 4 :])
    with pytest.raises(InputError, match="CRC"):
        read_omniglot(place)


# --- Lake's runs ------------------------------------------------------------------------------------------------------


def test_runs_have_their_answers(place: Path) -> None:
    found = lake_runs(place)
    assert [run.name for run in found] == [f"run{number:02d}" for number in range(1, 21)]
    for run in found:
        assert run.train.shape == run.test.shape == (20, 105, 105)
        for item, answer in enumerate(run.answers):
            assert torch.equal(run.test[item], run.train[answer].roll(1, dims=1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run02/class_labels.txt": None}, "19 runs"),
        ({"run02/class_labels.txt": b"run02/test/item01.png"}, r"run02/class_labels\.txt: 20 lines"),
        ({"run02/test/item01.png": None}, "run02: class_labels.txt and the pictures"),
        ({"run02/training/class21.png": png(drawing(0))}, "run02: class_labels.txt and the pictures"),
    ],
)
def test_incomplete_runs_are_named(tmp_path: Path, change: dict[str, bytes | None], message: str) -> None:
    files = {name: content for name, content in {**runs(), **change}.items() if content is not None}
    zipped(tmp_path / "all_runs.zip", files)
    with pytest.raises(InputError, match=message):
        lake_runs(tmp_path)


# --- the real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_of_omniglot_is_read(real: Omniglot) -> None:
    assert real.pictures.shape == (32_460, 105, 105)
    assert len(real.alphabets) == 50
    assert len(real.characters) == 1623
    assert torch.equal(real.character, torch.arange(1623).repeat_interleave(20))
    assert torch.equal(real.drawer, torch.arange(20).repeat(1623))
    seen = real.pictures[::50]
    assert ((seen == 0) | (seen == 255)).all()
    shares = (seen > 0).double().mean((1, 2))
    assert shares.min() > 0
    assert shares.max() < 0.25  # ink, not paper


@pytest.mark.slow
def test_the_runs_are_drawings_of_the_evaluation_set(real: Omniglot, real_data: Path) -> None:
    whose = {picture.numpy().tobytes(): row for row, picture in enumerate(real.pictures)}
    for run in lake_runs(real_data):
        test = torch.tensor([whose[picture.numpy().tobytes()] for picture in run.test])
        train = torch.tensor([whose[picture.numpy().tobytes()] for picture in run.train])
        assert torch.equal(real.character[test], real.character[train][run.answers])
        assert len(real.alphabet[test].unique()) == 1
        assert len(real.drawer[test].unique()) == len(real.drawer[train].unique()) == 1
