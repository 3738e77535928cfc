"""The listing of a folder of pictures before any is read: samples, classes, given splits."""

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

# Names of folders that are splits, in lower or upper case.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

# `Listing.table` of pictures that a list or a data frame names.
IN_MEMORY = "in memory"

# Number of names in a note; the rest is counted.
SHOWN_NAMES = 5


@dataclass(frozen=True)
class Sample:
    """A picture of a listing.

    Attributes:
        path: Path below the folder, with "/".
        label: Name of its class.
        split: "train", "val" or "test" where splits are given, else None.
        size: Size in bytes; -1 for a broken link.
    """

    path: str
    label: str
    split: str | None
    size: int


@dataclass(frozen=True)
class Listing:
    """The pictures below a folder, in the order of their paths.

    Attributes:
        root: The folder.
        samples: The pictures.
        notes: Decisions to show, one sentence each.
        table: Path of the table that lists the pictures; IN_MEMORY for a list or a data frame; None for a folder.
    """

    root: Path
    samples: tuple[Sample, ...]
    notes: tuple[str, ...]
    table: str | None = None

    @property
    def name(self) -> str:
        """Name of the listing in messages."""
        return {None: str(self.root), IN_MEMORY: "the list of pictures"}.get(self.table) or str(self.table)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({sample.label for sample in self.samples}))


def list_folder(root: Path, *, to_train: bool = True) -> Listing:
    """List the pictures below a folder, with their classes, without reading them.

    A first-level folder, with everything below it, is a class. First-level folders are splits, with classes one level
    deeper, if all those with pictures are named train, val, valid, validation or test (in lower or upper case), and
    train/, or without it each of them, has sub-folders with pictures. Names that start with a dot and __MACOSX are
    ignored; links are followed.

    A folder one level too high is refused: its first-level folders have train/ or val/ with classes. First-level
    folders with nothing but folders may be classes or data sets: they are taken as classes, and a note says so.

    Args:
        root: The folder.
        to_train: Also require two classes, each with pictures in train/ where splits are given.

    Raises:
        InputError: If the folder cannot be used.
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
    """InputError if there is no picture, if the names of two classes look the same, or if training is impossible."""
    _check_classes(listing)
    if to_train:
        _check_trainable(listing)


def list_unlabelled(paths: Sequence[Path]) -> list[Path]:
    """The pictures at `paths`: files, and all pictures below folders, sorted.

    InputError for a path that does not exist, and for a folder without pictures.
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


def list_without_labels(root: Path, option: str) -> Listing:
    """All pictures below a folder, without labels or splits.

    InputError, naming the option that gave the folder, where it is no folder or holds no pictures.
    """
    if not root.is_dir():
        raise InputError(f"{root} ({option}) is not a folder" if root.exists() else f"{root} ({option}) does not exist")
    pictures = sorted(_walk(root).pictures.items())
    if not pictures:
        raise InputError(f"{root} ({option}) holds no pictures")
    return Listing(root, tuple(Sample(path, "", None, size) for path, size in pictures), ())


@dataclass(frozen=True)
class _Tree:
    """The content of a folder: pictures with their sizes, folders, and links to folders above; a count of the rest."""

    pictures: dict[str, int]
    folders: list[str]
    loops: list[str]
    others: int


def _walk(root: Path) -> _Tree:
    pictures: dict[str, int] = {}
    folders: list[str] = []
    loops: list[str] = []
    others = 0
    # Each folder with the identities of itself and of the folders above it, to which a link must not lead.
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
    """The status of the file at `path`; None for a broken link."""
    try:
        return os.stat(path)
    except OSError:  # reading it later reports the reason
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _splits(root: Path, tree: _Tree) -> dict[str, str]:
    """The split of each first-level folder, by name; empty if they are classes."""
    splits = _split_folders(tree.pictures)
    for split in set(splits.values()):
        same = [f"{name}/" for name in splits if splits[name] == split]
        if len(same) > 1:
            raise InputError(f"{root} has both {' and '.join(same)}, which mean the same split; keep one")
    return splits


def _split_folders(pictures: Iterable[str]) -> dict[str, str]:
    """The split of each first-level folder of these paths, by name; empty if they are classes."""
    parts = [path.split("/") for path in pictures]
    filled = {names[0] for names in parts if len(names) >= 2}
    nested = {names[0] for names in parts if len(names) >= 3}
    splits = {name: SPLIT_NAMES[name.casefold()] for name in sorted(filled) if name.casefold() in SPLIT_NAMES}
    training = {name for name, split in splits.items() if split == "train"}
    return splits if len(splits) == len(filled) and (training or filled) <= nested else {}


def _below(tree: _Tree) -> dict[str, list[str]]:
    """The paths of the pictures below each first-level folder."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(tree.pictures):
        first, _, rest = path.partition("/")
        if rest:
            found[first].append(rest)
    return found


def _refuse_data_sets(root: Path, tree: _Tree) -> None:
    """InputError if first-level folders are data sets with splits, not classes."""
    below = _below(tree)
    data_sets = [name for name, paths in below.items() if _split_folders(paths)]
    if data_sets:
        raise InputError(
            f"{root} is one level too high: in {len(data_sets)} of its {len(below)} folders of pictures there is "
            f"train/ or val/ with classes inside ({some(data_sets)}); did you mean {root / data_sets[0]}?"
        )


def _level_notes(root: Path, tree: _Tree) -> Iterator[str]:
    """Notes about classes that look like data sets, or that contain folders named like splits."""
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
            f"Folders with nothing but folders are taken as {len(below)} classes: {counts}. "
            f"If each is a data set with classes of its own, give one of them: {root / next(iter(below))}."
        )


def _listing_notes(
    root: Path, tree: _Tree, splits: Mapping[str, str], samples: Sequence[Sample], outside: Sequence[str]
) -> Iterator[str]:
    level = 1 if splits else 0
    parts = [path.split("/") for path in tree.pictures]
    filled = {"/".join(names[:depth]) for names in parts for depth in range(level + 2) if depth < len(names)}
    # An empty folder below the level of classes does not matter, nor does one inside an empty folder.
    empty = [
        folder
        for folder in tree.folders
        if folder.count("/") <= level and folder not in filled and os.path.dirname(folder) in filled
    ]
    classes = sorted({sample.label for sample in samples})
    if not splits and (misleading := [label for label in classes if label.casefold() in SPLIT_NAMES]):
        yield f"These folders are taken as classes, not as splits: {some(misleading)}."
    if not splits:
        yield from _level_notes(root, tree)
    if empty:
        yield f"Folders without pictures are left out: {some(empty)}."
    if outside:
        yield f"Pictures outside class folders are ignored: {some(outside)}."
    if tree.loops:
        yield f"Links to a folder above them are not followed: {some(tree.loops)}."
    if tree.others:
        yield f"Files that are not pictures are ignored: {tree.others}."


def _check_classes(listing: Listing) -> None:
    if not listing.samples:
        raise InputError(
            f"{listing.name} holds no pictures in class folders; "
            f"expected is {listing.root}/<class>/<picture>, or {listing.root}/train/<class>/<picture>"
        )
    seen: dict[str, str] = {}
    for label in listing.classes:
        # Canonical caseless matching of the Unicode standard. Copying between systems often changes names in this way.
        folded = unicodedata.normalize("NFD", unicodedata.normalize("NFD", label).casefold())
        if folded in seen:
            raise InputError(
                f"{listing.name} has classes {seen[folded]!r} and {label!r}, which differ only in case or encoding; "
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
                "add some there, or remove the class"
            )


def some(names: Sequence[str], shown: int = SHOWN_NAMES) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
