from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
from contents import ANCHORS, FRACTIONS, PLAIN, audited, consistent, counts_of, hashes, made, sha
from hostile import hostile, state
from hypothesis import assume, given
from hypothesis import strategies as st

from finetune.data.folder import Listing, list_folder
from finetune.data.images import Content, read_content, read_image
from finetune.data.splits import Unreadable, audit
from finetune.errors import InputError, UnreadablePicture

FEW_TO_MEASURE = "Classes with one or two test pictures, too few for a reliable accuracy: cat, dog."


def test_a_folder_is_split_by_the_order_of_its_hashes() -> None:
    folder, sides = audited(PLAIN)
    assert folder.classes == ("cat", "dog")
    assert {path for path, side in sides.items() if side == "test"} == {"cat/0.jpg", "dog/0.jpg"}
    assert {path for path, side in sides.items() if side == "val"} == {"cat/1.jpg", "dog/1.jpg"}
    assert (folder.unreadable, folder.left_out, folder.notes) == ((), (), ("listed.", FEW_TO_MEASURE))


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


folders = st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), hashes, max_size=25).map(
    lambda drawn: {f"{label}/{number}.jpg": content for (label, number), content in drawn.items()}
)


@given(folders, folders)
def test_adding_pictures_never_moves_those_of_an_earlier_run(old: dict[str, str], added: dict[str, str]) -> None:
    both = consistent(ANCHORS | added | old)
    _, before = audited({path: both[path] for path in (ANCHORS | old) if path in both})
    recorded = {both[path]: side for path, side in before.items()}
    _, after = audited(both, recorded=recorded)
    assert {path: after[path] for path in before} == before
    _, again = audited(both, recorded={both[path]: side for path, side in after.items()})
    assert again == after, "a run that goes on has the splits that it began with"


@given(st.integers(4, 40), st.integers(2, 5), st.integers(0, 999))
def test_classes_of_one_size_give_the_same_numbers(size: int, classes: int, seed: int) -> None:
    pictures = {
        f"{label}/{number}.jpg": hashlib.sha256(f"{seed} {label} {number}".encode()).hexdigest()
        for label in "abcde"[:classes]
        for number in range(size)
    }
    _, sides = audited(pictures, val_fraction=0.15, test_fraction=0.15)
    (found,) = {tuple(sorted(counts.items())) for counts in counts_of(sides).values()}
    counts = dict(found)
    assert abs(counts["val"] - 0.15 * size) < 1
    assert abs(counts["test"] - 0.15 * size) < 1
    more = {f"a/more{n}.jpg": hashlib.sha256(f"{seed} more {n}".encode()).hexdigest() for n in range(size)}
    _, after = audited(
        pictures | more,
        val_fraction=0.15,
        test_fraction=0.15,
        recorded={pictures[path]: side for path, side in sides.items()},
    )
    grown = counts_of(after)["a"]
    assert abs(grown["val"] - 0.15 * 2 * size) < 1, "what is added fills the splits up"
    assert abs(grown["test"] - 0.15 * 2 * size) < 1


def test_small_classes_together_give_the_shares() -> None:
    pictures = {f"{label:02d}/{n}.jpg": sha(0.1 * n, 7 * label + n) for label in range(20) for n in range(2)}
    folder, _ = audited(pictures, val_fraction=0.15, test_fraction=0.15)
    assert (len(folder.train), len(folder.val), len(folder.test)) == (28, 6, 6)


def test_a_new_class_gives_its_fraction_of_the_added_pictures() -> None:
    recorded = {content: "train" for path, content in PLAIN.items() if path.startswith("cat")}
    recorded |= {PLAIN["dog/0.jpg"]: "val", PLAIN["dog/1.jpg"]: "train"}
    _, sides = audited(PLAIN, recorded=recorded)
    assert {sides[f"cat/{number}.jpg"] for number in range(4)} == {"train"}
    assert [sides[f"dog/{number}.jpg"] for number in range(3)] == ["val", "train", "test"]


@given(folders)
def test_identical_pictures_are_on_one_side(pictures: dict[str, str]) -> None:
    copies = {f"{path[0]}/copy{n}.jpg": content for n, (path, content) in enumerate(pictures.items())}
    pictures = consistent(ANCHORS | pictures | copies)
    _, sides = audited(pictures)
    by_content: dict[str, set[str]] = {}
    for path, side in sides.items():
        by_content.setdefault(pictures[path], set()).add(side)
    assert all(len(found) == 1 for found in by_content.values())


@pytest.mark.slow
@given(folders, st.floats(0, 0.9), st.floats(0, 0.9))
def test_every_class_has_a_training_picture_and_validation_is_not_empty(
    pictures: dict[str, str], val: float, test: float
) -> None:
    assume(val + test < 1)
    pictures = consistent(ANCHORS | pictures)
    folder, sides = audited(pictures, val_fraction=val, test_fraction=test)
    assert {path[0] for path, side in sides.items() if side == "train"} == set(folder.classes)
    assert folder.val
    assert set(sides) == set(pictures)


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


def test_a_class_whose_training_pictures_are_gone_gets_the_rest_for_training() -> None:
    recorded = {PLAIN["dog/0.jpg"]: "test", PLAIN["dog/1.jpg"]: "val", PLAIN["dog/2.jpg"]: "test"}
    folder, sides = audited(PLAIN, recorded=recorded)
    assert {sides[f"dog/{number}.jpg"] for number in range(3)} == {"train"}
    assert folder.notes[1] == "Classes whose pictures all stay in training, which had none of them: dog."


@pytest.mark.parametrize("position", [0.1, 0.3, 0.9])
def test_a_class_of_one_picture_is_trained_on_and_told(position: float) -> None:
    folder, sides = audited(PLAIN | {"owl/0.jpg": sha(position, 1)})
    assert sides["owl/0.jpg"] == "train"
    assert folder.notes[1:] == (
        "Classes with one picture are trained but not measured: owl.",
        FEW_TO_MEASURE,
    )


def test_an_empty_validation_split_gets_the_lowest_of_each_class() -> None:
    pictures = {"cat/0.jpg": sha(0.9), "cat/1.jpg": sha(0.7), "cat/2.jpg": sha(0.7), "dog/0.jpg": sha(0.8)}
    pictures |= {"dog/1.jpg": sha(0.6), "owl/0.jpg": sha(0.55)}
    folder, sides = audited(pictures, val_fraction=0, test_fraction=0)
    assert {path for path, side in sides.items() if side == "val"} == {"cat/1.jpg", "cat/2.jpg", "dog/1.jpg"}
    assert "Validation would have been empty; pictures moved to it from training: 2." in folder.notes
    assert folder.test == ()


def test_an_empty_validation_split_gets_the_test_pictures_when_training_has_none_to_spare() -> None:
    pictures = {"cat/0.jpg": sha(0.1), "cat/1.jpg": sha(0.8), "dog/0.jpg": sha(0.9)}
    folder, sides = audited(pictures, recorded={sha(0.1): "test"})
    assert sides == {"cat/0.jpg": "val", "cat/1.jpg": "train", "dog/0.jpg": "train"}
    assert "Validation would have been empty; pictures moved to it from test: 1." in folder.notes


def test_without_two_different_pictures_of_a_class_all_are_for_training() -> None:
    pictures = {"cat/0.jpg": sha(0.9), "cat/1.jpg": sha(0.9), "dog/0.jpg": sha(0.8)}
    for recorded in ({}, {sha(0.9): "test", sha(0.8): "val"}):
        folder, sides = audited(pictures, recorded=recorded)
        assert sides == dict.fromkeys(pictures, "train")
        assert (folder.val, folder.test) == ((), ())
        note = "No class has two different training pictures, so no picture is left for validation."
        assert note in folder.notes


def test_one_picture_among_larger_classes_does_not_empty_the_validation_split() -> None:
    pictures = {"cat/0.jpg": sha(0.1), "dog/0.jpg": sha(0.2), "dog/1.jpg": sha(0.3)}
    folder, sides = audited(pictures)
    assert (sides["cat/0.jpg"], sorted(sides.values())) == ("train", ["train", "train", "val"])
    assert not any("No class" in note for note in folder.notes)


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
    assert folder.notes[1] == "Classes without training pictures are left out: owl."
    with pytest.raises(InputError, match="fewer than two classes"):
        audited({"cat/0.jpg": sha(0.9), "cat/1.jpg": sha(0.8), "owl/1.jpg": None})


def test_a_class_that_cannot_be_trained_is_not_measured_either() -> None:
    pictures = {f"train/{path}": content for path, content in PLAIN.items()} | {"val/cat/9.jpg": sha(0.6, 1)}
    folder, sides = audited(pictures | {"train/owl/0.jpg": None, "val/owl/0.jpg": sha(0.6, 2)})
    assert folder.classes == ("cat", "dog")
    assert folder.left_out == (Unreadable("val/owl/0.jpg", "its class has no training picture"),)
    assert "val/owl/0.jpg" not in sides


def test_an_unreadable_validation_split_is_replaced() -> None:
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
        "test/cat/0.jpg": sha(0.6),
    }
    folder, sides = audited(pictures)
    assert {entry.path: entry.reason for entry in folder.left_out} == {
        "train/cat/0.jpg": "identical to val/cat/0.jpg",
        "train/cat/1.jpg": "identical to test/cat/0.jpg",
        "val/cat/1.jpg": "identical to test/cat/0.jpg",
    }
    assert sides["test/cat/0.jpg"] == "test"
    assert "Pictures of train/ and val/ that are identical to one in val/ or test/ are left out: 3." in folder.notes


def test_copies_within_a_class_are_kept_and_counted() -> None:
    more = {f"cat/{number}.jpg": sha(0.91 + number / 1000) for number in range(4, 9)}
    more |= {"cat/copy.jpg": sha(0.9), "cat/copy2.jpg": sha(0.9), "cat/copy3.jpg": sha(0.1)}
    folder, sides = audited(PLAIN | more)
    assert sides["cat/copy.jpg"] == sides["cat/copy2.jpg"] == sides["cat/3.jpg"] == "train"
    assert sides["cat/copy3.jpg"] == sides["cat/0.jpg"] == "test"
    assert folder.notes[1] == "Exact copies of another picture in the same class and split are kept: 3."


def test_identical_pictures_under_two_labels_are_named_and_left_out() -> None:
    more = {"cat/4.jpg": sha(0.92), "dog/3.jpg": sha(0.93), "dog/4.jpg": sha(0.94)}
    copies = {"dog/8.jpg": PLAIN["cat/2.jpg"], "dog/9.jpg": PLAIN["cat/3.jpg"], "cat/9.jpg": PLAIN["cat/3.jpg"]}
    folder, sides = audited(PLAIN | more | copies)
    assert {entry.path: entry.reason for entry in folder.left_out} == {
        "cat/2.jpg": "identical to dog/8.jpg, which has the label 'dog'",
        "cat/3.jpg": "identical to dog/9.jpg, which has the label 'dog'",
        "cat/9.jpg": "identical to dog/9.jpg, which has the label 'dog'",
        "dog/8.jpg": "identical to cat/2.jpg, which has the label 'cat'",
        "dog/9.jpg": "identical to cat/3.jpg, which has the label 'cat'",
    }
    assert not {entry.path for entry in folder.left_out} & set(sides)
    assert folder.notes[1] == (
        "Identical pictures with different labels are left out, 5 in all: "
        "cat/2.jpg (cat) = dog/8.jpg (dog), cat/3.jpg (cat) = dog/9.jpg (dog)."
    )


def test_a_folder_of_nothing_but_contradictions_says_so() -> None:
    with pytest.raises(InputError, match=r"fewer than two classes.*; 4 pictures are identical under two labels"):
        audited({"cat/0.jpg": sha(0.1), "cat/1.jpg": sha(0.2), "dog/0.jpg": sha(0.1), "dog/1.jpg": sha(0.2)})


def test_identical_pictures_under_two_labels_are_left_out_of_given_splits_too() -> None:
    pictures = {f"train/{path}": content for path, content in PLAIN.items()}
    pictures |= {"val/cat/9.jpg": sha(0.6, 1), "test/dog/9.jpg": PLAIN["cat/2.jpg"], "test/cat/9.jpg": sha(0.6, 2)}
    folder, sides = audited(pictures)
    assert {entry.path for entry in folder.left_out} == {"train/cat/2.jpg", "test/dog/9.jpg"}
    assert {path for path, side in sides.items() if side == "test"} == {"test/cat/9.jpg"}


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


def test_a_hostile_folder_is_read_and_not_changed(tmp_path: Path) -> None:
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
    assert len(folder.train) + len(folder.val) + len(folder.test) + len(folder.left_out) == 12
    assert folder.classes == ("cat", "dog", "größe 大")
    assert "Folders without pictures are left out: nothing." in folder.notes
    assert state(root) == before
    with pytest.raises(InputError, match=r"5 of 17 .* 10 % \(--max-bad\)"):
        audit(listing, contents_of(listing), val_fraction=0.2, test_fraction=0.2, max_bad=0.1)
