from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hostile import hostile, state
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune import folder as folder_module
from finetune.audit import Content, Folder, Unreadable, audit
from finetune.errors import InputError, UnreadablePicture
from finetune.folder import Listing, Sample, list_folder, list_unlabelled
from finetune.images import read_content, read_image

patient = settings(deadline=None)  # machines under load are slow at times


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
        "Folders without pictures, left out: owl.",
        "Pictures outside any class folder, ignored: stray.jpg.",
        "Files that are not pictures, ignored: 4.",
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
    assert listing.notes == (
        "Links back to a folder that they lie in, not followed: cat/up, dog/self, owl/below/back.",
    )


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
    assert listing.notes == ("Files that are not pictures, ignored: 1.",)


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
        "Folders without pictures, left out: test, train/owl.",
        "Pictures outside any class folder, ignored: train/stray.jpg.",
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
    assert listing.notes == (f"Folders taken as classes, not as splits: {', '.join(names)}.",)


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


# ---- audit, on contents made up: position p in [0, 1) of the hash decides, below 0.2 test, below 0.4 validation

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.2, "max_bad": 0.5}


def sha(position: float, rest: int = 0) -> str:
    return f"{int(position * 16**16):016x}{rest:048x}"


def made(pictures: Mapping[str, str | None]) -> tuple[Listing, list[Content]]:
    """A listing of path -> sha256, None for an unreadable picture; splits where the paths start with their names."""
    samples, contents = [], []
    for path, content in sorted(pictures.items()):
        *above, label, _ = path.split("/")
        samples.append(Sample(path, label, above[0] if above else None, 1))
        contents.append(Content(content) if content is not None else Content("", "cut short"))
    return Listing(Path("root"), tuple(samples), ("listed.",)), contents


def audited(pictures: Mapping[str, str | None], **options: float) -> tuple[Folder, dict[str, str]]:
    """The folder, and the side of each picture that is used."""
    listing, contents = made(pictures)
    folder = audit(listing, contents, **{**FRACTIONS, **options})
    sides = {split: getattr(folder, split) for split in ("train", "val", "test")}
    found = {listing.samples[index].path: split for split, indices in sides.items() for index in indices}
    assert len(found) == sum(map(len, sides.values())), "a picture on two sides"
    assert set(found) | {entry.path for entry in (*folder.unreadable, *folder.left_out)} == set(pictures)
    assert all(list(indices) == sorted(indices) for indices in sides.values())
    return folder, found


PLAIN = {
    "cat/0.jpg": sha(0.1),
    "cat/1.jpg": sha(0.3),
    "cat/2.jpg": sha(0.5),
    "cat/3.jpg": sha(0.9),
    "dog/0.jpg": sha(0.15),
    "dog/1.jpg": sha(0.35),
    "dog/2.jpg": sha(0.7),
}


def test_a_folder_is_split_by_the_hash_of_the_contents() -> None:
    folder, sides = audited(PLAIN)
    assert folder.classes == ("cat", "dog")
    assert {path for path, side in sides.items() if side == "test"} == {"cat/0.jpg", "dog/0.jpg"}
    assert {path for path, side in sides.items() if side == "val"} == {"cat/1.jpg", "dog/1.jpg"}
    assert (folder.unreadable, folder.left_out, folder.notes) == ((), (), ("listed.",))


def test_no_test_split_is_made_for_a_fraction_of_zero() -> None:
    _, sides = audited(PLAIN, test_fraction=0)
    assert {path for path, side in sides.items() if side == "val"} == {"cat/0.jpg", "dog/0.jpg"}
    assert "test" not in sides.values()


@pytest.mark.parametrize(
    ("val", "test", "named"),
    [
        (-0.1, 0.1, "--val-fraction"),
        (0.1, 1, "--test-fraction"),
        (float("nan"), 0, "--val-fraction"),
        (0.5, 0.5, "sum"),
    ],
)
def test_fractions_out_of_range_name_their_option(val: float, test: float, named: str) -> None:
    with pytest.raises(InputError, match=named):
        audited(PLAIN, val_fraction=val, test_fraction=test)


def test_given_splits_stay_and_a_missing_one_is_made_of_training() -> None:
    pictures = {f"train/{path}": content for path, content in PLAIN.items()} | {"val/cat/9.jpg": sha(0.6, 1)}
    _, sides = audited(pictures)
    assert {path for path, side in sides.items() if side == "val"} == {"val/cat/9.jpg"}
    assert {path for path, side in sides.items() if side == "test"} == {"train/cat/0.jpg", "train/dog/0.jpg"}
    _, sides = audited(pictures | {"test/cat/8.jpg": sha(0.6, 2)})
    assert all(path.startswith(side) for path, side in sides.items())


hashes = st.floats(0, 1, exclude_max=True).map(sha) | st.integers(0, 2**256 - 1).map("{:064x}".format)
# Enough on every side for the exceptions not to apply.
ANCHORS = {f"{label}/{side}.jpg": sha(p, n) for n, label in enumerate("ab") for side, p in (("v", 0.3), ("t", 0.9))}
folders = st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), hashes, max_size=25).map(
    lambda drawn: {f"{label}/{number}.jpg": content for (label, number), content in drawn.items()}
)


@patient
@given(folders, folders)
def test_adding_pictures_never_moves_old_ones(old: dict[str, str], added: dict[str, str]) -> None:
    anchors = ANCHORS | {"c/v.jpg": sha(0.3, 2), "c/t.jpg": sha(0.9, 2)}
    _, before = audited(anchors | old)
    _, after = audited(anchors | added | old)
    assert {path: after[path] for path in before} == before


@patient
@given(folders)
def test_identical_pictures_are_on_one_side(pictures: dict[str, str]) -> None:
    pictures = ANCHORS | pictures | {f"b/copy{n}.jpg": content for n, content in enumerate(pictures.values())}
    _, sides = audited(pictures)
    by_content: dict[str, set[str]] = {}
    for path, side in sides.items():
        by_content.setdefault(pictures[path], set()).add(side)
    assert all(len(found) == 1 for found in by_content.values())


@patient
@given(folders, st.floats(0, 0.9), st.floats(0, 0.9))
def test_every_class_can_be_trained_and_something_validated(pictures: dict[str, str], val: float, test: float) -> None:
    assume(val + test < 1)
    folder, sides = audited(ANCHORS | pictures, val_fraction=val, test_fraction=test)
    assert {path[0] for path, side in sides.items() if side == "train"} == set(folder.classes)
    assert folder.val
    assert set(sides) == set(ANCHORS | pictures)


@patient
@given(folders, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(pictures: dict[str, str], random: object) -> None:
    listing, contents = made(ANCHORS | pictures)
    order = list(range(len(contents)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = dataclasses.replace(listing, samples=tuple(listing.samples[index] for index in order))
    one = audit(listing, contents, **FRACTIONS)
    other = audit(shuffled, [contents[index] for index in order], **FRACTIONS)
    for split in ("train", "val", "test"):
        assert {listing.samples[index] for index in getattr(one, split)} == {
            shuffled.samples[index] for index in getattr(other, split)
        }


@pytest.mark.parametrize("fraction", [0.05, 0.15, 0.45])
def test_shares_are_those_asked_for(fraction: float) -> None:
    spread = {f"{'ab'[n % 2]}/{n}.jpg": sha((n + 0.5) / 1000) for n in range(1000)}
    folder, _ = audited(spread, val_fraction=fraction, test_fraction=fraction)
    assert abs(len(folder.val) - 1000 * fraction) <= 1
    assert abs(len(folder.test) - 1000 * fraction) <= 1


# ---- audit: the exceptions


def test_a_class_without_a_training_picture_keeps_all_of_its_own() -> None:
    pictures = PLAIN | {"owl/0.jpg": sha(0.11), "owl/1.jpg": sha(0.31)}
    folder, sides = audited(pictures)
    assert (sides["owl/0.jpg"], sides["owl/1.jpg"]) == ("train", "train")
    assert folder.notes[1:] == ("Classes that stay in training whole, which had none of them: owl.",)
    assert {path: side for path, side in sides.items() if path[:3] != "owl"} == audited(PLAIN)[1]


def test_its_pictures_stay_in_training_in_other_classes_too() -> None:
    folder, sides = audited(PLAIN | {"owl/0.jpg": PLAIN["cat/0.jpg"], "owl/1.jpg": sha(0.31)})
    assert (sides["owl/0.jpg"], sides["cat/0.jpg"]) == ("train", "train")
    assert "Identical pictures in two classes, kept: cat/0.jpg = owl/0.jpg." in folder.notes


@pytest.mark.parametrize("position", [0.1, 0.3, 0.9])
def test_a_class_of_one_picture_is_trained_on_and_told(position: float) -> None:
    folder, sides = audited(PLAIN | {"owl/0.jpg": sha(position, 1)})
    assert sides["owl/0.jpg"] == "train"
    assert folder.notes[1:] == ("Classes of one picture, which can be trained on but not measured: owl.",)


def test_an_empty_validation_split_gets_the_lowest_of_each_class() -> None:
    pictures = {"cat/0.jpg": sha(0.9), "cat/1.jpg": sha(0.7), "cat/2.jpg": sha(0.7), "dog/0.jpg": sha(0.8)}
    pictures |= {"dog/1.jpg": sha(0.6), "owl/0.jpg": sha(0.55)}
    folder, sides = audited(pictures)
    assert {path for path, side in sides.items() if side == "val"} == {"cat/1.jpg", "cat/2.jpg", "dog/1.jpg"}
    assert "Validation would have been empty; pictures moved to it from training: 2." in folder.notes
    assert folder.test == ()
    assert audited(pictures, val_fraction=0)[1] == sides


def test_sparing_for_validation_leaves_no_class_without_training() -> None:
    shared = sha(0.6)
    _, sides = audited({"cat/0.jpg": shared, "cat/1.jpg": sha(0.7), "dog/0.jpg": shared})
    assert sides == {"cat/0.jpg": "train", "cat/1.jpg": "val", "dog/0.jpg": "train"}


def test_an_empty_validation_split_gets_the_test_pictures_when_training_has_none_to_spare() -> None:
    folder, sides = audited({"cat/0.jpg": sha(0.1), "cat/1.jpg": sha(0.8), "dog/0.jpg": sha(0.9)})
    assert sides == {"cat/0.jpg": "val", "cat/1.jpg": "train", "dog/0.jpg": "train"}
    assert "Validation would have been empty; pictures moved to it from test: 1." in folder.notes


def test_nothing_to_validate_on_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to validate on"):
        audited({"cat/0.jpg": sha(0.9), "cat/1.jpg": sha(0.9), "dog/0.jpg": sha(0.8)})


# ---- audit: unreadable pictures


def test_unreadable_pictures_go_into_the_ledger() -> None:
    folder, sides = audited(PLAIN | {"cat/bad.jpg": None})
    assert folder.unreadable == (Unreadable("cat/bad.jpg", "cut short"),)
    assert sides == audited(PLAIN)[1]


def test_too_many_unreadable_pictures_are_counted_and_listed() -> None:
    pictures = PLAIN | {f"cat/bad{number:02d}.jpg": None for number in range(25)}
    audited(pictures, max_bad=25 / 32)
    with pytest.raises(InputError) as caught:
        audited(pictures, max_bad=0.78)
    lines = str(caught.value).split("\n")
    assert lines[0] == "25 of 32 pictures in root cannot be read, more than 78 % (--max-bad):"
    assert lines[1] == "  cat/bad00.jpg: cut short"
    assert lines[-1] == "  … and 5 more"
    assert len(lines) == 22
    with pytest.raises(InputError, match="1 of 8"):
        audited(PLAIN | {"cat/bad.jpg": None}, max_bad=0)


def test_a_class_without_a_readable_picture_is_dropped() -> None:
    folder, _ = audited(PLAIN | {"owl/0.jpg": None, "owl/1.jpg": None})
    assert folder.classes == ("cat", "dog")
    assert folder.notes[1:] == ("Classes without a picture that can be trained on, left out: owl.",)
    with pytest.raises(InputError, match="fewer than two classes"):
        audited({"cat/0.jpg": sha(0.9), "cat/1.jpg": sha(0.8), "owl/1.jpg": None})


def test_a_class_that_cannot_be_trained_is_not_measured_either() -> None:
    pictures = {f"train/{path}": content for path, content in PLAIN.items()} | {"val/cat/9.jpg": sha(0.6, 1)}
    folder, sides = audited(pictures | {"train/owl/0.jpg": None, "val/owl/0.jpg": sha(0.6, 2)})
    assert folder.classes == ("cat", "dog")
    assert folder.left_out == (Unreadable("val/owl/0.jpg", "its class has no picture to train on"),)
    assert "val/owl/0.jpg" not in sides


def test_a_given_validation_split_that_cannot_be_read_is_replaced() -> None:
    pictures = {f"train/{path}": content for path, content in PLAIN.items()} | {"val/cat/9.jpg": None}
    folder, _ = audited(pictures)
    assert len(folder.val) == 2
    assert "Validation would have been empty; pictures moved to it from training: 2." in folder.notes


# ---- audit: duplicates


def test_pictures_that_leak_across_given_splits_are_left_out() -> None:
    pictures = {
        "train/cat/0.jpg": sha(0.5),
        "train/cat/1.jpg": sha(0.6),
        "train/cat/2.jpg": sha(0.7),
        "train/dog/0.jpg": sha(0.8),
        "val/cat/0.jpg": sha(0.5),
        "val/cat/1.jpg": sha(0.6),
        "val/dog/2.jpg": sha(0.9),
        "test/dog/0.jpg": sha(0.6),
    }
    folder, sides = audited(pictures)
    assert {entry.path: entry.reason for entry in folder.left_out} == {
        "train/cat/0.jpg": "identical to val/cat/0.jpg",
        "train/cat/1.jpg": "identical to test/dog/0.jpg",
        "val/cat/1.jpg": "identical to test/dog/0.jpg",
    }
    assert sides["test/dog/0.jpg"] == "test"
    assert "Pictures of train/ or val/ with an identical one in val/ or test/, left out: 3." in folder.notes


def test_copies_within_a_class_are_kept_and_counted() -> None:
    folder, sides = audited(PLAIN | {"cat/copy.jpg": sha(0.9), "cat/copy2.jpg": sha(0.9), "dog/copy.jpg": sha(0.15)})
    assert sides["cat/copy.jpg"] == sides["cat/3.jpg"] == "train"
    assert sides["dog/copy.jpg"] == "test"
    assert folder.notes[1:] == ("Exact copies of another picture in the same class and split, kept: 3.",)


def test_identical_pictures_of_two_classes_are_kept_and_named() -> None:
    folder, sides = audited(PLAIN | {"dog/8.jpg": PLAIN["cat/2.jpg"], "dog/9.jpg": PLAIN["cat/3.jpg"]})
    assert {"dog/8.jpg", "dog/9.jpg"} <= sides.keys()
    assert folder.notes[1:] == ("Identical pictures in two classes, kept: cat/2.jpg = dog/8.jpg and 1 more.",)


# ---- the whole way


def contents_of(listing: Listing) -> list[Content]:
    contents = []
    for sample in listing.samples:
        digest = ""
        try:
            content = read_content(listing.root / sample.path)
            digest = hashlib.sha256(content).hexdigest()
            read_image(content, at_least=16)
        except UnreadablePicture as error:
            contents.append(Content(digest, error.reason))
        else:
            contents.append(Content(digest))
    return contents


def test_a_hostile_folder_is_read_through_and_left_as_it_was(tmp_path: Path) -> None:
    root = tmp_path / "hostile"
    hostile(root)
    before = state(root)
    listing = list_folder(root)
    folder = audit(listing, contents_of(listing), val_fraction=0.2, test_fraction=0.2, max_bad=0.3)
    assert {entry.path: entry.reason for entry in folder.unreadable} == {
        "dog/bomb.png": "900 megapixels, over the bound of 89.5 (--max-pixels)",
        "dog/cut.jpg": "cut short",
        "dog/empty.jpg": "empty file",
        "dog/link.jpg": "broken link",
        "dog/text.jpg": "not a picture",
    }
    assert len(folder.train) + len(folder.val) + len(folder.test) == 12
    assert folder.classes == ("cat", "dog", "größe 大")
    assert "Folders without pictures, left out: nothing." in folder.notes
    assert state(root) == before
    with pytest.raises(InputError, match=r"5 of 17 .* 10 % \(--max-bad\)"):
        audit(listing, contents_of(listing), val_fraction=0.2, test_fraction=0.2, max_bad=0.1)
