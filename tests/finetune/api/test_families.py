"""A small model of each family of backbones: stages, cut and pooled depths. benchmarks/families.py trains them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from conftest import MakeFolder
from told import Told
from torch import nn

import finetune
from finetune import Config, InputError
from finetune.files.writing import write_tensors
from finetune.models.backbone import Backbone, Network
from finetune.models.pooled import PooledStages
from finetune.models.stage_hooks import pooled
from finetune.strategies import PARTIAL
from finetune.training.plan import plan_for

# Model, image size, and the lowest of the stages that partial trains.
FAMILIES = [
    ("resnet10t", 64, "layer4"),
    ("convnext_atto", 64, "stages.3"),
    ("mobilenetv4_conv_small_035", 64, "blocks.4"),
    ("efficientvit_b0", 64, "stages.3"),
    ("vit_tiny_patch16_224", 64, "blocks.9"),
    ("vit_small_patch14_reg4_dinov2", 56, "blocks.9"),
    ("deit3_small_patch16_224", 64, "blocks.9"),
    ("swin_tiny_patch4_window7_224", 64, "layers.3"),
    ("hiera_tiny_224", 64, "blocks.9"),
    ("eva02_tiny_patch14_224", 56, "blocks.9"),
    ("mambaout_femto", 64, "stages.3"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "lowest"), FAMILIES, ids=[name for name, _, _ in FAMILIES])
def test_a_family_is_cut_where_partial_begins_and_pooled_at_every_stage(name: str, size: int, lowest: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=size).eval()
    plan = plan_for(PARTIAL, Config(strategy="partial"), Network(backbone, nn.Linear(backbone.width, 2)), 40)
    assert backbone.stages[plan.lowest].name == lowest
    listed = [parameter for stage in backbone.stages for parameter in stage.parameters]
    assert sorted(listed) == sorted(parameter for parameter, _ in backbone.model.named_parameters())

    backbone.freeze_below(plan.lowest)
    lower, upper = backbone.cut(plan.lowest)
    assert not any(parameter.requires_grad for parameter in lower.parameters())
    stages, pictures = PooledStages(backbone), torch.randn(2, 3, size, size)
    assert stages.depths == (*(stage.name for stage in backbone.stages[:-1]), "features")
    with torch.no_grad():
        whole, crossing = backbone(pictures), lower(pictures)
        assert isinstance(crossing, torch.Tensor)  # one tensor can be kept, several cannot
        torch.testing.assert_close(upper(crossing), whole)
        torch.testing.assert_close(stages(pictures)[:, -backbone.width :], whole)


@pytest.mark.slow
def test_hiera_trains_partially_on_frozen_stages_and_predicts_the_same_when_loaded(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tensors = timm.create_model("hiera_tiny_224", num_classes=0).state_dict()
    write_tensors(tmp_path / "weights.safetensors", tensors)
    folder, said = make_folder(classes={"blue": 10, "red": 10}), Told()
    classifier = finetune.fit(
        folder,
        tmp_path / "run",
        backbone="hiera_tiny_224",
        weights=str(tmp_path / "weights.safetensors"),
        image_size=64,
        strategy="partial",
        epochs=1,
        batch_size=8,
        device="cpu",
        workers=0,
        display=said,
    )
    assert classifier.metrics["epochs"] == 1
    assert not [line for line in said.lines if "uncut" in line]
    pictures = sorted(folder.rglob("*.png"))
    found, loaded = (
        each.log_probabilities(pictures)[0] for each in (classifier, finetune.load(tmp_path / "run", device="cpu"))
    )
    torch.testing.assert_close(loaded, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("dpn48b", ("features.conv2_1", "features.conv3_1", "features.conv4_1", "features.conv5_1")),
        ("poolformerv2_s12", ("stages.0", "stages.1", "stages.2", "stages.3")),
    ],
    ids=["groups in one module", "no grouping by timm"],
)
def test_stages_are_named_by_modules_of_their_own(name: str, names: tuple[str, ...]) -> None:
    backbone = Backbone(name, image_size=64).eval()
    assert tuple(stage.name for stage in backbone.stages) == ("stem", *names)
    assert PooledStages(backbone).depths == ("stem", *names[:-1], "features")
    pictures = torch.randn(1, 3, 64, 64)
    lower, upper = backbone.cut(2)
    with torch.no_grad():
        torch.testing.assert_close(upper(lower(pictures)), backbone(pictures))


def test_branches_of_a_network_are_pooled_side_by_side_and_it_trains_uncut() -> None:
    backbone = Backbone("hrnet_w18_small", image_size=64).eval()
    stages = PooledStages(backbone)
    assert stages.depths == ("stem", "layer1", "stage2", "stage3", "stage4", "features")
    with torch.no_grad():
        assert stages(torch.zeros(1, 3, 64, 64)).shape == (1, sum(stages.widths))
        assert len(backbone.cut(4)[0](torch.zeros(1, 3, 64, 64))) == 4


class Branches(nn.Module):
    """Two branches, pooled."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return pooled([maps, maps[:, :2]])


def test_pooled_branches_are_exported_for_batches_of_any_size() -> None:
    any_size = {0: torch.export.Dim("n", min=1)}
    program = torch.export.export(Branches(), (torch.zeros(2, 3, 4, 4),), dynamic_shapes=(any_size,))
    assert program.module()(torch.zeros(5, 3, 4, 4)).shape == (5, 3 + 2)


class Unlike(nn.Module):
    """A network whose code takes another branch for symbols than for pictures."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.model(pictures)
        return features * 2 if type(pictures) is torch.Tensor else features


class Branching(Unlike):
    """A network whose code cannot be traced: it asks a picture for its value."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.model(pictures) if pictures.sum() > 0 else self.model(-pictures)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "said"), [(Unlike, "its two parts compute other features"), (Branching, "its code cannot be traced")]
)
def test_a_network_that_cannot_be_cut_is_named_in_one_line(
    kind: type[Unlike], said: str, backbone: Backbone, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = backbone.model
    backbone.model = kind(whole)
    backbone.stages = tuple(
        type(stage)(f"model.{stage.name}", tuple(f"model.{name}" for name in stage.parameters))
        for stage in backbone.stages
    )
    with pytest.raises(InputError, match=f"^fewtune_conv4 cannot be cut.*{said}") as error:
        backbone.cut(2)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")
