from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeFolder

import finetune
from finetune.api.prepare import prepare
from finetune.classifier.export import export
from finetune.classifier.run_folder import RunFolder
from finetune.config import Config
from finetune.data.folder import list_folder
from finetune.errors import InputError
from finetune.models.backbone import Backbone
from finetune.models.pooled import PooledStages
from finetune.progress import Display

pytestmark = pytest.mark.slow

FAMILIES = {
    "fewtune_conv4": (35, "blocks.1"),
    "resnet10t": (64, "layer2"),
    "tf_efficientnet_lite0": (64, "blocks.4"),
    "vit_tiny_patch16_224": (224, "blocks.7"),
}
SMALL: dict[str, Any] = {
    "backbone": "fewtune_conv4", "device": "cpu", "workers": 0, "trivial_augment": False, "batch_size": 8,
}  # fmt: skip
THREE = {"red": 30, "green": 30, "blue": 30}


@pytest.mark.parametrize(("name", "place"), FAMILIES.items())
def test_the_remaining_network_has_the_same_activations(name: str, place: tuple[int, str]) -> None:
    size, highest = place
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=size).eval()
    whole, pictures = PooledStages(backbone), torch.randn(2, 3, size, size)
    position, known = backbone.stage_index(highest), set(backbone.state_dict())
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    with torch.no_grad():
        wanted = whole.split(whole(pictures))
        backbone.drop_above(highest)
        left = PooledStages(backbone)
        found = left.split(left(pictures))
    assert len(found) == position + 1
    for one, other in zip(found, wanted, strict=False):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert backbone.width == found[-1].shape[1]
    assert sum(parameter.numel() for parameter in backbone.parameters()) < parameters
    assert set(backbone.state_dict()) < known
    lower, upper = backbone.cut(position)
    with torch.no_grad():
        torch.testing.assert_close(upper(lower(pictures)), found[-1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["head", "partial"])
def test_a_run_without_upper_stages_is_kept_loaded_and_exported(
    strategy: str, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes=THREE)
    run = tmp_path / "run"
    classifier = finetune.fit(folder, run, strategy=strategy, drop_above="blocks.1", epochs=2, **SMALL)
    assert classifier.metrics["accuracy"] > 0.9
    assert classifier.metrics["highest_stage"] == "blocks.1"
    picture = folder / "red" / "003.png"
    loaded = finetune.load(run, device="cpu")
    assert [stage.name for stage in loaded.network.backbone.stages] == ["stem", "blocks.1"]
    assert dict(loaded.predict(picture).top) == pytest.approx(dict(classifier.predict(picture).top))
    assert export(run, tmp_path / "small.pt2", format="torch-export")["parity"]["pictures"] > 0


def test_best_drops_the_stages_above_the_best_depth(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes=THREE)
    metrics = finetune.fit(folder, tmp_path / "run", strategy="head", drop_above="best", **SMALL).metrics
    best = json.loads((tmp_path / "run" / "metrics.json").read_text())["probe_curve"]["best"]
    assert metrics["highest_stage"] == (None if best == "features" else best)


def test_a_resumed_run_drops_the_same_stages(make_folder: MakeFolder, tmp_path: Path) -> None:
    listing = list_folder(make_folder(classes=THREE))
    config, run = Config(strategy="head", drop_above="blocks.1", **SMALL), RunFolder(tmp_path / "run")
    run.begin(listing.root, config, resume=False)
    first, again = (prepare(listing, config, run, Display()).backbone.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_an_unknown_stage_is_refused_before_any_picture_is_read(make_folder: MakeFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no stage 'blocks.9'; .* blocks.1"):
        finetune.fit(make_folder(classes=THREE), tmp_path / "run", drop_above="blocks.9", **SMALL)
    with pytest.raises(InputError, match="--drop-above"):
        finetune.fit(make_folder("other", classes=THREE), strategy="scratch", drop_above="blocks.1", **SMALL)
