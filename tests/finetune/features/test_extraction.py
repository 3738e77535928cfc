from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeFolder
from hostile import hostile
from made_activations import data_of, flipped, opened, the_shard
from told import NothingSaid, Told

from finetune.config import Config
from finetune.data.folder import list_unlabelled
from finetune.data.loader import Pictures
from finetune.data.transforms import Normalized, evaluation_view, training_view
from finetune.features.acceleration import Examples
from finetune.features.cache import ActivationCache
from finetune.features.extraction import FeatureExtractor, Features
from finetune.features.forward import Outputs, run_frozen
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.progress import Display


class Recipe:
    """Outputs of a backbone for the pictures of a folder: by one forward pass, or by an extractor with a cache."""

    def __init__(self, folder: Path, store: Path, backbone: Backbone, *, random: bool = False):
        self.backbone, self.preprocessing = backbone, backbone.preprocessing
        view = training_view(self.preprocessing, Config()) if random else evaluation_view(self.preprocessing)
        self.pictures = Pictures(list_unlabelled([folder]), view, self.preprocessing.shortest_side, 1_000_000, seed=3)
        self.fabric = open_engine("cpu", "float32")
        self.store = store

    def extractor(self, cache: ActivationCache) -> FeatureExtractor:
        network = Normalized(self.backbone, self.preprocessing).eval()
        config = Config(precision="float32", workers=1)
        examples, count = Examples(self.pictures, [0]), len(self.pictures)
        return FeatureExtractor(
            self.fabric, network, self.backbone.name, "features", examples, count, config, cache, NothingSaid()
        )

    def __call__(self, display: Display | None = None) -> Features:
        advanced: list[int] = []
        with opened(self.store, display) as cache:
            found = self.extractor(cache).extract(self.pictures, advance=lambda done, note: advanced.append(done))
        assert sum(advanced) == len(self.pictures)
        return found

    def forward(self) -> Outputs:
        return run_frozen(self.fabric, self.backbone, self.preprocessing, self.pictures, workers=1)


def assert_same(found: Outputs, expected: Outputs, *, batches: str = "the same") -> None:
    """Bit for bit; up to the last bits where some pictures were computed in batches of other sizes."""
    if batches == "the same":
        assert torch.equal(found.values, expected.values)
    torch.testing.assert_close(found.values, expected.values)
    assert torch.equal(found.index, expected.index)
    assert found.contents == expected.contents


def test_a_second_run_decodes_only_unreadable_pictures(backbone: Backbone, tmp_path: Path) -> None:
    hostile(tmp_path / "pictures")
    recipe = Recipe(tmp_path / "pictures", tmp_path / "cache", backbone)
    expected = recipe.forward()
    unreadable = tuple(index for index, content in expected.contents.items() if content.reason is not None)
    assert unreadable
    cold = recipe()
    assert cold.computed == tuple(range(len(recipe.pictures)))
    assert_same(cold.outputs(), expected)
    warm = recipe()
    assert warm.computed == unreadable
    assert_same(warm.outputs(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("random", [False, True], ids=["evaluation", "random"])
def test_only_new_and_changed_pictures_are_computed(
    random: bool, backbone: Backbone, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"a": 5, "b": 5})
    recipe = Recipe(folder, tmp_path / "cache", backbone, random=random)
    assert_same(recipe().outputs(), recipe.forward())
    assert recipe().computed == ()
    (folder / "b" / "001.png").write_bytes((folder / "a" / "000.png").read_bytes())
    (folder / "a" / "002.png").unlink()
    recipe = Recipe(folder, tmp_path / "cache", backbone, random=random)
    found = recipe()
    # A random view depends on a picture's position, which changed for every picture after the deleted one.
    assert found.computed == ((2, 3, 4, 5, 6, 7, 8) if random else ())
    assert_same(found.outputs(), recipe.forward(), batches="others")


def test_a_damaged_row_is_computed_again(backbone: Backbone, make_folder: MakeFolder, tmp_path: Path) -> None:
    recipe = Recipe(make_folder(classes={"a": 6}), tmp_path / "cache", backbone)
    first = recipe().outputs()
    with opened(tmp_path / "cache") as cache:
        shard = the_shard(tmp_path / "cache", recipe.extractor(cache).key(recipe.pictures))
    content = shard.read_bytes()
    shard.write_bytes(flipped(content, data_of(content, "values")))
    told = Told()
    found = recipe(told)
    assert_same(found.outputs(), first, batches="others")
    assert len(found.computed) == len(told.lines) == 1


def test_a_folder_without_a_readable_picture_has_empty_outputs(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "empty.png").touch()
    recipe = Recipe(tmp_path / "pictures", tmp_path / "cache", backbone)
    for _ in range(2):
        assert_same(recipe().outputs(), recipe.forward())


def test_pictures_in_memory_are_refused(backbone: Backbone, make_folder: MakeFolder, tmp_path: Path) -> None:
    recipe = Recipe(make_folder(classes={"a": 2}), tmp_path / "cache", backbone)
    recipe.pictures = replace(recipe.pictures, sources=[np.zeros((9, 9), np.uint8)])
    with opened(tmp_path / "cache") as cache, pytest.raises(ValueError, match="in files"):
        recipe.extractor(cache).extract(recipe.pictures)
