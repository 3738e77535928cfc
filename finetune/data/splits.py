"""Assigns each picture of a listing to a split; leaves out unreadable files, leaks and contradictory labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.folder import Listing, Sample, some
from finetune.data.images import Content
from finetune.data.near_duplicates import connected, near_pairs
from finetune.data.split_sizes import Group, split_groups
from finetune.errors import InputError

# Number of unreadable files that an error lists; the rest is counted.
SHOWN_FILES = 20
# With this many pictures or fewer, the accuracy of a class is unreliable.
TOO_FEW = 2
# When groups of different splits are joined, the first of these wins: a held-out picture stays held out.
_HELD_OUT_FIRST = ("test", "val", "train")


@dataclass(frozen=True)
class Unreadable:
    """A picture that is not used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Folder:
    """The split of every picture of a listing.

    Attributes:
        root: Folder of the pictures.
        classes: Names of the classes, sorted.
        train, val, test: Positions of the pictures in the listing, ascending.
        unreadable: Pictures that cannot be decoded.
        left_out: Readable pictures that are not used, with the reason.
        notes: Decisions to show, one sentence each.
        near: Pairs of used pictures that are near-duplicates and not identical. The first of identical pictures stands
            for all of them.
    """

    root: Path
    classes: tuple[str, ...]
    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    unreadable: tuple[Unreadable, ...]
    left_out: tuple[Unreadable, ...]
    notes: tuple[str, ...]
    near: tuple[tuple[int, int], ...]


def audit(
    listing: Listing,
    contents: Sequence[Content],
    *,
    val_fraction: float,
    test_fraction: float,
    max_bad: float,
    recorded: Mapping[str, str] | None = None,
) -> Folder:
    """Assign each picture of a listing to a split.

    Unreadable pictures are left out. So are identical pictures with different labels, because no label is known to be
    right. Where splits are given, a training picture that is identical to one in val/ or test/ is left out, and so is a
    validation picture that is identical to one in test/. Near-duplicates across given splits stay; a note names them.

    A missing split is made of training pictures. Every class gives the same fraction (`split_sizes.seats`), the lowest
    hashes of contents first. Identical pictures and near-duplicates, directly or through others, stay in one split. The
    result depends on the contents alone, not on the order of the pictures or on the machine, as long as decoders agree
    on the near-duplicates.

    There are three exceptions, each with a note. A class that would have no training picture keeps all pictures in
    training. An empty validation split gets one training picture, with its near-duplicates, of every class with more
    than one; or else the pictures of the test split that was made. If near-duplicates in one split leave no validation
    picture, only identical pictures stay in one split.

    Args:
        listing: The pictures.
        contents: What reading each picture found, in the order of the listing.
        val_fraction: Fraction of the pictures in a validation split that is made.
        test_fraction: Fraction of the pictures in a test split that is made.
        max_bad: Largest fraction of unreadable pictures.
        recorded: Splits of an earlier run on this folder, by sha256. Pictures stay in them, and added pictures fill the
            splits up to the fractions. A near-duplicate that joins two groups moves one of them, to test if the other
            is there, else to validation.

    Raises:
        InputError: If more than `max_bad` is unreadable, or there are too few pictures to train and validate.
    """
    _check_fractions(val_fraction, test_fraction)
    unreadable = _ledger(listing, contents, max_bad)
    hashes = {index: content.sha256 for index, content in enumerate(contents) if content.reason is None}
    sides, left_out, notes = _usable(listing, hashes)
    near = near_duplicates(contents, sides)
    shares = {"test": test_fraction, "val": val_fraction}
    sides, more_notes = _with_missing_splits(listing, hashes, sides, shares, near, recorded or {})
    return Folder(
        root=listing.root,
        classes=tuple(sorted({listing.samples[index].label for index in sides})),
        train=_of("train", sides),
        val=_of("val", sides),
        test=_of("test", sides),
        unreadable=unreadable,
        left_out=tuple(Unreadable(listing.samples[index].path, reason) for index, reason in sorted(left_out.items())),
        notes=(
            *listing.notes,
            *notes,
            *more_notes,
            *_across(listing.samples, sides, near),
            *_rarities(listing.samples, hashes, sides),
            *_barely_measured(listing.samples, sides),
        ),
        near=near,
    )


def near_duplicates(contents: Sequence[Content], indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Pairs of `indices` that are near-duplicates and not identical, ascending. The first of identical pictures stands
    for all of them, and unreadable pictures are left out."""
    first: dict[str, int] = {}
    for index in sorted(indices):
        if contents[index].fingerprint:
            first.setdefault(contents[index].sha256, index)
    seen = list(first.values())
    pairs = near_pairs([bytes.fromhex(contents[index].fingerprint or "") for index in seen])
    return tuple((seen[one], seen[other]) for one, other in pairs)


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for option, value in (("--val-fraction", val_fraction), ("--test-fraction", test_fraction)):
        if not 0 <= value < 1:
            raise InputError(f"{option} must be at least 0 and below 1, not {value}")
    if val_fraction + test_fraction >= 1:
        raise InputError("--val-fraction and --test-fraction leave nothing to train on: their sum must be below 1")


def _ledger(listing: Listing, contents: Sequence[Content], max_bad: float) -> tuple[Unreadable, ...]:
    unreadable = tuple(
        Unreadable(sample.path, content.reason)
        for sample, content in zip(listing.samples, contents, strict=True)
        if content.reason is not None
    )
    if len(unreadable) / len(contents) > max_bad:
        lines = [
            f"{len(unreadable)} of {len(contents)} pictures in {listing.name} cannot be read, "
            f"more than {max_bad * 100:g} % (--max-bad):",
            *(f"  {entry.path}: {entry.reason}" for entry in unreadable[:SHOWN_FILES]),
        ]
        if len(unreadable) > SHOWN_FILES:
            lines.append(f"  … and {len(unreadable) - SHOWN_FILES} more")
        raise InputError(*lines)
    return unreadable


def _usable(listing: Listing, hashes: Mapping[int, str]) -> tuple[dict[int, str], dict[int, str], list[str]]:
    """The given split of each usable picture, "train" without one; the reasons of those left out; notes."""
    samples = listing.samples
    left_out, notes = _contradictions(samples, hashes)
    contradictory = f"; {len(left_out)} pictures are identical under two labels" if left_out else ""
    sides = {index: samples[index].split or "train" for index in hashes if index not in left_out}
    leaks = _leaks(samples, hashes, sides)
    left_out |= leaks
    if leaks:
        notes.append(
            f"Pictures of train/ and val/ that are identical to one in val/ or test/ are left out: {len(leaks)}."
        )
    classes = {samples[index].label for index, side in sides.items() if side == "train" and index not in left_out}
    dropped = sorted(set(listing.classes) - classes)
    if dropped:
        notes.append(f"Classes without training pictures are left out: {some(dropped)}.")
    if len(classes) < 2:
        without = f"; without: {some(dropped)}" if dropped else ""
        raise InputError(f"{listing.name} has fewer than two classes with training pictures{without}{contradictory}")
    for index in sides:
        if samples[index].label in dropped:
            left_out.setdefault(index, "its class has no training picture")
    return {index: side for index, side in sides.items() if index not in left_out}, left_out, notes


def contradictory_labels(samples: Sequence[Sample], hashes: Mapping[int, str]) -> dict[int, str]:
    """The reason to leave out each of the identical pictures with different labels, by index. hashes: by index."""
    copies: dict[str, list[int]] = defaultdict(list)
    for index, content in sorted(hashes.items()):
        copies[content].append(index)
    reasons = {}
    for group in copies.values():
        for index in group:
            others = (samples[each] for each in group if samples[each].label != samples[index].label)
            if (other := next(others, None)) is not None:
                reasons[index] = f"identical to {other.path}, which has the label {other.label!r}"
    return reasons


def _contradictions(samples: Sequence[Sample], hashes: Mapping[int, str]) -> tuple[dict[int, str], list[str]]:
    """What `contradictory_labels` finds, and a note that names it."""
    reasons = contradictory_labels(samples, hashes)
    first: dict[str, dict[str, Sample]] = defaultdict(dict)
    for index in sorted(reasons):
        first[hashes[index]].setdefault(samples[index].label, samples[index])
    named = [" = ".join(f"{each.path} ({each.label})" for each in of.values()) for of in first.values()]
    note = f"Identical pictures with different labels are left out, {len(reasons)} in all: {some(named, 3)}."
    return reasons, [note] if named else []


def _leaks(samples: Sequence[Sample], hashes: Mapping[int, str], sides: Mapping[int, str]) -> dict[int, str]:
    """The reason to leave out each picture that is identical to one in a split that measures it, by index."""
    standing: dict[str, dict[str, str]] = {"test": {}, "val": {}}
    for index, side in sides.items():
        if side in standing:
            standing[side].setdefault(hashes[index], samples[index].path)
    judges = {"train": ("test", "val"), "val": ("test",), "test": ()}
    leaks = {}
    for index, side in sides.items():
        twins = [standing[judge][hashes[index]] for judge in judges[side] if hashes[index] in standing[judge]]
        if twins:
            leaks[index] = f"identical to {twins[0]}"
    return leaks


def _across(samples: Sequence[Sample], sides: Mapping[int, str], near: Sequence[tuple[int, int]]) -> Iterator[str]:
    pairs = [f"{samples[one].path} ~ {samples[other].path}" for one, other in near if sides[one] != sides[other]]
    if pairs:
        count = "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
        yield f"Near-duplicates in different splits are kept, {count}: {some(pairs, 1)}."


def _with_missing_splits(
    listing: Listing,
    hashes: Mapping[int, str],
    sides: Mapping[int, str],
    shares: Mapping[str, float],
    near: Sequence[tuple[int, int]],
    recorded: Mapping[str, str],
) -> tuple[dict[int, str], list[str]]:
    """The split of each picture, after missing splits were made of training pictures; notes."""
    given = {sample.split for sample in listing.samples}
    wanted = {split: share for split, share in shares.items() if split not in given}
    if not wanted and "val" in sides.values():
        return dict(sides), []
    training = [index for index, side in sides.items() if side == "train"]
    lowest = _lowest_hashes(hashes, [pair for pair in near if {sides[index] for index in pair} == {"train"}])
    groups = {index: lowest.get(hashes[index], hashes[index]) for index in training}
    kept = {hashes[index]: recorded[hashes[index]] for index in training if hashes[index] in recorded}
    needs_val = "val" not in sides.values()
    found = _made(listing, hashes, groups, wanted, kept, needs_val=needs_val)
    notes = []
    if found is None and lowest:
        groups, lowest = {index: hashes[index] for index in training}, {}
        found = _made(listing, hashes, groups, wanted, kept, needs_val=needs_val)
        notes.append("Near-duplicates are in different splits, because in one split they leave no validation picture.")
    if found is None:
        groups = {index: hashes[index] for index in training}
        found = _made(listing, hashes, groups, wanted, kept, needs_val=False)
        notes = ["No class has two different training pictures, so no picture is left for validation."]
    assert found is not None
    made, more_notes = found
    if lowest:
        together = sorted(listing.samples[index].path for index in training if hashes[index] in lowest)
        count = len(set(lowest.values()))
        groups_in_all = "1 group" if count == 1 else f"{count} groups"
        notes.append(f"Near-duplicates stay in one split, {groups_in_all}: {some(together, 2)}.")
        notes.extend(_alike_classes(listing, hashes, groups))
    return dict(sides) | {index: made[group] for index, group in groups.items()}, [*notes, *more_notes]


def _alike_classes(listing: Listing, hashes: Mapping[int, str], groups: Mapping[int, str]) -> Iterator[str]:
    parts: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for index, group in groups.items():
        for part, name in zip(parts[listing.samples[index].label], (hashes[index], group), strict=True):
            part.add(name)
    alike = sorted(label for label, (contents, together) in parts.items() if len(together) == 1 < len(contents))
    if alike:
        yield f"Classes with near-duplicates of one picture are trained but not measured: {some(alike)}."


def _lowest_hashes(hashes: Mapping[int, str], near: Sequence[tuple[int, int]]) -> dict[str, str]:
    """The lowest hash in the group of each content that has a near-duplicate."""
    lowest: dict[str, str] = {}
    for group in connected(near):
        contents = {hashes[index] for index in group}
        lowest |= dict.fromkeys(contents, min(contents))
    return lowest


def _made(
    listing: Listing,
    hashes: Mapping[int, str],
    groups: Mapping[int, str],
    shares: Mapping[str, float],
    kept: Mapping[str, str],
    *,
    needs_val: bool,
) -> tuple[dict[str, str], list[str]] | None:
    """The split of each group, and notes; None where there would be no validation picture.

    groups: The group of each training picture. kept: Splits of contents in an earlier run. needs_val: Whether there
    must be a validation picture, whatever its fraction.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    recorded: dict[str, str] = {}
    for index, group in groups.items():
        counts[group][listing.samples[index].label] += 1
        split = kept.get(hashes[index], "")
        if split == "train" or split in shares:
            recorded[group] = min(split, recorded.get(group, split), key=_HELD_OUT_FIRST.index)
    made = split_groups([Group(name, found) for name, found in counts.items()], shares, recorded)
    notes = _starved(made, counts)
    if needs_val and "val" not in made.values():
        source = "training"
        spared = _spared({group: counts[group] for group, side in made.items() if side == "train"})
        if not spared:
            source = "test"
            spared = [group for group, side in made.items() if side == "test"]
        if not spared:
            return None
        made |= dict.fromkeys(spared, "val")
        notes.append(f"Validation would have been empty; pictures moved to it from {source}: {len(spared)}.")
    return made, notes


def _starved(made: dict[str, str], counts: Mapping[str, Collection[str]]) -> list[str]:
    """Move all groups of a class without a training picture to training; notes."""
    trained = {label for group, side in made.items() if side == "train" for label in counts[group]}
    groups = Counter(label for labels in counts.values() for label in labels)
    starved = groups.keys() - trained
    made |= {group: "train" for group, labels in counts.items() if not starved.isdisjoint(labels)}
    moved = sorted(label for label in starved if groups[label] > 1)
    return [f"Classes whose pictures all stay in training, which had none of them: {some(moved)}."] if moved else []


def _spared(classes: Mapping[str, Collection[str]]) -> list[str]:
    """One training group of each class, the lowest hash first, whose loss leaves a training group in every class."""
    left: Counter[str] = Counter(label for labels in classes.values() for label in labels)
    served: set[str] = set()
    spared = []
    for content, labels in sorted(classes.items()):
        if not served.issuperset(labels) and all(left[label] > 1 for label in labels):
            spared.append(content)
            served |= set(labels)
            left.subtract(labels)
    return spared


def _rarities(samples: Sequence[Sample], hashes: Mapping[int, str], sides: Mapping[int, str]) -> Iterator[str]:
    contents = {(samples[index].label, hashes[index]) for index in sides}
    single = sorted(label for label, count in Counter(label for label, _ in contents).items() if count == 1)
    if single:
        yield f"Classes with one picture are trained but not measured: {some(single)}."
    copies = len(sides) - len({(side, samples[index].label, hashes[index]) for index, side in sides.items()})
    if copies:
        yield f"Exact copies of another picture in the same class and split are kept: {copies}."


def _barely_measured(samples: Sequence[Sample], sides: Mapping[int, str]) -> Iterator[str]:
    """A note about classes with one or two pictures in the measured split."""
    split, name = ("test", "test") if "test" in sides.values() else ("val", "validation")
    counts = Counter(samples[index].label for index, side in sides.items() if side == split)
    few = sorted(label for label, count in counts.items() if count <= TOO_FEW)
    if few:
        yield f"Classes with one or two {name} pictures, too few for a reliable accuracy: {some(few)}."


def _of(split: str, sides: Mapping[int, str]) -> tuple[int, ...]:
    return tuple(sorted(index for index, side in sides.items() if side == split))
