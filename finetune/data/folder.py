"""A folder of pictures as it is listed, none of them read yet: classes, samples, splits that are given."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.images import PICTURE_EXTENSIONS
from finetune.errors import InputError

# Folder names, in any case, that mean a split.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

# `Listing.table` of pictures that a list or a data frame names.
IN_MEMORY = "in memory"

# So many names are told in a note before the rest is only counted.
SHOWN_NAMES = 5


@dataclass(frozen=True)
class Sample:
    """A picture as listed, not yet read.

    path: below the folder, with "/". label: its class. split: "train", "val" or "test" where folders say so, else None.
    size: bytes, -1 for a broken link.
    """

    path: str
    label: str
    split: str | None
    size: int


@dataclass(frozen=True)
class Listing:
    """The pictures below `root` in the order of their paths, and the decisions taken, one sentence each.

    table: the path of the table that lists them, IN_MEMORY for a list or data frame, None where the folder itself does.
    """

    root: Path
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    table: str | None = None

    @property
    def name(self) -> str:
        """What a message calls it."""
        return {None: str(self.root), IN_MEMORY: "the list of pictures"}.get(self.table) or str(self.table)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({sample.label for sample in self.samples}))


def list_folder(root: Path, *, to_train: bool = True) -> Listing:
    """The pictures below `root` with their classes, without reading one of them.

    A class is a first-level folder with all that lies below it. When every first-level folder that holds pictures is
    called train, val, valid, validation or test (in any case), and train/, or without it each of them, has sub-folders
    with pictures, they are splits and the classes lie one level deeper. Names that start with a dot and __MACOSX are
    ignored; links are followed.

    A folder one level too high is refused: one whose first-level folders have train/ or val/ with classes of their own.
    First-level folders that hold only folders may be classes or data sets: they are classes, and a note says so.

    to_train: also ask for what training needs: two classes, each of them with pictures in train/ where splits are
    given. InputError when the folder cannot be used, saying why.
    """
    if not root.is_dir():
        raise InputError(f"{root} is not a folder" if root.exists() else f"{root} does not exist")
    tree = _walk(root)
    splits = _splits(root, tree)
    if not splits:
        _refuse_data_sets(root, tree)
    level = 1 if splits else 0
    samples, outside = [], []
    for path, size in sorted(tree.pictures.items()):
        parts = path.split("/")
        if len(parts) < level + 2:
            outside.append(path)
        else:
            samples.append(Sample(path, parts[level], splits.get(parts[0]), size))
    notes = _listing_notes(root, tree, splits, samples, outside)
    listing = Listing(root, tuple(samples), tuple(notes))
    check_listing(listing, to_train=to_train)
    return listing


def check_listing(listing: Listing, *, to_train: bool) -> None:
    """InputError where there is no picture, classes look the same, or training lacks what it needs."""
    _check_classes(listing)
    if to_train:
        _check_trainable(listing)


def list_unlabelled(paths: Sequence[Path]) -> list[Path]:
    """The pictures at `paths`: files as given, folders with all that lies below them, sorted.

    InputError for a path that does not exist and a folder without pictures.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            pictures = sorted(_walk(path).pictures)
            if not pictures:
                raise InputError(f"{path} holds no pictures")
            found.extend(path / picture for picture in pictures)
        elif os.path.lexists(path):
            found.append(path)
        else:
            raise InputError(f"{path} does not exist")
    return found


@dataclass(frozen=True)
class _Tree:
    """What lies below a folder: pictures with their size, folders, links that lead back, by path; how much else."""

    pictures: dict[str, int]
    folders: list[str]
    loops: list[str]
    others: int


def _walk(root: Path) -> _Tree:
    pictures: dict[str, int] = {}
    folders: list[str] = []
    loops: list[str] = []
    others = 0
    # Each folder with the identities of itself and of those above it, in which a link must not lead back.
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(os.stat(root)),))]
    while pending:
        folder, line = pending.pop()
        for name in _names(root / folder):
            path = f"{folder}/{name}" if folder else name
            status = _status(os.path.join(root, path))
            if status is not None and stat.S_ISDIR(status.st_mode):
                if _identity(status) in line:
                    loops.append(path)
                else:
                    folders.append(path)
                    pending.append((path, (*line, _identity(status))))
            elif os.path.splitext(name)[1].lower() not in PICTURE_EXTENSIONS:
                others += 1
            elif status is None:
                pictures[path] = -1
            elif stat.S_ISREG(status.st_mode):
                pictures[path] = status.st_size
            else:
                others += 1
    return _Tree(pictures, sorted(folders), sorted(loops), others)


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".") and name != "__MACOSX"]
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error


def _status(path: str) -> os.stat_result | None:
    """What `path` leads to; None for a broken link."""
    try:
        return os.stat(path)
    except OSError:  # whatever is the matter with it, reading it later will say so
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _splits(root: Path, tree: _Tree) -> dict[str, str]:
    """What split each first-level folder is, by name; empty when they are classes."""
    splits = _split_folders(tree.pictures)
    for split in set(splits.values()):
        same = [f"{name}/" for name in splits if splits[name] == split]
        if len(same) > 1:
            raise InputError(f"{root} has both {' and '.join(same)}, which mean the same split; keep one")
    return splits


def _split_folders(pictures: Iterable[str]) -> dict[str, str]:
    """What split each first-level folder of these paths is, by name; empty when they are classes."""
    parts = [path.split("/") for path in pictures]
    filled = {names[0] for names in parts if len(names) >= 2}
    nested = {names[0] for names in parts if len(names) >= 3}
    splits = {name: SPLIT_NAMES[name.casefold()] for name in sorted(filled) if name.casefold() in SPLIT_NAMES}
    training = {name for name, split in splits.items() if split == "train"}
    return splits if len(splits) == len(filled) and (training or filled) <= nested else {}


def _below(tree: _Tree) -> dict[str, list[str]]:
    """For each first-level folder with pictures their paths below it."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(tree.pictures):
        first, _, rest = path.partition("/")
        if rest:
            found[first].append(rest)
    return found


def _refuse_data_sets(root: Path, tree: _Tree) -> None:
    """InputError where first-level folders are data sets with splits of their own, not classes."""
    below = _below(tree)
    data_sets = [name for name, paths in below.items() if _split_folders(paths)]
    if data_sets:
        raise InputError(
            f"{root} is one level too high: in {len(data_sets)} of its {len(below)} folders of pictures there is "
            f"train/ or val/ with classes inside ({some(data_sets)}); did you mean {root / data_sets[0]}?"
        )


def _level_notes(root: Path, tree: _Tree) -> Iterator[str]:
    """Notes about classes that look like data sets, or like classes with splits inside."""
    below = _below(tree)
    inner = {name: {path.split("/")[0] for path in paths if "/" in path} for name, paths in below.items()}
    divided = [
        f"{name}/{each}"
        for name in below
        if inner[name] and all(each.casefold() in SPLIT_NAMES for each in inner[name])
        for each in sorted(inner[name])
    ]
    if divided:
        yield (
            f"Folders inside classes are not taken as splits: {some(divided)}. "
            "Splits are above the classes: train/<class>, val/<class>, test/<class>."
        )
        return
    only_folders = all(len(inner[name]) >= 2 and all("/" in path for path in below[name]) for name in below)
    if only_folders and len(below) > 1:
        counts = some([f"{name} ({len(inner[name])})" for name in below])
        yield (
            f"Folders that hold only folders, taken as {len(below)} classes: {counts}. "
            f"If each is a data set with classes of its own, give one of them: {root / next(iter(below))}."
        )


def _listing_notes(
    root: Path, tree: _Tree, splits: Mapping[str, str], samples: Sequence[Sample], outside: Sequence[str]
) -> Iterator[str]:
    level = 1 if splits else 0
    parts = [path.split("/") for path in tree.pictures]
    filled = {"/".join(names[:depth]) for names in parts for depth in range(level + 2) if depth < len(names)}
    # Below the level of classes an empty folder does not matter, and what lies in an empty one goes without saying.
    empty = [
        folder
        for folder in tree.folders
        if folder.count("/") <= level and folder not in filled and os.path.dirname(folder) in filled
    ]
    classes = sorted({sample.label for sample in samples})
    if not splits and (misleading := [label for label in classes if label.casefold() in SPLIT_NAMES]):
        yield f"Folders taken as classes, not as splits: {some(misleading)}."
    if not splits:
        yield from _level_notes(root, tree)
    if empty:
        yield f"Folders without pictures, left out: {some(empty)}."
    if outside:
        yield f"Pictures outside any class folder, ignored: {some(outside)}."
    if tree.loops:
        yield f"Links back to a folder that they lie in, not followed: {some(tree.loops)}."
    if tree.others:
        yield f"Files that are not pictures, ignored: {tree.others}."


def _check_classes(listing: Listing) -> None:
    if not listing.samples:
        raise InputError(
            f"{listing.name} holds no pictures in class folders; "
            f"expected is {listing.root}/<class>/<picture>, or {listing.root}/train/<class>/<picture>"
        )
    seen: dict[str, str] = {}
    for label in listing.classes:
        # The canonical caseless matching of the Unicode standard; folders copied between systems often differ so.
        folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", label).casefold())
        if folded in seen:
            raise InputError(
                f"{listing.name} has classes {seen[folded]!r} and {label!r}, which differ in case or encoding alone; "
                "merge or rename them"
            )
        seen[folded] = label


def _check_trainable(listing: Listing) -> None:
    if len(listing.classes) < 2:
        only = listing.classes[0]
        inner = {sample.path.split("/")[1] for sample in listing.samples if sample.path.count("/") > 1}
        hint = f": did you mean {listing.root / only}?" if listing.table is None and len(inner) > 1 else ""
        raise InputError(f"{listing.name} has one class, {only!r}; training needs at least two{hint}")
    labels: dict[str, set[str]] = defaultdict(set)
    for sample in listing.samples:
        labels[sample.split or "train"].add(sample.label)
    for split in ("val", "test"):
        unlearnt = sorted(labels[split] - labels["train"])
        if not labels["train"]:
            raise InputError(f"{listing.name} has {split}/ but no pictures in train/<class>/ to learn from")
        if unlearnt:
            raise InputError(
                f"{listing.name} has pictures of class {unlearnt[0]!r} in {split}/ but none in train/; "
                "add some there, or take the class out"
            )


def some(names: Sequence[str], shown: int = SHOWN_NAMES) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
