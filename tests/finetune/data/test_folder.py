from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from finetune.data import folder as folder_module
from finetune.data.folder import Listing, Sample, list_folder, list_unlabelled
from finetune.data.images import read_content
from finetune.errors import InputError


def write(root: Path, *paths: str) -> Path:
    """Files below `root`, each with its own path as content: listing never looks inside."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(os.fsencode(path))
    return root


def listed(listing: Listing) -> list[tuple[str, str, str | None]]:
    return [(sample.path, sample.label, sample.split) for sample in listing.samples]


def refusal(root: Path, *, to_train: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        list_folder(root, to_train=to_train)
    text = str(caught.value)
    assert str(root) in text
    assert "\n" not in text
    return text


# ---- listing


def test_a_class_is_a_first_level_folder_with_all_below_it(tmp_path: Path) -> None:
    root = write(tmp_path, "dog/2.PNG", "cat/red/deep/1.jpg", "cat/b.JPeG", "cat/red.jpg/a.webp")
    listing = list_folder(root)
    assert listed(listing) == [
        ("cat/b.JPeG", "cat", None),
        ("cat/red.jpg/a.webp", "cat", None),
        ("cat/red/deep/1.jpg", "cat", None),
        ("dog/2.PNG", "dog", None),
    ]
    assert listing.classes == ("cat", "dog")
    assert listing.root == root
    assert listing.notes == ()
    assert [sample.size for sample in listing.samples] == [len(sample.path) for sample in listing.samples]


def test_hidden_names_are_ignored_at_every_level(tmp_path: Path) -> None:
    root = write(tmp_path / ".kept", "cat/a.jpg", "dog/a.jpg", "cat/.a.jpg", "cat/._a.jpg", ".ipynb_checkpoints/a.jpg")
    write(root, "cat/.thumbnails/a.jpg", "__MACOSX/cat/a.jpg", "dog/__MACOSX/a.jpg", ".DS_Store")
    listing = list_folder(root)
    assert [sample.path for sample in listing.samples] == ["cat/a.jpg", "dog/a.jpg"]
    assert listing.notes == ()


def test_what_is_ignored_is_told(tmp_path: Path) -> None:
    root = write(tmp_path, "cat/a.jpg", "dog/a.jpg", "cat/notes.txt", "labels.csv", "cat/noextension", "stray.jpg")
    (root / "owl" / "young").mkdir(parents=True)
    (root / "cat" / "nothing").mkdir()
    os.mkfifo(root / "cat" / "pipe.jpg")
    listing = list_folder(root)
    assert [sample.path for sample in listing.samples] == ["cat/a.jpg", "dog/a.jpg"]
    assert listing.notes == (
        "Folders without pictures are left out: owl.",
        "Pictures outside class folders are ignored: stray.jpg.",
        "Files that are not pictures are ignored: 4.",
    )


def test_the_order_is_that_of_the_paths_whatever_the_system_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["b/10.jpg", "b/2.jpg", "a/x.jpg", "a-b/y.jpg", "B2/z.jpg", "é/1.jpg", "a/sub/1.jpg", "a/empty.txt"]
    root = write(tmp_path, *names)
    forward = list_folder(root)
    system = os.listdir
    monkeypatch.setattr(folder_module.os, "listdir", lambda path: sorted(system(path), reverse=True))
    assert list_folder(root) == forward
    assert [sample.path for sample in forward.samples] == sorted(name for name in names if name.endswith("jpg"))


def test_links_are_followed_and_circles_left(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "cat/a.jpg", "dog/a.jpg")
    write(tmp_path / "elsewhere", "1.jpg", "below/2.jpg")
    (root / "owl").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "up").symlink_to(root)
    (root / "dog" / "self").symlink_to(root / "dog")
    (tmp_path / "elsewhere" / "below" / "back").symlink_to(tmp_path / "elsewhere")
    listing = list_folder(root)
    assert [sample.path for sample in listing.samples] == ["cat/a.jpg", "dog/a.jpg", "owl/1.jpg", "owl/below/2.jpg"]
    assert listing.notes == ("Links to a folder above them are not followed: cat/up, dog/self, owl/below/back.",)


def test_the_same_folder_may_stand_in_two_places(tmp_path: Path) -> None:
    root = write(tmp_path, "train/cat/a.jpg", "train/dog/a.jpg")
    (root / "val").symlink_to(root / "train")
    assert [sample.split for sample in list_folder(root).samples] == ["train", "train", "val", "val"]


def test_broken_links_are_listed_when_they_are_called_pictures(tmp_path: Path) -> None:
    root = write(tmp_path, "cat/a.jpg", "dog/a.jpg")
    (root / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "cat" / "circle.png").symlink_to("circle.png")
    (root / "cat" / "gone").symlink_to("nowhere")
    listing = list_folder(root)
    assert [(sample.path, sample.size) for sample in listing.samples if sample.size < 0] == [
        ("cat/circle.png", -1),
        ("cat/gone.jpg", -1),
    ]
    assert listing.notes == ("Files that are not pictures are ignored: 1.",)


def test_names_of_any_encoding_survive(tmp_path: Path) -> None:
    strange = os.fsdecode(b"\xff\xfe.jpg")
    root = write(tmp_path, f"Größe 大/{strange}", "dog/a b.jpg")
    listing = list_folder(root)
    assert [sample.path for sample in listing.samples] == [f"Größe 大/{strange}", "dog/a b.jpg"]
    assert read_content(root / listing.samples[0].path)
    rows = json.loads(json.dumps([dataclasses.asdict(sample) for sample in listing.samples]))
    assert [Sample(**row) for row in rows] == list(listing.samples)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path, "cat/a.jpg", "dog/a.jpg")
    system = os.listdir

    def forbidding(path: Path) -> list[str]:
        if path.name == "dog":
            raise PermissionError(13, "Permission denied")
        return system(path)

    monkeypatch.setattr(folder_module.os, "listdir", forbidding)
    assert "dog cannot be listed: Permission denied" in refusal(root)


# ---- splits given by folders


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_split_folders_are_recognised(tmp_path: Path, name: str) -> None:
    root = write(tmp_path, "Train/cat/a/1.jpg", "Train/dog/1.jpg", f"{name}/cat/1.jpg", "test/dog/1.jpg")
    write(root, "annotations/cat.xml")
    assert sorted((label, split) for _, label, split in listed(list_folder(root))) == [
        ("cat", "train"),
        ("cat", "val"),
        ("dog", "test"),
        ("dog", "train"),
    ]


def test_train_alone_is_a_split(tmp_path: Path) -> None:
    root = write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "train/stray.jpg")
    (root / "test" / "cat").mkdir(parents=True)
    (root / "train" / "owl").mkdir()
    listing = list_folder(root)
    assert {split for _, _, split in listed(listing)} == {"train"}
    assert listing.notes == (
        "Folders without pictures are left out: test, train/owl.",
        "Pictures outside class folders are ignored: train/stray.jpg.",
    )


@pytest.mark.parametrize(
    "paths",
    [
        ["train/1.jpg", "bus/1.jpg", "car/1.jpg"],
        ["train/1.jpg", "test/1.jpg"],
        ["train/steam/1.jpg", "bus/1.jpg"],
        ["val/1.jpg", "test/1.jpg"],
    ],
)
def test_folders_of_vehicles_are_classes(tmp_path: Path, paths: list[str]) -> None:
    listing = list_folder(write(tmp_path, *paths))
    assert listing.classes == tuple(sorted({path.split("/")[0] for path in paths}))
    assert {sample.split for sample in listing.samples} == {None}
    names = [name for name in listing.classes if name in ("train", "val", "test")]
    assert listing.notes == (f"These folders are taken as classes, not as splits: {', '.join(names)}.",)


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "valid/cat/1.jpg")
    assert "both val/ and valid/" in refusal(root)


def test_splits_without_training_pictures_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, "val/cat/1.jpg", "val/dog/1.jpg", "test/cat/1.jpg")
    (root / "train" / "cat").mkdir(parents=True)
    assert "no pictures in train/" in refusal(root)
    assert {split for _, _, split in listed(list_folder(root, to_train=False))} == {"val", "test"}


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_class_to_measure_on_but_not_to_learn_is_named(tmp_path: Path, split: str) -> None:
    root = write(tmp_path, "train/cat/1.jpg", "train/dog/1.jpg", f"{split}/cat/1.jpg", f"{split}/owl/1.jpg")
    text = refusal(root)
    assert "'owl'" in text
    assert f"{split}/" in text
    assert list_folder(root, to_train=False).classes == ("cat", "dog", "owl")


# ---- folders that cannot be used


def test_a_missing_folder_and_a_file_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal(tmp_path / "file")


@pytest.mark.parametrize("paths", [[], ["a.jpg", "b.jpg"], ["cat/a.txt"], [".hidden/a.jpg"]])
def test_a_folder_without_classes_says_what_is_expected(tmp_path: Path, paths: list[str]) -> None:
    write(tmp_path, *paths)
    assert "<class>/<picture>" in refusal(tmp_path)
    assert "<class>/<picture>" in refusal(tmp_path, to_train=False)


def test_one_class_is_too_few_to_train(tmp_path: Path) -> None:
    root = write(tmp_path, "cat/a.jpg")
    (root / "dog").mkdir()
    assert "at least two" in refusal(root)
    assert list_folder(root, to_train=False).classes == ("cat",)


@pytest.mark.parametrize(
    "pair", [("Cat", "cat"), ("Straße", "STRASSE"), ("caf\u00e9", "cafe\u0301")], ids=["case", "fold", "encoding"]
)
def test_classes_that_look_the_same_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    assert "case or encoding" in refusal(write(tmp_path / "flat", f"{pair[0]}/1.jpg", f"{pair[1]}/1.jpg", "dog/1.jpg"))
    split = write(tmp_path / "split", f"train/{pair[0]}/1.jpg", "train/dog/1.jpg", f"val/{pair[1]}/1.jpg")
    assert "case or encoding" in refusal(split)


# ---- a folder one level too high


def test_data_sets_taken_for_classes_are_refused_with_the_likely_path(tmp_path: Path) -> None:
    root = write(tmp_path / "photos", "textures/dots/1.jpg", "textures/lines/1.jpg", "weights/notes.txt")
    write(root, *(f"flowers/{split}/{label}/1.jpg" for split in ("train", "val") for label in ("rose", "tulip")))
    write(root, "pets/Train/cat/1.jpg", "pets/Train/dog/1.jpg")
    for to_train in (True, False):
        text = refusal(root, to_train=to_train)
        assert "in 2 of its 3 folders of pictures there is train/ or val/ with classes inside (flowers, pets)" in text
        assert text.endswith(f"did you mean {root / 'flowers'}?")
    assert list_folder(root / "textures").notes == ()


def test_one_folder_around_the_classes_is_named(tmp_path: Path) -> None:
    root = write(tmp_path, "photos/cat/1.jpg", "photos/dog/1.jpg")
    assert refusal(root).endswith(f"did you mean {root / 'photos'}?")
    assert "did you mean" not in refusal(write(tmp_path / "one", "cat/deep/1.jpg", "cat/2.jpg"))


def test_a_note_names_classes_with_nothing_but_folders(tmp_path: Path) -> None:
    root = write(tmp_path, "Greek/alpha/1.png", "Greek/beta/1.png", "Latin/a/1.png", "Latin/b/deep/1.png")
    listing = list_folder(root)
    assert listing.classes == ("Greek", "Latin")
    assert listing.notes == (
        "Folders with nothing but folders are taken as 2 classes: Greek (2), Latin (2). "
        f"If each is a data set with classes of its own, give one of them: {root / 'Greek'}.",
    )
    write(root, "Latin/c.png")
    assert list_folder(root).notes == ()


def test_splits_below_the_classes_are_told(tmp_path: Path) -> None:
    root = write(tmp_path, "cat/train/1.jpg", "cat/test/2.jpg", "dog/train/1.jpg", "dog/test/2.jpg")
    listing = list_folder(root)
    assert listing.classes == ("cat", "dog")
    (note,) = listing.notes
    assert note.startswith("Folders inside classes are not taken as splits: cat/test, cat/train, dog/test, dog/train.")


# ---- pictures without classes


def test_unlabelled_pictures_are_files_as_given_and_folders_walked(tmp_path: Path) -> None:
    root = write(tmp_path, "in/b/2.jpg", "in/z.png", "in/.hidden/3.jpg", "in/readme.txt", "odd.dat")
    (root / "gone.jpg").symlink_to("nowhere")
    given_paths = [root / "odd.dat", root / "in", root / "gone.jpg"]
    assert list_unlabelled(given_paths) == [
        root / "odd.dat",
        root / "in" / "b" / "2.jpg",
        root / "in" / "z.png",
        root / "gone.jpg",
    ]


def test_unlabelled_paths_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jpg does not exist"):
        list_unlabelled([tmp_path / "absent.jpg"])
    with pytest.raises(InputError, match="holds no pictures"):
        list_unlabelled([write(tmp_path / "empty", "readme.txt")])
