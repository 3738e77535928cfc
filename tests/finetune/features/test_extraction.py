from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeFolder
from hostile import hostile
from made_activations import data_of, flipped, opened, the_shard

from finetune.config import Config
from finetune.data.folder import list_unlabelled
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view, training_view
from finetune.features.cache_keys import feature_key
from finetune.features.extraction import cached
from finetune.features.forward import Outputs, run_frozen
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine


class Recipe:
    """`cached` over the pictures of a folder, with the indices of those that were computed."""

    def __init__(self, folder: Path, store: Path, backbone: Backbone, *, random: bool = False):
        wanted = backbone.preprocessing
        view = training_view(wanted, Config()) if random else evaluation_view(wanted)
        self.pictures = Pictures(list_unlabelled([folder]), view, wanted.shortest_side, 1_000_000, seed=3)
        self.fabric = open_engine("cpu", "float32")
        self.family = feature_key(self.fabric, backbone, self.pictures, wanted, backbone=backbone.name)
        self.run = partial(run_frozen, self.fabric, backbone, wanted, workers=1)
        self.store = store

    def __call__(self) -> tuple[Outputs, list[int]]:
        computed: list[int] = []
        shown: list[int] = []

        def compute(pictures: Pictures) -> Outputs:
            outputs = self.run(pictures, advance=lambda done, note: shown.append(done))
            computed.extend(outputs.contents)
            return outputs

        with opened(self.store) as cache:
            found = cached(cache, self.family, self.pictures, compute, advance=lambda done, note: shown.append(done))
        assert sum(shown) == len(self.pictures)
        assert found.computed == len(computed)
        return found.outputs(), computed


def assert_same(found: Outputs, expected: Outputs, *, batches: str = "the same") -> None:
    """Bit for bit; up to the last bits where some pictures were computed in batches of other sizes."""
    if batches == "the same":
        assert torch.equal(found.values, expected.values)
    torch.testing.assert_close(found.values, expected.values)
    assert torch.equal(found.index, expected.index)
    assert found.contents == expected.contents


def test_a_second_run_decodes_nothing_but_what_cannot_be_read(backbone: Backbone, tmp_path: Path) -> None:
    hostile(tmp_path / "pictures")
    recipe = Recipe(tmp_path / "pictures", tmp_path / "cache", backbone)
    expected = recipe.run(recipe.pictures)
    unreadable = [index for index, content in expected.contents.items() if content.reason is not None]
    assert unreadable
    cold, computed = recipe()
    assert computed == list(range(len(recipe.pictures)))
    assert_same(cold, expected)
    warm, computed = recipe()
    assert computed == unreadable
    assert_same(warm, expected)


@pytest.mark.parametrize("random", [False, True], ids=["evaluation", "random"])
def test_only_what_is_new_or_changed_is_computed(
    random: bool, backbone: Backbone, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"a": 5, "b": 5})
    recipe = Recipe(folder, tmp_path / "cache", backbone, random=random)
    assert_same(recipe()[0], recipe.run(recipe.pictures))
    assert recipe()[1] == []
    (folder / "b" / "001.png").write_bytes((folder / "a" / "000.png").read_bytes())
    (folder / "a" / "002.png").unlink()
    recipe = Recipe(folder, tmp_path / "cache", backbone, random=random)
    found, computed = recipe()
    # A random view depends on a picture's place, which the picture that is gone has changed for all after it.
    assert computed == ([2, 3, 4, 5, 6, 7, 8] if random else [])
    assert_same(found, recipe.run(recipe.pictures), batches="others")


def test_a_damaged_row_is_computed_again(backbone: Backbone, make_folder: MakeFolder, tmp_path: Path) -> None:
    recipe = Recipe(make_folder(classes={"a": 6}), tmp_path / "cache", backbone)
    first, _ = recipe()
    shard = the_shard(tmp_path / "cache", recipe.family)
    content = shard.read_bytes()
    shard.write_bytes(flipped(content, data_of(content, "values.0")))
    told: list[str] = []
    with opened(tmp_path / "cache", told.append) as cache:
        found = cached(cache, recipe.family, recipe.pictures, recipe.run)
    assert_same(found.outputs(), first, batches="others")
    assert found.computed == len(told) == 1


def test_a_folder_without_a_readable_picture_gives_what_a_pass_gives(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "empty.png").touch()
    recipe = Recipe(tmp_path / "pictures", tmp_path / "cache", backbone)
    for _ in range(2):
        assert_same(recipe()[0], recipe.run(recipe.pictures))


def test_pictures_in_memory_and_those_of_another_view_are_refused(
    backbone: Backbone, make_folder: MakeFolder, tmp_path: Path
) -> None:
    recipe = Recipe(make_folder(classes={"a": 2}), tmp_path / "cache", backbone)
    cache = opened(tmp_path / "cache")
    for pictures, why in (
        (replace(recipe.pictures, sources=[np.zeros((9, 9), np.uint8)]), "in files"),
        (replace(recipe.pictures, max_pixels=10), "otherwise"),
    ):
        with pytest.raises(ValueError, match=why):
            cached(cache, recipe.family, pictures, recipe.run)
