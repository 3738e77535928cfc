"""The splits of Omniglot by name, as plain data, and the check that nothing tested on was trained on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fewshot.omniglot.dataset import DRAWERS, Character, Omniglot, labelled
from finetune.errors import InputError
from finetune.files import read_json


@dataclass(frozen=True)
class Split:
    """Characters, and the drawers (0 to 19) whose drawings of them belong to it."""

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

# Held out of the background set to choose recipes on: chosen at random once, among the alphabets of at least 20
# characters. benchmarks/pretrain_conv4.py holds out the same.
VALIDATION = ("Bengali", "Futurama", "Hebrew", "Japanese_(hiragana)", "Sanskrit")

# The first of the two sets of five alphabets that Lake et al. (2015) learn from "minimally": those in
# images_background_small1.zip, 136 characters. The second, images_background_small2.zip, has 156 characters in five
# alphabets; they are not named here because no source of their names could be found.
MINIMAL_1 = ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin")

_COUNTS = {**BACKGROUND, **EVALUATION}


def characters_of(alphabets: Iterable[str]) -> frozenset[Character]:
    """Every character of `alphabets`, by the names that the official archives give them."""
    return frozenset(Character(name, number) for name in alphabets for number in range(1, _COUNTS[name] + 1))


def _vinyals(part: str) -> Split:
    """Of Vinyals et al. (2016) as published with Snell et al. (2017): characters at random, alphabets cut across."""
    chosen = read_json(Path(__file__).with_name("vinyals_split.json"))[part]
    whole = characters_of(name for name, numbers in chosen.items() if numbers == "all")
    return Split(whole | {Character(name, i) for name, numbers in chosen.items() if numbers != "all" for i in numbers})


# Koch et al. (2015) learn from 40 alphabets, 30 of them with 12 drawers and 10 with 4 others to validate on, and test
# on the last 10 with the last 4 drawers. Which alphabets went where was never published. Here the 30 are the background
# set and the tested 10 those of Lake's runs, so that what is trained on this split may be judged by them.
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

# The splits of one line share no character: whoever trains on one may test on another.
DISJOINT = (
    ("background", "evaluation"),
    ("background-train", "background-val", "evaluation"),
    ("minimal-1", "background-val", "evaluation"),
    ("vinyals-train", "vinyals-val", "vinyals-test"),
    ("koch-like-train", "koch-like-val", "koch-like-test"),
)


def leaks(trained_on: Collection[Character], tested_on: Collection[Character]) -> list[Character]:
    """Characters in both, sorted: empty where a test is fair."""
    return sorted(set(trained_on) & set(tested_on))


def select(omniglot: Omniglot, split: Split) -> Omniglot:
    """The drawings of `split` alone, copied, classes numbered anew from 0.

    InputError when `omniglot` lacks a character of the split, as one does that was read without its evaluation set.
    """
    missing = sorted(split.characters - set(omniglot.characters))
    if missing:
        raise InputError(f"{len(missing)} characters of the split were not read, {missing[0]} the first of them")
    belongs = [
        omniglot.characters[character] in split.characters and drawer in split.drawers
        for character, drawer in zip(omniglot.character.tolist(), omniglot.drawer.tolist(), strict=True)
    ]
    rows = [row for row, wanted in enumerate(belongs) if wanted]
    shown = [omniglot.characters[character] for character in omniglot.character[rows].tolist()]
    return labelled(omniglot.pictures[rows], shown, omniglot.drawer[rows])
