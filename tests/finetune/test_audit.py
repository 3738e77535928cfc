from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hostile import hostile, state
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.audit import Content, Folder, Unreadable, audit
from finetune.errors import InputError, UnreadablePicture
from finetune.folder import Listing, Sample, list_folder
from finetune.images import read_content, read_image
from finetune.near_duplicates import FINGERPRINT_BYTES

patient = settings(deadline=None)  # machines under load are slow at times
brief = settings(deadline=None, max_examples=50)

# ---- audit, on contents made up: position p in [0, 1) of the hash decides, below 0.2 test, below 0.4 validation

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.2, "max_bad": 0.5}


def sha(position: float, rest: int = 0) -> str:
    return f"{int(position * 16**16):016x}{rest:048x}"


def made(pictures: Mapping[str, str | None], looks: Mapping[str, bytes] | None = None) -> tuple[Listing, list[Content]]:
    """A listing of path -> sha256, None for an unreadable picture; splits where the paths start with their names.

    looks: fingerprints, by sha256.
    """
    samples, contents = [], []
    for path, content in sorted(pictures.items()):
        *above, label, _ = path.split("/")
        samples.append(Sample(path, label, above[0] if above else None, 1))
        look = (looks or {}).get(content or "")
        told = Content(content or "", fingerprint=None if look is None else look.hex())
        contents.append(told if content is not None else Content("", "cut short"))
    return Listing(Path("root"), tuple(samples), ("listed.",)), contents


def audited(
    pictures: Mapping[str, str | None], looks: Mapping[str, bytes] | None = None, **options: float
) -> tuple[Folder, dict[str, str]]:
    """The folder, and the side of each picture that is used."""
    listing, contents = made(pictures, looks)
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


# ---- audit: near-duplicates


def look(scene: int, variant: int = 0) -> bytes:
    """A fingerprint; those of one scene differ by 8 bits for each step in `variant`, so that 3 steps are alike."""
    found = np.random.default_rng(scene).integers(0, 256, FINGERPRINT_BYTES, dtype=np.uint8)
    found[0], found[1:4] = 50, 128
    found[4 : 4 + variant] ^= 255
    return found.tobytes()


# Path to content and what it looks like: 12 scenes, of which no two are alike, and steps between pictures of one.
scenes = st.dictionaries(
    st.tuples(st.sampled_from("abc"), st.integers(0, 30)),
    st.tuples(hashes, st.integers(0, 11), st.integers(0, 6)),
    max_size=20,
).map(lambda drawn: {f"{label}/{number}.jpg": content for (label, number), content in drawn.items()})
Scenes = dict[str, tuple[str, int, int]]


def seen(pictures: Scenes) -> tuple[dict[str, str], dict[str, bytes]]:
    """Contents by path, with anchors enough, and fingerprints by content: one content has one look."""
    contents = {path: content for path, (content, _, _) in pictures.items()}
    looks: dict[str, bytes] = {}
    for content, scene, variant in pictures.values():
        looks.setdefault(content, look(scene, variant))
    anchors = ANCHORS | {"c/v.jpg": sha(0.3, 2), "c/t.jpg": sha(0.9, 2)}
    return contents | anchors, {content: seen for content, seen in looks.items() if content not in anchors.values()}


def alike(one: bytes, other: bytes) -> bool:
    differ = np.bitwise_count(np.frombuffer(one, np.uint8) ^ np.frombuffer(other, np.uint8))
    return bool(differ.sum() <= 30)


@brief
@given(scenes)
def test_near_duplicates_are_on_one_side(pictures: Scenes) -> None:
    contents, looks = seen(pictures)
    folder, sides = audited(contents, looks)
    assert not any("two sides" in note for note in folder.notes)
    for one, first in contents.items():
        for other, second in contents.items():
            if first in looks and second in looks and alike(looks[first], looks[second]):
                assert sides[one] == sides[other]


@brief
@given(scenes, scenes)
def test_only_near_duplicates_of_what_is_added_may_move(old: Scenes, added: Scenes) -> None:
    added = {path: (content, scene + 100, variant) for path, (content, scene, variant) in added.items()}
    both, looks = seen(added | old)
    alone = {path: content for path, content in both.items() if path in old or path not in added}
    # A content that stands on both sides looks like what it was first.
    assume(not {content for content, _, _ in old.values()} & {content for content, _, _ in added.values()})
    _, before = audited(alone, looks)
    _, after = audited(both, looks)
    assert {path: after[path] for path in before} == before


@brief
@given(scenes, st.integers(0, 6), hashes)
def test_a_near_duplicate_moves_its_own_group_at_most(old: Scenes, variant: int, content: str) -> None:
    assume(content not in {each for each, _, _ in old.values()})
    contents, looks = seen(old)
    _, before = audited(contents, looks)
    _, after = audited(contents | {"a/new.jpg": content}, looks | {content: look(3, variant)})
    moved = {path for path in before if after[path] != before[path]}
    assert all(looks.get(contents[path], b"")[40:] == look(3)[40:] for path in moved)
    group = {after[path] for path in moved}
    assert len(group) <= 1


@brief
@given(scenes, st.randoms(use_true_random=False))
def test_the_order_does_not_matter_where_pictures_look_alike(pictures: Scenes, random: object) -> None:
    contents, looks = seen(pictures)
    listing, told = made(contents, looks)
    order = list(range(len(told)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = dataclasses.replace(listing, samples=tuple(listing.samples[index] for index in order))
    one, other = audit(listing, told, **FRACTIONS), audit(shuffled, [told[index] for index in order], **FRACTIONS)
    for split in ("train", "val", "test"):
        assert {listing.samples[index] for index in getattr(one, split)} == {
            shuffled.samples[index] for index in getattr(other, split)
        }


def test_the_lowest_hash_of_a_group_gives_its_side_and_the_groups_are_told() -> None:
    looks = {PLAIN["cat/1.jpg"]: look(1), PLAIN["cat/2.jpg"]: look(1, 3), PLAIN["cat/3.jpg"]: look(1, 6)}
    folder, sides = audited(PLAIN, looks)
    assert {sides[f"cat/{number}.jpg"] for number in (1, 2, 3)} == {"train"}, "cat would have nothing to train on"
    _, sides = audited(PLAIN | {"cat/4.jpg": sha(0.8)}, looks)
    assert {sides[f"cat/{number}.jpg"] for number in (1, 2, 3)} == {"val"}
    assert folder.near == ((1, 2), (2, 3)), "the third is like the first through the second alone"
    told = "Near-duplicates, kept on one side of the splits, 1 group: cat/1.jpg, cat/2.jpg and 1 more."
    assert told in folder.notes


def test_near_duplicates_across_given_splits_are_told_and_stay() -> None:
    pictures = {f"train/{path}": content for path, content in PLAIN.items()}
    pictures |= {"val/cat/9.jpg": sha(0.6, 1), "test/dog/9.jpg": sha(0.6, 2)}
    looks = {PLAIN["cat/2.jpg"]: look(1), sha(0.6, 1): look(1, 1), PLAIN["dog/2.jpg"]: look(2), sha(0.6, 2): look(2)}
    folder, sides = audited(pictures, looks)
    assert sides == audited(pictures)[1]
    assert folder.left_out == ()
    assert folder.notes[1:] == (
        "Near-duplicates on two sides of the splits, kept, 2 pairs: test/dog/9.jpg ~ train/dog/2.jpg and 1 more.",
    )


def test_near_duplicates_are_parted_where_nothing_could_be_validated_on_otherwise() -> None:
    pictures = {"cat/0.jpg": sha(0.9), "cat/1.jpg": sha(0.7), "dog/0.jpg": sha(0.8), "dog/1.jpg": sha(0.6)}
    looks = {sha(0.9): look(1), sha(0.7): look(1), sha(0.8): look(2), sha(0.6): look(2)}
    folder, sides = audited(pictures, looks)
    assert sides == audited(pictures)[1]
    assert any("leave nothing to validate on" in note for note in folder.notes)
    assert (
        "Near-duplicates on two sides of the splits, kept, 2 pairs: cat/0.jpg ~ cat/1.jpg and 1 more." in folder.notes
    )


def test_a_class_of_near_duplicates_is_trained_on_and_told() -> None:
    folder, sides = audited(
        PLAIN | {"owl/0.jpg": sha(0.1, 7), "owl/1.jpg": sha(0.5, 7)}, dict.fromkeys((sha(0.1, 7), sha(0.5, 7)), look(1))
    )
    assert {sides["owl/0.jpg"], sides["owl/1.jpg"]} == {"train"}
    told = "Classes of near-duplicates of one picture, which can be trained on but not measured: owl."
    assert told in folder.notes


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
