"""Near-duplicates stay in one split."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from contents import ANCHORS, FRACTIONS, PLAIN, audited, consistent, counts_of, hashes, made, sha
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from finetune.data.near_duplicates import FINGERPRINT_BYTES
from finetune.data.splits import audit

brief = settings(max_examples=50)  # machines under load are slow at times


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
    contents = consistent(contents)
    folder, sides = audited(contents, looks)
    assert not any("two sides" in note for note in folder.notes)
    for one, first in contents.items():
        for other, second in contents.items():
            if first in looks and second in looks and alike(looks[first], looks[second]):
                assert sides[one] == sides[other]


def recorded(contents: dict[str, str], sides: dict[str, str]) -> dict[str, str]:
    return {contents[path]: side for path, side in sides.items()}


@pytest.mark.slow
@brief
@given(scenes, scenes)
def test_only_near_duplicates_of_what_is_added_may_move(old: Scenes, added: Scenes) -> None:
    added = {path: (content, scene + 100, variant) for path, (content, scene, variant) in added.items()}
    # A content that stands on both sides looks like what it was first.
    assume(not {content for content, _, _ in old.values()} & {content for content, _, _ in added.values()})
    both, looks = seen(added | old)
    both = consistent(both)
    alone = {path: content for path, content in both.items() if path in old or path not in added}
    _, before = audited(alone, looks)
    _, after = audited(both, looks, recorded=recorded(alone, before))
    assert {path: after[path] for path in before} == before


@brief
@given(scenes, st.integers(0, 6), hashes)
def test_a_near_duplicate_moves_groups_that_it_joins_at_most(old: Scenes, variant: int, content: str) -> None:
    assume(content not in {each for each, _, _ in old.values()})
    contents, looks = seen(old)
    contents = consistent(contents)
    _, before = audited(contents, looks)
    _, after = audited(
        contents | {"a/new.jpg": content}, looks | {content: look(3, variant)}, recorded=recorded(contents, before)
    )
    moved = {path for path in before if after[path] != before[path]}
    assert all(looks.get(contents[path], b"")[40:] == look(3)[40:] for path in moved)
    assert {after[path] for path in moved} <= {after["a/new.jpg"]}
    assert all(after[path] in ("test", "val") for path in moved), "what was held out stays so"


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


def test_groups_go_where_they_fit_and_are_told() -> None:
    looks = {PLAIN["cat/1.jpg"]: look(1), PLAIN["cat/2.jpg"]: look(1, 3), PLAIN["cat/3.jpg"]: look(1, 6)}
    folder, sides = audited(PLAIN, looks)
    assert {sides[f"cat/{number}.jpg"] for number in (1, 2, 3)} == {"train"}, "three are more than cat's share"
    assert folder.near == ((1, 2), (2, 3)), "the third is like the first through the second alone"
    told = "Near-duplicates stay in one split, 1 group: cat/1.jpg, cat/2.jpg and 1 more."
    assert told in folder.notes
    more = {f"cat/{number}.jpg": sha(0.5 + number / 100, 5) for number in range(4, 16)}
    _, sides = audited(PLAIN | more, looks)
    assert {sides[f"cat/{number}.jpg"] for number in (1, 2, 3)} == {"val"}, "with more pictures they fit"


@brief
@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.integers(0, 99))
def test_a_class_of_large_groups_is_as_near_to_its_share_as_they_allow(sizes: list[int], seed: int) -> None:
    pictures, looks = dict(PLAIN), {}
    for scene, size in enumerate(sizes):
        for number in range(size):
            content = f"{(seed * 7919 + scene * 104729 + number * 1299709) % 2**32:064x}"
            pictures[f"owl/{scene}-{number}.jpg"], looks[content] = content, look(100 + scene)
    _, sides = audited(pictures, looks)
    counts, largest = counts_of(sides)["owl"], max(sizes)
    for split in ("val", "test"):
        assert counts[split] >= 1, "it has three groups, one for each split"
        assert abs(counts[split] - 0.2 * sum(sizes)) <= largest


def test_a_note_names_near_duplicates_across_given_splits() -> None:
    pictures = {f"train/{path}": content for path, content in PLAIN.items()}
    pictures |= {"val/cat/9.jpg": sha(0.6, 1), "test/dog/9.jpg": sha(0.6, 2)}
    looks = {PLAIN["cat/2.jpg"]: look(1), sha(0.6, 1): look(1, 1), PLAIN["dog/2.jpg"]: look(2), sha(0.6, 2): look(2)}
    folder, sides = audited(pictures, looks)
    assert sides == audited(pictures)[1]
    assert folder.left_out == ()
    assert folder.notes[1] == (
        "Near-duplicates in different splits are kept, 2 pairs: test/dog/9.jpg ~ train/dog/2.jpg and 1 more."
    )


def test_near_duplicates_are_separated_if_validation_would_be_empty() -> None:
    pictures = {"cat/0.jpg": sha(0.9), "cat/1.jpg": sha(0.7), "dog/0.jpg": sha(0.8), "dog/1.jpg": sha(0.6)}
    looks = {sha(0.9): look(1), sha(0.7): look(1), sha(0.8): look(2), sha(0.6): look(2)}
    folder, sides = audited(pictures, looks)
    assert sides == audited(pictures)[1]
    assert any("leave no validation picture" in note for note in folder.notes)
    assert "Near-duplicates in different splits are kept, 2 pairs: cat/0.jpg ~ cat/1.jpg and 1 more." in folder.notes


def test_a_note_names_a_class_of_near_duplicates() -> None:
    folder, sides = audited(
        PLAIN | {"owl/0.jpg": sha(0.1, 7), "owl/1.jpg": sha(0.5, 7)}, dict.fromkeys((sha(0.1, 7), sha(0.5, 7)), look(1))
    )
    assert {sides["owl/0.jpg"], sides["owl/1.jpg"]} == {"train"}
    told = "Classes with near-duplicates of one picture are trained but not measured: owl."
    assert told in folder.notes
