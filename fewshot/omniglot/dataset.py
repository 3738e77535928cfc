"""Omniglot from its official archives, zipped or unpacked: every drawing, and Lake's 20 one-shot runs."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot.omniglot.archive import contents
from finetune.errors import InputError, UnreadablePicture

SIDE = 105  # pixels of every picture, both ways
DRAWERS = 20  # of every character
RUNS, WAYS = 20, 20  # Lake's runs, and the classes and questions of each

SETS = {"background": "images_background", "evaluation": "images_evaluation"}  # set -> its archive
ALL_RUNS = "all_runs"


class Character(NamedTuple):
    """One class of Omniglot. number: from 1 within the alphabet, as in the folder `character01`."""

    alphabet: str
    number: int

    def __str__(self) -> str:
        return f"{self.alphabet}/character{self.number:02d}"


@dataclass(frozen=True, eq=False)
class Omniglot:
    """Drawings, sorted by alphabet, character and drawer.

    Attributes:
        pictures: Shape (n, 105, 105), uint8: ink 255 on 0. The files have dark ink on light paper.
        alphabet: Shape (n,), int64: positions in `alphabets`.
        character: Shape (n,), int64: positions in `characters`.
        drawer: Shape (n,), int64, 0 to 19. A number is one person within an alphabet, not across alphabets.
        alphabets: Sorted names.
        characters: Sorted.
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
    """A run of 20 one-shot questions: which of 20 characters of one alphabet does each test picture show?

    Attributes:
        name: Such as "run01".
        train: Shape (20, 105, 105), uint8, ink 255 on 0: one example of each character.
        test: Same shape: one question each, by another drawer.
        answers: Shape (20,), int64: the position in `train` of the character of each test picture.

    Source: Lake et al. (2015).
    """

    name: str
    train: Tensor
    test: Tensor
    answers: Tensor


# --- reading ----------------------------------------------------------------------------------------------------------


def locate(folder: Path | None = None) -> Path:
    """Find the folder that holds Omniglot's archives, zipped (images_background.zip) or unpacked (images_background/).

    Args:
        folder: The folder, or one with a folder `omniglot` in it. None for the environment variable FEWTUNE_DATA.

    Raises:
        InputError: If there is no archive.
    """
    given = folder or (Path(os.environ["FEWTUNE_DATA"]) if os.environ.get("FEWTUNE_DATA") else None)
    if given is None:
        raise InputError(
            "the folder of Omniglot is unknown: give it, or set FEWTUNE_DATA to the folder of all data sets"
        )
    names = (*SETS.values(), ALL_RUNS)
    for place in (given / "omniglot", given):
        if any((place / f"{name}.zip").is_file() or (place / name).is_dir() for name in names):
            return place
    raise InputError(
        f"{given} holds no Omniglot archives (images_background.zip, images_evaluation.zip, all_runs.zip), zipped or "
        "unpacked; `fewshot download` fetches them"
    )


def read_omniglot(folder: Path | None = None, sets: Sequence[str] = ("background", "evaluation")) -> Omniglot:
    """Read every drawing. Both sets have 32,460 drawings of 1,623 characters, 358 MB in memory.

    Args:
        folder: As for `locate`.
        sets: "background", "evaluation" or both. Training needs the background set only.

    Raises:
        InputError: If an archive is missing or damaged.
        UnreadablePicture: If a picture cannot be decoded or is not 105 x 105.
    """
    if not sets or not set(sets) <= SETS.keys():
        raise InputError(f"the sets of Omniglot are {' and '.join(SETS)}, not {', '.join(sets) or 'none'}")
    place = locate(folder)
    found: dict[tuple[Character, int], tuple[str, bytes]] = {}  # encoded, they are forty times smaller
    for archive in [SETS[name] for name in SETS if name in sets]:
        before = len(found)
        path = _archive(place, archive)
        for name, content in contents(path):
            if name.endswith(".png"):
                key = _parsed(name)
                if key in found:
                    raise InputError(f"{name} and {found[key][0]} are both {key[0]} by drawer {key[1] + 1}")
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
    """Read Lake's 20 one-shot runs, with the answers in their class_labels.txt.

    Args:
        folder: As for `locate`.

    Raises:
        InputError: If the archive is missing or damaged, or does not hold 20 runs of 20 questions.
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
        raise InputError(f"{path} holds {len(keys)} runs with a class_labels.txt; {RUNS} are needed")
    return [_run(name, keys[name], pictures) for name in sorted(keys)]


def _archive(place: Path, name: str) -> Path:
    """The zip, or else the folder, which may be unpacked in part only."""
    for path in (place / f"{name}.zip", place / name):
        if path.exists():
            return path
    raise InputError(f"{place} holds neither {name}.zip nor the folder {name}")


# --- from files to tensors --------------------------------------------------------------------------------------------


def _parsed(name: str) -> tuple[Character, int]:
    """Character and drawer, counted from 0, from the name of a picture."""
    inner = re.search(r"([^/]+)/character(\d{1,6})/\d+_(\d{1,6})\.png$", name)
    if not inner or not 1 <= int(inner[3]) <= DRAWERS:
        raise InputError(f"{name}: not a name like ALPHABET/character01/0001_01.png, as every picture of Omniglot has")
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
    except Exception as error:  # Pillow's decoders raise arbitrary errors for damaged files
        raise UnreadablePicture(name, "not a PNG, or damaged") from error
    return ~paper * np.uint8(255)


def labelled(pictures: Tensor, shown: Sequence[Character], drawer: Tensor) -> Omniglot:
    """Pictures (n, 105, 105) with their characters and drawers (n,); classes are numbered from 0."""
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
        raise InputError(f"{name}: {WAYS} lines are needed, each with a test picture and its training picture")
    return key


def _run(name: str, key: dict[str, str], pictures: dict[str, Tensor]) -> OneShotRun:
    tests = sorted(picture for picture in pictures if picture.startswith(f"{name}/test/"))
    trains = sorted(picture for picture in pictures if picture.startswith(f"{name}/training/"))
    if len(trains) != WAYS or sorted(key) != tests or sorted(key.values()) != trains:
        raise InputError(
            f"{name}: class_labels.txt and the pictures do not match, or there are not {WAYS} of each kind"
        )
    return OneShotRun(
        name=name,
        train=torch.stack([pictures[picture] for picture in trains]),
        test=torch.stack([pictures[picture] for picture in tests]),
        answers=torch.tensor([trains.index(key[picture]) for picture in tests]),
    )
