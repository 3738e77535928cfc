from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest
import torch
from fake_omniglot import pictures, zipped

from fewshot.omniglot.archive import contents
from fewshot.omniglot.dataset import Character, read_omniglot
from fewshot.omniglot.splits import BACKGROUND, DISJOINT, EVALUATION, LAKE, SPLITS, VALIDATION, Split, leaks, select
from finetune.errors import InputError


def test_the_splits_have_their_published_sizes() -> None:
    assert {name: len(split.characters) for name, split in SPLITS.items()} == {
        "background": 964,
        "evaluation": 659,
        "background-train": 776,
        "background-val": 188,
        "minimal-1": 136,
        "vinyals-train": 1028,
        "vinyals-val": 172,
        "vinyals-test": 423,
        "koch-like-train": 964,
        "koch-like-val": 277,
        "koch-like-test": 382,
    }
    assert [len(BACKGROUND), len(EVALUATION), len(LAKE)] == [30, 20, 10]


@pytest.mark.parametrize("names", DISJOINT, ids=" ".join)
def test_training_and_test_splits_share_no_character(names: tuple[str, ...]) -> None:
    for one, other in itertools.combinations(names, 2):
        assert leaks(SPLITS[one].characters, SPLITS[other].characters) == []


def test_every_split_is_of_omniglot() -> None:
    every = SPLITS["background"].characters | SPLITS["evaluation"].characters
    assert all(split.characters <= every for split in SPLITS.values())
    assert (
        SPLITS["background-train"].characters | SPLITS["background-val"].characters == SPLITS["background"].characters
    )
    assert frozenset().union(*(SPLITS[f"vinyals-{part}"].characters for part in ("train", "val", "test"))) == every


def test_the_parts_of_koch_share_no_drawer() -> None:
    drawers = [SPLITS[f"koch-like-{part}"].drawers for part in ("train", "val", "test")]
    assert [list(part) for part in drawers] == [list(range(12)), list(range(12, 16)), list(range(16, 20))]


def test_the_validation_alphabets_are_those_of_the_shipped_encoder() -> None:
    source = (Path(__file__).parents[3] / "benchmarks" / "pretrain_conv4.py").read_text(encoding="utf-8")
    constants = {
        node.targets[0].id: node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert ast.literal_eval(constants["VALIDATION"]) == VALIDATION


def test_leaks_are_listed_in_order() -> None:
    # What many papers overlook: Vinyals's training characters hold those of up to 8 of Lake's 20 runs.
    found = leaks(SPLITS["vinyals-train"].characters, SPLITS["koch-like-test"].characters)
    assert found == sorted(found)
    assert {character.alphabet for character in found} == {"Atlantean", "Ge_ez", "Glagolitic", "Gurmukhi"}
    assert len(found) == 26 + 26 + 45 + 41
    assert Character("Gurmukhi", 42) not in found


def test_a_split_selects_its_drawings_and_numbers_its_classes_from_0(tmp_path: Path) -> None:
    zipped(tmp_path / "images_background.zip", pictures("background"))
    omniglot = read_omniglot(tmp_path, ("background",))
    chosen = select(omniglot, Split(frozenset({Character("Beta", 3), Character("Beta", 1)}), range(1, 3)))
    assert chosen.alphabets == ("Beta",)
    assert chosen.characters == (Character("Beta", 1), Character("Beta", 3))
    assert chosen.character.tolist() == [0, 0, 1, 1]
    assert chosen.drawer.tolist() == [1, 2, 1, 2]
    assert torch.equal(chosen.pictures, omniglot.pictures[[7, 8, 13, 14]])


def test_a_split_with_characters_that_were_not_read_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "images_background.zip", pictures("background"))
    with pytest.raises(InputError, match="659 characters of the split were not read; the first is Angelic/character01"):
        select(read_omniglot(tmp_path, ("background",)), SPLITS["evaluation"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["background", "evaluation"])
def test_the_official_sets_are_as_listed(name: str, real_data: Path) -> None:
    folder = real_data / "omniglot" / f"images_{name}"
    path = folder if folder.is_dir() else folder.with_suffix(".zip")
    if not path.exists():
        pytest.skip(f"{path} is not there")
    folders = [picture.split("/")[-3:-1] for picture, _ in contents(path)]
    assert {Character(alphabet, int(character[-2:])) for alphabet, character in folders} == SPLITS[name].characters
    assert len(folders) == 20 * len(SPLITS[name].characters)
