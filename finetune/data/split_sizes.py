"""Sizes of splits: every class gives the same fraction to each, in the order of its pictures' hashes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TRAIN = "train"
_ROUNDING = 1e-9  # 0.15 * 20 must not be a little less than 3


@dataclass(frozen=True)
class Group:
    """Pictures that stay in one split, by class. The name is the lowest sha256 of their contents."""

    name: str
    counts: Mapping[str, int]


def split_groups(groups: Sequence[Group], shares: Mapping[str, float], kept: Mapping[str, str]) -> dict[str, str]:
    """Assign groups to splits.

    Each class gives `seats(...)` pictures to each split. Groups are assigned in the order of their names: to the first
    split of `shares` with enough seats, otherwise to training. Where large groups leave seats empty, a training group
    that brings the number nearer to the seats is moved, and a split without a picture of a class gets the smallest
    group from a split with another group of that class.

    Args:
        groups: The groups.
        shares: Fraction of the pictures of each split; the rest is for training.
        kept: Splits of groups in an earlier run, by name. These groups stay there, and the others fill the rest.

    Returns:
        The split of each group, by name.
    """
    dealing = _Dealing(groups, shares, kept)
    for group in sorted(dealing.free, key=lambda group: group.name):
        dealing.put(group, next((split for split in shares if dealing.fits(group, split)), TRAIN))
    for label in sorted(dealing.seats):
        for split in shares:
            while (late := dealing.late(label, split)) is not None:
                dealing.put(late, split)
    return dealing.sides


def seats(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, dict[str, int]]:
    """The number of pictures of each class in each split: `shares` of `sizes`, rounded; training has the rest.

    A class with half a picture or more in every split gives at least one to each, rounded by largest remainders, so
    that classes of one size give the same numbers. Smaller classes carry the rounding error over to the next class, so
    that together they give the fractions. Every class keeps a training picture.
    """
    held_out = [split for split in shares if shares[split] > 0]
    carried = dict.fromkeys((*held_out, TRAIN), 0.0)
    found = {}
    for label, size in sorted(sizes.items()):
        due = {split: shares[split] * size for split in held_out}
        due[TRAIN] = size - sum(due.values())
        small = any(due[split] < 0.5 - _ROUNDING for split in held_out)
        given = _rounded(due, size, carried if small else dict.fromkeys(due, 0.0))
        if not small:
            given |= {split: max(1, given[split]) for split in held_out}
        for split in held_out:
            given[split] = min(given[split], size - 1)  # a single picture is for training
        given[TRAIN] = size - sum(given[split] for split in held_out)
        while given[TRAIN] < 1:
            given[max(held_out, key=lambda split: given[split])] -= 1
            given[TRAIN] += 1
        if small and size > 1:
            carried = {split: carried[split] + due[split] - given[split] for split in due}
        found[label] = dict.fromkeys(shares, 0) | given
    return found


def _rounded(due: Mapping[str, float], size: int, carried: Mapping[str, float]) -> dict[str, int]:
    """`due` as whole numbers with the sum `size`: the largest remainders plus `carried` are rounded up."""
    given = {split: math.floor(amount + _ROUNDING) for split, amount in due.items()}
    by_remainder = sorted(due, key=lambda split: -round(due[split] - given[split] + carried[split], 9))
    for split in by_remainder[: size - sum(given.values())]:
        given[split] += 1
    return given


class _Dealing:
    """The state of an assignment. sides: Split of each assigned group. open: Empty seats by class and split."""

    def __init__(self, groups: Sequence[Group], shares: Mapping[str, float], kept: Mapping[str, str]):
        sizes: Counter[str] = Counter()
        for group in groups:
            sizes.update(group.counts)
        self.seats = seats(sizes, shares)
        self.open = {label: dict(by_split) for label, by_split in self.seats.items()}
        self.sides: dict[str, str] = {}
        self._groups_of: dict[str, list[Group]] = {label: [] for label in self.seats}
        self._number: Counter[tuple[str, str]] = Counter()  # groups, by class and split
        self.free = [group for group in groups if group.name not in kept]
        for group in groups:
            if group.name in kept:
                self.put(group, kept[group.name])
        for group in self.free:
            for label in group.counts:
                self._groups_of[label].append(group)

    def put(self, group: Group, split: str) -> None:
        before = self.sides.get(group.name)
        self.sides[group.name] = split
        for label, count in group.counts.items():
            if before is not None:
                self.open[label][before] += count
                self._number[label, before] -= 1
            self.open[label][split] -= count
            self._number[label, split] += 1

    def fits(self, group: Group, split: str) -> bool:
        return all(self.open[label][split] >= count for label, count in group.counts.items())

    def late(self, label: str, split: str) -> Group | None:
        """A group with the class `label` to move to the empty seats of `split`; None where none should move."""
        empty = self.open[label][split]
        if empty <= 0:
            return None
        if not self._number[label, split]:
            spare = [group for group in self._groups_of[label] if self._is_spare(group)]
            return min(spare, key=lambda group: (sum(group.counts.values()), group.name), default=None)
        spare = [group for group in self._groups_of[label] if self.sides[group.name] == TRAIN and self._is_spare(group)]
        nearer = [group for group in spare if group.counts[label] < 2 * empty]
        return min(nearer, key=lambda group: (abs(group.counts[label] - empty), group.name), default=None)

    def _is_spare(self, group: Group) -> bool:
        """Whether its split has another group of each of the group's classes."""
        return all(self._number[label, self.sides[group.name]] > 1 for label in group.counts)
