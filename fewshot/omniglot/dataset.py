"""Omniglot read from its official archives, zipped or unpacked: every drawing, and Lake's 20 one-shot runs."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from finetune.errors import InputError, UnreadablePicture

SIDE = 105  # pixels of every picture, both ways
DRAWERS = 20  # of every character
RUNS, WAYS = 20, 20  # Lake's runs, and the classes and questions of each

SETS = {"background": "images_background", "evaluation": "images_evaluation"}  # set -> its archive
ALL_RUNS = "all_runs"

_LARGEST = 1_000_000  # bytes; the pictures have a few hundred


class Character(NamedTuple):
    """One class of Omniglot, by name: `number` counts from 1 within the alphabet, as in the folder `character01`."""

    alphabet: str
    number: int

    def __str__(self) -> str:
        return f"{self.alphabet}/character{self.number:02d}"


@dataclass(frozen=True, eq=False)
class Omniglot:
    """Drawings in the order of their names: alphabet, then character, then drawer.

    pictures: (n, 105, 105) uint8, ink 255 on 0: light on dark, unlike the files, so that paper is nothing.
    alphabet, character: (n,) int64, positions in `alphabets` and `characters`, which are sorted.
    drawer: (n,) int64, 0 to 19, the number in the file's name less one; one person within an alphabet, but the same
    number in two alphabets need not be.
    """

    pictures: Tensor
    alphabet: Tensor
    character: Tensor
    drawer: Tensor
    alphabets: tuple[str, ...]
    characters: tuple[Character, ...]

    def __len__(self) -> int:
        return len(self.pictures)


@dataclass(frozen=True, eq=False)
class OneShotRun:
    """One of Lake's runs (Lake et al. 2015): which of 20 characters of one alphabet does each test picture show?

    train, test: (20, 105, 105) uint8, ink 255 on 0, in the order of their file names.
    answers: (20,) int64, for every test picture the position in `train` of the same character by another drawer.
    """

    name: str
    train: Tensor
    test: Tensor
    answers: Tensor


# --- reading ----------------------------------------------------------------------------------------------------------


def locate(folder: Path | None = None) -> Path:
    """The folder that holds Omniglot's archives: `folder` or $FEWTUNE_DATA, or the folder `omniglot` in it.

    InputError when neither holds one of them, zipped (images_background.zip) or unpacked (images_background/).
    """
    given = folder or (Path(os.environ["FEWTUNE_DATA"]) if os.environ.get("FEWTUNE_DATA") else None)
    if given is None:
        raise InputError("where is Omniglot? Give its folder, or name the folder of all data sets in FEWTUNE_DATA")
    names = (*SETS.values(), ALL_RUNS)
    for place in (given / "omniglot", given):
        if any((place / f"{name}.zip").is_file() or (place / name).is_dir() for name in names):
            return place
    raise InputError(
        f"{given} holds no Omniglot: images_background.zip, images_evaluation.zip and all_runs.zip are wanted, as they "
        "are or unpacked; fewshot.omniglot.download.download fetches them"
    )


def read_omniglot(folder: Path | None = None, sets: Sequence[str] = ("background", "evaluation")) -> Omniglot:
    """Every drawing of `sets`, found as `locate` says; both sets are 32,460 drawings of 1,623 characters, 358 MB.

    What only learns needs no evaluation set: sets=("background",). InputError for an archive that is missing or
    damaged, UnreadablePicture for a picture that cannot be decoded or is not 105 x 105.
    """
    if not sets or not set(sets) <= SETS.keys():
        raise InputError(f"the sets of Omniglot are {' and '.join(SETS)}, not {', '.join(sets) or 'none'}")
    place = locate(folder)
    found: dict[tuple[Character, int], tuple[str, bytes]] = {}  # undecoded they are forty times smaller
    for archive in [SETS[name] for name in SETS if name in sets]:
        before = len(found)
        path = _archive(place, archive)
        for name, content in contents(path):
            if name.endswith(".png"):
                key = _parsed(name)
                if key in found:
                    raise InputError(f"{name} draws what {found[key][0]} draws: {key[0]}, drawer {key[1] + 1}")
                found[key] = name, content
        if len(found) == before:
            raise InputError(f"{path} holds no pictures ALPHABET/character01/0001_01.png")
    keys = sorted(found)
    pictures = torch.empty(len(keys), SIDE, SIDE, dtype=torch.uint8)
    for row, key in zip(pictures.numpy(), keys, strict=True):
        name, content = found[key]
        row[:] = _ink(content, name)
    return labelled(pictures, [character for character, _ in keys], torch.tensor([drawer for _, drawer in keys]))


def lake_runs(folder: Path | None = None) -> list[OneShotRun]:
    """Lake's 20 one-shot runs, found as `locate` says, with the answer keys of their class_labels.txt.

    InputError when the archive is missing or damaged, or holds anything but 20 runs of 20 questions.
    """
    path = _archive(locate(folder), ALL_RUNS)
    pictures: dict[str, Tensor] = {}
    keys: dict[str, dict[str, str]] = {}
    for name, content in contents(path):
        inner = re.search(r"(run\d\d)/(?:class_labels\.txt|(?:test|training)/[^/]+\.png)$", name)
        if inner and name.endswith(".txt"):
            keys[inner[1]] = _answer_key(content, name)
        elif inner:
            pictures[inner[0]] = torch.from_numpy(_ink(content, name))
    if len(keys) != RUNS:
        raise InputError(f"{path} holds {len(keys)} runs with a class_labels.txt; {RUNS} are wanted")
    return [_run(name, keys[name], pictures) for name in sorted(keys)]


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of an archive, a zip or a folder it was unpacked to, as (name, content) in the order of the names.

    Hidden files, and what macOS adds to archives, are passed over. InputError when it is damaged, or a zip that would
    be unsafe to unpack: nothing is unpacked here, but such a zip is not an official one.
    """
    return _unpacked(path) if path.is_dir() else _zipped(path)


def _archive(place: Path, name: str) -> Path:
    """The zip before the folder, which may have been unpacked in part."""
    for path in (place / f"{name}.zip", place / name):
        if path.exists():
            return path
    raise InputError(f"{place} holds neither {name}.zip nor the folder {name}")


def _zipped(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                _check_member(path, member)
            for member in sorted(members, key=lambda member: member.filename):
                if not member.is_dir() and _shown(PurePosixPath(member.filename)):
                    yield member.filename, archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}; it may be damaged") from error


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """InputError for a name that would be written outside of the folder it is unpacked in, for links and for bombs."""
    # orig_filename: zipfile itself hides what follows a zero byte, and turns the system's separators into slashes.
    name = member.orig_filename
    steps = re.split(r"[/\\]", name)
    reason = None
    if "\0" in name or steps[0] == "" or ".." in steps or re.match("[A-Za-z]:", name):
        reason = "leads out of the archive"
    elif stat.S_ISLNK(member.external_attr >> 16):
        reason = "is a link"
    elif member.file_size > _LARGEST:
        reason = f"is {member.file_size:,} bytes large"
    if reason:
        raise InputError(f"{path}: its member {name!r} {reason}; this is not the official archive")


def _unpacked(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(path for kind in ("*.png", "*.txt") for path in folder.rglob(kind)):
        name = path.relative_to(folder.parent)
        if _shown(name):
            try:
                yield name.as_posix(), path.read_bytes()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _shown(name: PurePosixPath | Path) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


# --- from files to tensors --------------------------------------------------------------------------------------------


def _parsed(name: str) -> tuple[Character, int]:
    """Character and drawer, counted from 0, that the name of a picture tells."""
    inner = re.search(r"([^/]+)/character(\d+)/\d+_(\d+)\.png$", name)
    if not inner or not 1 <= int(inner[3]) <= DRAWERS:
        raise InputError(f"{name}: not a name like ALPHABET/character01/0001_01.png; what does it do in Omniglot?")
    return Character(inner[1], int(inner[2])), int(inner[3]) - 1


def _ink(content: bytes, name: str) -> NDArray[np.uint8]:
    """(105, 105) uint8: 255 where the picture in `content` is darker than middle grey."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if picture.size != (SIDE, SIDE):
                raise UnreadablePicture(name, f"{picture.width}x{picture.height}; Omniglot has {SIDE}x{SIDE}")
            paper = np.asarray(picture.convert("1", dither=Image.Dither.NONE))
    except UnreadablePicture:
        raise
    except Exception as error:  # a damaged file makes Pillow's decoders raise anything
        raise UnreadablePicture(name, "not a PNG, or damaged") from error
    return ~paper * np.uint8(255)


def labelled(pictures: Tensor, shown: Sequence[Character], drawer: Tensor) -> Omniglot:
    """Pictures (n, 105, 105) with the character that each shows and its drawer (n,), classes numbered from 0."""
    characters = tuple(sorted(set(shown)))
    alphabets = tuple(sorted({character.alphabet for character in characters}))
    alphabet_of = {name: position for position, name in enumerate(alphabets)}
    position_of = {character: position for position, character in enumerate(characters)}
    return Omniglot(
        pictures=pictures,
        alphabet=torch.tensor([alphabet_of[character.alphabet] for character in shown], dtype=torch.int64),
        character=torch.tensor([position_of[character] for character in shown], dtype=torch.int64),
        drawer=drawer,
        alphabets=alphabets,
        characters=characters,
    )


def _answer_key(content: bytes, name: str) -> dict[str, str]:
    """Test picture -> training picture, from lines like `run01/test/item01.png run01/training/class08.png`."""
    pairs = [line.split() for line in content.decode(errors="replace").splitlines() if line.strip()]
    key = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    if len(key) != len(pairs) or len(key) != WAYS:
        raise InputError(f"{name}: {WAYS} lines are wanted, each with a test picture and its training picture")
    return key


def _run(name: str, key: dict[str, str], pictures: dict[str, Tensor]) -> OneShotRun:
    tests = sorted(picture for picture in pictures if picture.startswith(f"{name}/test/"))
    trains = sorted(picture for picture in pictures if picture.startswith(f"{name}/training/"))
    if len(trains) != WAYS or sorted(key) != tests or sorted(key.values()) != trains:
        raise InputError(f"{name}: class_labels.txt and the pictures do not agree, or are not {WAYS} of each kind")
    return OneShotRun(
        name=name,
        train=torch.stack([pictures[picture] for picture in trains]),
        test=torch.stack([pictures[picture] for picture in tests]),
        answers=torch.tensor([trains.index(key[picture]) for picture in tests]),
    )
