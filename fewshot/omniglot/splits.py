"""Splits of Omniglot by name, as plain data, and the check that no tested character was trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fewshot.omniglot.dataset import DRAWERS, Character, Omniglot, labelled
from finetune.errors import InputError
from finetune.files.reading import read_json


@dataclass(frozen=True)
class Split:
    """A part of Omniglot: the drawings of these characters by these drawers, 0 to 19."""

    characters: frozenset[Character]
    drawers: range = range(DRAWERS)


# fmt: off
# The official sets (Lake et al. 2015): alphabets and their numbers of characters.
BACKGROUND: Mapping[str, int] = {
    "Alphabet_of_the_Magi": 20, "Anglo-Saxon_Futhorc": 29, "Arcadian": 26, "Armenian": 41,
    "Asomtavruli_(Georgian)": 40, "Balinese": 24, "Bengali": 46, "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26, "Burmese_(Myanmar)": 34, "Cyrillic": 33, "Early_Aramaic": 22, "Futurama": 26, "Grantha": 43,
    "Greek": 24, "Gujarati": 48, "Hebrew": 22, "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Japanese_(hiragana)": 52, "Japanese_(katakana)": 47, "Korean": 40, "Latin": 26, "Malay_(Jawi_-_Arabic)": 40,
    "Mkhedruli_(Georgian)": 41, "N_Ko": 33, "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14, "Sanskrit": 42,
    "Syriac_(Estrangelo)": 23, "Tagalog": 17, "Tifinagh": 55,
}
EVALUATION: Mapping[str, int] = {
    "Angelic": 20, "Atemayar_Qelisayer": 26, "Atlantean": 26, "Aurek-Besh": 26, "Avesta": 26, "Ge_ez": 26,
    "Glagolitic": 45, "Gurmukhi": 45, "Kannada": 41, "Keble": 26, "Malayalam": 47, "Manipuri": 40, "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45, "Oriya": 46, "Sylheti": 28, "Syriac_(Serto)": 23, "Tengwar": 25,
    "Tibetan": 42, "ULOG": 26,
}
# fmt: on

# The ten alphabets of Lake's 20 runs, two runs each; all are in the evaluation set.
LAKE = (
    "Atlantean",
    "Ge_ez",
    "Glagolitic",
    "Gurmukhi",
    "Kannada",
    "Malayalam",
    "Manipuri",
    "Old_Church_Slavonic_(Cyrillic)",
    "Tengwar",
    "Tibetan",
)

# Alphabets of the background set that choose options and weights. They were drawn at random once, among those of at
# least 20 characters. benchmarks/pretrain_conv4.py holds out the same.
VALIDATION = ("Bengali", "Futurama", "Hebrew", "Japanese_(hiragana)", "Sanskrit")

# The first of the two minimal sets of Lake et al. (2015): the five alphabets in images_background_small1.zip, 136
# characters. The second, images_background_small2.zip, has five alphabets with 156 characters; no source of their names
# could be found.
MINIMAL_1 = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")

_COUNTS = {**BACKGROUND, **EVALUATION}


def characters_of(alphabets: Iterable[str]) -> frozenset[Character]:
    """Every character of the alphabets. Names are those of the official archives."""
    return frozenset(Character(name, number) for name in alphabets for number in range(1, _COUNTS[name] + 1))


def _vinyals(part: str) -> Split:
    """Split of Vinyals et al. (2016), published with Snell et al. (2017): random characters, across alphabets."""
    chosen = read_json(Path(__file__).with_name("vinyals_split.json"))[part]
    whole = characters_of(name for name, numbers in chosen.items() if numbers == "all")
    return Split(whole | {Character(name, i) for name, numbers in chosen.items() if numbers != "all" for i in numbers})


# Koch et al. (2015) train on 30 alphabets by 12 drawers, validate on 10 by 4 other drawers, and test on the last 10 by
# the last 4. The alphabets of each part were never published. Here the 30 are the background set and the tested 10 are
# those of Lake's runs, so that encoders trained on this split may be measured on the runs.
_KOCH_VALIDATION = tuple(name for name in EVALUATION if name not in LAKE)

SPLITS: Mapping[str, Split] = {
    "background": Split(characters_of(BACKGROUND)),
    "evaluation": Split(characters_of(EVALUATION)),
    "background-train": Split(characters_of(name for name in BACKGROUND if name not in VALIDATION)),
    "background-val": Split(characters_of(VALIDATION)),
    "minimal-1": Split(characters_of(MINIMAL_1)),
    "vinyals-train": _vinyals("train"),
    "vinyals-val": _vinyals("val"),
    "vinyals-test": _vinyals("test"),
    "koch-like-train": Split(characters_of(BACKGROUND), range(12)),
    "koch-like-val": Split(characters_of(_KOCH_VALIDATION), range(12, 16)),
    "koch-like-test": Split(characters_of(LAKE), range(16, 20)),
}

# The splits of a line share no character: one may be tested on after training on another.
DISJOINT = (
    ("background", "evaluation"),
    ("background-train", "background-val", "evaluation"),
    ("minimal-1", "background-val", "evaluation"),
    ("vinyals-train", "vinyals-val", "vinyals-test"),
    ("koch-like-train", "koch-like-val", "koch-like-test"),
)


def leaks(trained_on: Collection[Character], tested_on: Collection[Character]) -> list[Character]:
    """Characters that are in both, sorted. Empty for a fair test."""
    return sorted(set(trained_on) & set(tested_on))


def select(omniglot: Omniglot, split: Split) -> Omniglot:
    """Copy the drawings of a split, classes numbered from 0. InputError if a character of it was not read."""
    missing = sorted(split.characters - set(omniglot.characters))
    if missing:
        raise InputError(f"{len(missing)} characters of the split were not read; the first is {missing[0]}")
    belongs = [
        omniglot.characters[character] in split.characters and drawer in split.drawers
        for character, drawer in zip(omniglot.character.tolist(), omniglot.drawer.tolist(), strict=True)
    ]
    rows = [row for row, wanted in enumerate(belongs) if wanted]
    shown = [omniglot.characters[character] for character in omniglot.character[rows].tolist()]
    return labelled(omniglot.pictures[rows], shown, omniglot.drawer[rows])
