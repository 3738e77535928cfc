from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from told import NothingSaid
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from finetune import InputError
from finetune.config import Config
from finetune.files.writing import write_tensors
from finetune.models.backbone import Backbone, Network
from finetune.models.pretrained import load_pretrained
from finetune.strategies import PARTIAL
from finetune.training.plan import plan_for

# One of each family: plain, residual, inverted bottlenecks, a head behind the pooling, transformer, windows, patches.
FAMILIES = {
    "fewtune_conv4": 35,
    "resnet10t": 64,
    "tf_efficientnet_lite0": 64,
    "tf_mobilenetv3_small_100": 64,
    "convnext_atto": 64,
    "vit_tiny_patch16_224": 224,
}


@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_stages_hold_every_parameter_once_from_stem_to_head(name: str, size: int) -> None:
    backbone = Backbone(name, image_size=size)
    listed = [parameter for stage in backbone.stages for parameter in stage.parameters]
    assert sorted(listed) == sorted(parameter for parameter, _ in backbone.model.named_parameters())
    names = [stage.name for stage in backbone.stages]
    assert names[0] == "stem"
    assert len(set(names)) == len(names) >= 4


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_a_network_cut_anywhere_computes_the_same(name: str, size: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=size).eval()
    pictures = torch.randn(2, 3, size, size)
    with torch.no_grad():
        whole = backbone(pictures)
        assert whole.shape == (2, backbone.width)
        for stage in {0, 1, len(backbone.stages) // 2, len(backbone.stages) - 1, len(backbone.stages)}:
            lower, upper = backbone.cut(stage)
            torch.testing.assert_close(upper(lower(pictures)), whole)
            below = {parameter for s in backbone.stages[:stage] for parameter in s.parameters}
            if 0 < stage < len(backbone.stages):
                shared = {id(parameter) for parameter in lower.parameters()}
                named = dict(backbone.model.named_parameters())
                assert {id(named[parameter]) for parameter in below} == shared


def test_stage_names_are_those_of_modules() -> None:
    assert [stage.name for stage in Backbone("tf_efficientnet_lite0", image_size=64).stages] == [
        "stem",
        *(f"blocks.{i}" for i in range(7)),
    ]
    with pytest.raises(InputError, match=r"no stage 'layer9'.*stem, blocks\.1, blocks\.2, blocks\.3"):
        Backbone("fewtune_conv4").stage_index("layer9")


def test_frozen_stages_do_not_learn_and_keep_their_statistics() -> None:
    backbone = Backbone("tf_efficientnet_lite0", image_size=64)
    network = Network(backbone, nn.Linear(backbone.width, 2))
    backbone.freeze_below(7)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    network.train()
    network(torch.randn(4, 3, 64, 64)).sum().backward()
    optimizer.step()
    learned = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = {f"backbone.model.{name}" for stage in backbone.stages[:7] for name in stage.parameters}
    assert not learned & frozen
    assert not any("running" in name or "tracked" in name for name in learned)
    assert any(name.startswith("backbone.model.blocks.6") for name in learned)
    assert not backbone.model.blocks[3].training
    assert backbone.model.blocks[6].training


def test_batch_norm_trains_only_where_told_so() -> None:
    backbone = Backbone("fewtune_conv4")
    for trains in (False, True):
        backbone.freeze_below(0, batch_norm_trains=trains)
        backbone.train()
        modes = {module.training for module in backbone.modules() if isinstance(module, _BatchNorm)}
        assert modes == {trains}
    backbone.eval()
    assert not any(module.training for module in backbone.modules())


def test_partial_unfreezes_the_top_or_what_it_is_told() -> None:
    backbone = Backbone("tf_efficientnet_lite0", image_size=64)
    network = Network(backbone, nn.Linear(backbone.width, 2))
    assert plan_for(PARTIAL, Config(strategy="partial"), network, 100).lowest == 6
    assert plan_for(PARTIAL, Config(strategy="partial", unfreeze="blocks.3"), network, 100).lowest == 4


def test_weights_are_loaded_with_any_classifier_in_the_file(tmp_path: Path) -> None:
    source = timm.create_model("resnet10t", num_classes=7)
    write_tensors(tmp_path / "seven.safetensors", source.state_dict())
    torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "seven.pt")
    for file in ("seven.safetensors", "seven.pt"):
        backbone = Backbone("resnet10t", image_size=64)
        load_pretrained(backbone, str(tmp_path / file), NothingSaid())
        assert torch.equal(backbone.model.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
        assert torch.equal(backbone.model.bn1.running_var, source.bn1.running_var)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    tensors = timm.create_model("resnet10t", num_classes=0).state_dict()
    del tensors["layer1.0.conv1.weight"]
    tensors["layer2.0.conv1.weight"] = torch.zeros(3, 3)
    tensors["extra.weight"] = torch.zeros(1)
    write_tensors(tmp_path / "wrong.safetensors", tensors)
    backbone = Backbone("resnet10t", image_size=64)
    before = backbone.model.conv1[0].weight.clone()
    with pytest.raises(InputError) as error:
        load_pretrained(backbone, str(tmp_path / "wrong.safetensors"), NothingSaid())
    for part in (
        "wrong.safetensors",
        "layer1.0.conv1.weight is missing",
        "layer2.0.conv1.weight is 3x3",
        "extra.weight",
    ):
        assert part in str(error.value)
    assert torch.equal(backbone.model.conv1[0].weight, before)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_a_torch_file_that_holds_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="could run code"):
        load_pretrained(Backbone("fewtune_conv4"), str(tmp_path / "evil.pt"), NothingSaid())


def test_absent_weights_and_unknown_models_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        load_pretrained(Backbone("fewtune_conv4"), str(tmp_path / "absent.safetensors"), NothingSaid())
    with pytest.raises(InputError, match=r"no model 'resnet18000' \(--backbone\)"):
        Backbone("resnet18000")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ResNet-50", "did you mean resnet50 or"),
        ("dinov2", "did you mean vit_base_patch14_dinov2 or"),
        ("vit_tiny_patch16_224.none", "it has vit_tiny_patch16_224.augreg"),
    ],
)
def test_a_wrong_name_of_a_model_or_of_its_weights_gets_suggestions(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        Backbone(name)
    assert "\n" not in str(error.value)


def test_an_unsuitable_image_size_is_refused_with_usual_sizes() -> None:
    with pytest.raises(InputError, match=r"hiera_tiny_224 does not take --image-size 100 .* trained at 224, and most"):
        Backbone("hiera_tiny_224", image_size=100)


def test_missing_weights_are_one_sentence_with_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="--weights") as error:
        load_pretrained(Backbone("resnet10t", image_size=64), None, NothingSaid())
    assert "\n" not in str(error.value)
    assert "/timm/resnet10t" in str(error.value)


def test_weights_in_the_hubs_cache_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = timm.create_model("vit_tiny_patch16_224", num_classes=1000)
    repository = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    write_tensors(repository / "snapshots" / "abc" / "model.safetensors", source.state_dict())
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    backbone = Backbone("vit_tiny_patch16_224", image_size=96)
    load_pretrained(backbone, None, NothingSaid())
    assert torch.equal(backbone.model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)
    # Made for 96 pixels: the position embeddings of the file, for 224, are resized by timm.
    assert backbone.model.pos_embed.shape[1] == 1 + 36 != source.pos_embed.shape[1]


def test_shipped_weights_need_no_network() -> None:
    random, shipped = Backbone("fewtune_conv4"), Backbone("fewtune_conv4")
    load_pretrained(shipped, None, NothingSaid())
    assert not torch.equal(random.model.blocks[0][0].weight, shipped.model.blocks[0][0].weight)
