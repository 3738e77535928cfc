"""Weights of one image size in a model of another."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from told import NothingSaid
from torch import Tensor

from finetune import InputError
from finetune.files.exchange import link_or_copy
from finetune.files.writing import write_tensors
from finetune.models.backbone import Backbone
from finetune.models.pretrained import load_pretrained

pytestmark = pytest.mark.slow


def written(name: str, file: Path) -> dict[str, Tensor]:
    """A timm model's random weights, at the image size that timm publishes it for, also in `file`."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = timm.create_model(name).state_dict()
    write_tensors(file, {key: tensor.contiguous() for key, tensor in tensors.items()})
    return tensors


@pytest.fixture(scope="module")
def hiera(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    file = tmp_path_factory.mktemp("hiera") / "weights.safetensors"
    return file, written("hiera_tiny_224", file)


@pytest.mark.parametrize(
    ("name", "size", "side"), [("vit_small_patch14_reg4_dinov2", 56, 4), ("hiera_tiny_224", 96, 24)]
)
def test_position_embeddings_of_a_file_are_resampled_to_the_image_size(
    name: str, size: int, side: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "hiera_tiny_224":
        file, source = request.getfixturevalue("hiera")
    else:
        file = tmp_path / "weights.safetensors"
        source = written(name, file)
    backbone = Backbone(name, image_size=size)
    load_pretrained(backbone, str(file), NothingSaid())
    loaded = backbone.model.state_dict()
    torch.testing.assert_close(
        loaded.pop("pos_embed"), resample_abs_pos_embed(source["pos_embed"], [side, side], num_prefix_tokens=0)
    )
    assert all(torch.equal(tensor, source[key]) for key, tensor in loaded.items())


def test_position_biases_of_a_file_are_resampled_to_the_windows(tmp_path: Path) -> None:
    name = "swin_tiny_patch4_window7_224"
    source = written(name, tmp_path / "weights.safetensors")
    backbone = Backbone(name, image_size=96)
    load_pretrained(backbone, str(tmp_path / "weights.safetensors"), NothingSaid())
    table = "layers.3.blocks.0.attn.relative_position_bias_table"
    assert backbone.model.state_dict()[table].shape == (5 * 5, 24) != source[table].shape
    assert torch.equal(backbone.model.layers[3].blocks[0].mlp.fc1.weight, source["layers.3.blocks.0.mlp.fc1.weight"])


def test_a_cached_file_that_timm_does_not_resample_fits_another_image_size(
    hiera: tuple[Path, dict[str, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tag = timm.models.get_pretrained_cfg("hiera_tiny_224").hf_hub_id.replace("/", "--")
    snapshot = tmp_path / f"models--{tag}" / "snapshots" / "abc"
    file, source = hiera
    snapshot.mkdir(parents=True)
    link_or_copy(file, snapshot / "model.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = Backbone("hiera_tiny_224", image_size=96)
    load_pretrained(backbone, None, NothingSaid())
    assert torch.equal(backbone.model.blocks[3].mlp.fc1.weight, source["blocks.3.mlp.fc1.weight"])


def test_weights_of_another_model_are_refused_with_the_differences(tmp_path: Path) -> None:
    written("vit_tiny_patch16_224", tmp_path / "weights.safetensors")
    backbone = Backbone("deit3_small_patch16_224", image_size=64)
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    with pytest.raises(InputError, match=r"weights\.safetensors \(--weights\) does not fit deit3_small.* is missing"):
        load_pretrained(backbone, str(tmp_path / "weights.safetensors"), NothingSaid())
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.model.state_dict().items())


def test_layers_that_a_family_has_only_with_its_classifier_may_be_in_the_file(tmp_path: Path) -> None:
    source = written("shvit_s1", tmp_path / "weights.safetensors")
    assert "head.bn.weight" in source
    backbone = Backbone("shvit_s1", image_size=64)
    load_pretrained(backbone, str(tmp_path / "weights.safetensors"), NothingSaid())
    assert all(torch.equal(tensor, source[key]) for key, tensor in backbone.model.state_dict().items())
