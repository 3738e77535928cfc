from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import timm
import torch
from told import NothingSaid

from finetune.cli.preview import probe
from finetune.config import Config
from finetune.errors import InputError
from finetune.files.writing import write_tensors
from finetune.models.backbone import Backbone
from finetune.models.candidates import DEFAULT, candidates, load_weights

PAGE = (Path(__file__).parents[3] / "docs" / "backbones.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder with random weights of one network under its name."""
    folder = tmp_path / "weights"
    torch.manual_seed(0)
    write_tensors(folder / "test_efficientnet.safetensors", Backbone("test_efficientnet").model.state_dict())
    return folder


def names(*asked: str | None) -> list[str]:
    return [each.name for each in candidates(*asked)[0]]  # type: ignore[arg-type]


def test_the_default_list_is_permissive_as_timm_states_it_and_help_text_and_documentation_name_all_of_it() -> None:
    for each in DEFAULT:
        published = timm.models.get_pretrained_cfg(each.name)
        assert each.licence == published.license
        assert each.licence in ("mit", "apache-2.0", "bsd-3-clause")
        assert each.reason
        assert each.name in (inspect.getdoc(probe.callback) or "")
        size = each.image_size or "its own"
        assert f"| `{each.name}` | {size} | {each.licence} | {each.source} | {each.reason} |" in PAGE
    assert sum("transformer" in each.reason for each in DEFAULT) == 2
    assert sum("convolutional" in each.reason for each in DEFAULT) == 2


def test_without_a_network_those_are_compared_whose_weights_are_here_and_a_line_says_how_to_get_others() -> None:
    found, (line,) = candidates(None, None)
    assert [each.name for each in found] == ["fewtune_conv4"]
    for part in (DEFAULT[1].name, DEFAULT[-1].name, "--backbones", "--weights-dir"):
        assert part in line


def test_weights_in_the_cache_of_the_hub_are_at_hand(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--timm--convnext_tiny.in12k_ft_in1k" / "snapshots" / "abc"
    write_tensors(snapshot / "model.safetensors", {"x": torch.zeros(1)})
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    assert names(None, None) == ["fewtune_conv4", "convnext_tiny.in12k_ft_in1k"]


def test_files_in_the_weights_folder_are_candidates(weights: Path) -> None:
    (weights / "vit_small_patch14_reg4_dinov2.safetensors").write_bytes(b"")
    found, _ = candidates(None, str(weights))
    assert [each.name for each in found] == [
        "fewtune_conv4",
        "vit_small_patch14_reg4_dinov2.lvd142m",  # of the default list, so at its image size
        "test_efficientnet",
    ]
    assert found[1].image_size == 224
    assert found[2].weights == str(weights / "test_efficientnet.safetensors")


def test_a_copy_and_a_file_of_no_network_are_left_out_with_a_line_each(weights: Path) -> None:
    content = (weights / "test_efficientnet.safetensors").read_bytes()
    (weights / "test_efficientnet_gn.safetensors").write_bytes(content)
    (weights / "test_efficientnt.safetensors").write_bytes(b"")
    found, lines = candidates(None, str(weights))
    assert [each.name for each in found] == ["fewtune_conv4", "test_efficientnet"]
    assert any("test_efficientnet_gn.safetensors is left out: it is a copy" in line for line in lines)
    assert any("did you mean" in line and "test_efficientnt.safetensors is left out" in line for line in lines)


def test_named_networks_are_compared_in_any_case(weights: Path) -> None:
    found, lines = candidates(" resnet18, test_efficientnet ,resnet18", str(weights))
    assert [(each.name, each.named) for each in found] == [("resnet18", True), ("test_efficientnet", True)]
    assert found[0].weights is None
    assert lines == ()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("resnet180", r"timm has no model 'resnet180' \(--backbones\); did you mean resnet18"),
        (" , ", "--backbones ' , ' names no network"),
    ],
)
def test_wrong_names_are_refused(asked: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        candidates(asked, None)


def test_a_folder_of_weights_that_does_not_answer_is_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(InputError, match=r"\(--weights-dir\) is not a folder"):
        candidates(None, str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"\(--weights-dir\) has no file NAME.safetensors"):
        candidates(None, str(tmp_path))
    (weights / "resnet18.safetensors").write_bytes(b"1")
    (weights / "resnet18.a1_in1k.safetensors").write_bytes(b"2")
    assert candidates("resnet18", str(weights))[0][0].weights == str(weights / "resnet18.safetensors")


def test_a_named_backbone_takes_its_weights_from_the_folder(weights: Path) -> None:
    torch.manual_seed(1)
    backbone = Backbone("test_efficientnet")
    load_weights(backbone, Config(backbone="test_efficientnet", weights_dir=str(weights)), NothingSaid())
    torch.manual_seed(0)
    expected = Backbone("test_efficientnet")
    assert torch.equal(backbone.model.conv_stem.weight, expected.model.conv_stem.weight)
    with pytest.raises(InputError, match=r"\(--weights-dir\) has no file resnet18.safetensors"):
        load_weights(Backbone("resnet18"), Config(backbone="resnet18", weights_dir=str(weights)), NothingSaid())
