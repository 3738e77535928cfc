from __future__ import annotations

from collections.abc import Mapping

import pytest

from finetune.data.split_sizes import Group, seats, split_groups

# Seats are given as (test, val, train).
EVEN = {"test": 0.15, "val": 0.15}
UNEVEN = {"test": 0.1, "val": 0.2}


@pytest.mark.parametrize(
    ("shares", "sizes", "expected"),
    [
        # By largest remainders, the first split first where they are equal.
        (EVEN, {"a": 20}, {"a": (3, 3, 14)}),
        (EVEN, {"a": 10}, {"a": (2, 1, 7)}),
        (EVEN, {"a": 4}, {"a": (1, 1, 2)}),
        (UNEVEN, {"a": 100, "b": 7, "c": 5}, {"a": (10, 20, 70), "b": (1, 1, 5), "c": (1, 1, 3)}),
        ({"test": 0.29, "val": 0.57}, {"a": 100}, {"a": (29, 57, 14)}),
        # Small classes carry what they could not give over to the next one, and one picture carries nothing.
        (EVEN, {"a": 3, "b": 3, "c": 1, "d": 3}, {"a": (1, 0, 2), "b": (0, 1, 2), "c": (0, 0, 1), "d": (1, 0, 2)}),
        (UNEVEN, {"a": 3, "b": 4, "c": 5, "d": 6}, {"a": (0, 1, 2), "b": (1, 0, 3), "c": (1, 1, 3), "d": (1, 1, 4)}),
        # Larger ones neither take from that nor add to it.
        (EVEN, {"a": 3, "b": 10, "c": 3}, {"a": (1, 0, 2), "b": (2, 1, 7), "c": (0, 1, 2)}),
        # In the order of their names.
        (EVEN, {"b": 3, "a": 3}, {"a": (1, 0, 2), "b": (0, 1, 2)}),
        # Every split with a share gets a picture of a class with half a picture in each, if it has so many.
        ({"test": 0.1, "val": 0.8}, {"a": 5}, {"a": (1, 3, 1)}),
        ({"test": 0, "val": 0.25}, {"a": 10}, {"a": (0, 3, 7)}),
        # Every class keeps a training picture; the largest split gives it.
        (EVEN, {"a": 1}, {"a": (0, 0, 1)}),
        ({"test": 0.02, "val": 0.95}, {"a": 10}, {"a": (0, 9, 1)}),
        ({"test": 0.45, "val": 0.45}, {"a": 2}, {"a": (0, 1, 1)}),
        ({"test": 0.48, "val": 0.48}, {"a": 3}, {"a": (1, 1, 1)}),
        ({"test": 0.3, "val": 0.69}, {"a": 10}, {"a": (3, 6, 1)}),
    ],
)
def test_seats(
    shares: Mapping[str, float], sizes: Mapping[str, int], expected: Mapping[str, tuple[int, int, int]]
) -> None:
    found = seats(sizes, shares)
    assert {label: (row["test"], row["val"], row["train"]) for label, row in found.items()} == expected
    assert all(sum(row.values()) == sizes[label] for label, row in found.items())


def dealt(
    shares: Mapping[str, float], groups: Mapping[str, Mapping[str, int] | int], kept: Mapping[str, str] | None = None
) -> str:
    """The split of each group in their order: t, v or r. A number is that of pictures of the class "a"."""
    listed = [Group(name, {"a": found} if isinstance(found, int) else found) for name, found in groups.items()]
    sides = split_groups(listed, shares, kept or {})
    assert set(sides) == set(groups)
    return "".join({"test": "t", "val": "v", "train": "r"}[sides[name]] for name in groups)


FIFTHS = {"test": 0.2, "val": 0.2}
SINGLE = {str(number): 1 for number in range(10)}


@pytest.mark.parametrize(
    ("shares", "groups", "expected"),
    [
        (FIFTHS, SINGLE, "ttvvrrrrrr"),
        (FIFTHS, dict(reversed(SINGLE.items())), "rrrrrrvvtt"),
        # The first is too large for any seats.
        (FIFTHS, {"0": 4, "1": 1, "2": 1, "3": 1, "4": 1, "5": 1, "6": 1}, "rttvvrr"),
        # None fits: each split gets the smallest, and the first of these.
        (FIFTHS, {"0": 4, "1": 3, "2": 3}, "rtv"),
        # A training group stays in training where it is the last one.
        ({"test": 0.3, "val": 0.3}, {"0": 3, "1": 3}, "tr"),
        # Validation gets the smallest group of a split with two, here the test split.
        ({"test": 0.33, "val": 0.33}, {"0": 1, "1": 1, "2": 4}, "vtr"),
        # Two seats stay empty: a group of three fills them better than none, and one of four does not.
        ({"val": 0.35}, {"0": 5, "1": 4, "2": 3, "3": 8}, "vrvr"),
        ({"val": 0.35}, {"0": 5, "1": 4, "2": 4, "3": 7}, "vrrr"),
        # Three seats: the nearest, and the first of these.
        ({"val": 0.3}, {"0": 5, "1": 5, "2": 4, "3": 4, "4": 9}, "vrvrr"),
        # A group with two classes needs seats of both.
        ({"val": 0.2}, {"0": {"a": 1, "b": 2}, "1": {"a": 1}, "2": {"b": 1}, "3": {"a": 3}, "4": {"b": 2}}, "rvvrr"),
        # It does not move where it is the last training group of one of them.
        ({"val": 0.34}, {"0": {"a": 4, "b": 1}, "1": 5, "2": {"b": 1}}, "rvv"),
        # It counts with all its pictures where the smallest is wanted.
        ({"val": 0.25}, {"0": {"a": 4, "b": 2}, "1": 5, "2": 4, "3": {"b": 6}, "4": {"b": 4}}, "rrvrv"),
    ],
)
def test_groups(shares: Mapping[str, float], groups: Mapping[str, Mapping[str, int] | int], expected: str) -> None:
    assert dealt(shares, groups) == expected


def test_groups_of_an_earlier_run_stay_and_others_fill_the_rest() -> None:
    assert dealt(FIFTHS, SINGLE, {"9": "test", "8": "val", "0": "train"}) == "rtvrrrrrvt"
    assert dealt(FIFTHS, SINGLE, {"7": "test", "8": "test", "9": "test"}) == "vvrrrrrttt"
    assert dealt(FIFTHS, SINGLE, dict.fromkeys(SINGLE, "train")) == "r" * 10
    assert dealt(FIFTHS, {"0": 6, "1": 2, "2": 2}, {"1": "train"}) == "vrt"
