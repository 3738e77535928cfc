"""The encoder that ships with the package: a timm model like any other, small, and worth more than random weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import group_parameters
from torch import Tensor

from finetune.data.digits import write_digits
from finetune.files.reading import read_tensors_and_metadata
from finetune.models.conv4 import WEIGHTS

NAME = "fewtune_conv4"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, np.ndarray, Tensor, np.ndarray]:
    """Ten pictures of each digit to learn from and twenty others to test on, as timm's own transform makes them."""
    folder = tmp_path_factory.mktemp("digits") / "digits"
    write_digits(folder)
    learn, test = sorted(folder.glob("train/*/*.png")), []
    for label in range(10):
        test += sorted(folder.glob(f"test/{label}/*.png"))[:20]
    return *_read(learn), *_read(test)


def _read(paths: list[Path]) -> tuple[Tensor, np.ndarray]:
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=timm.create_model(NAME)))
    pictures = [transform(Image.open(path).convert("RGB")) for path in paths]
    return torch.stack(pictures), np.array([int(path.parent.name) for path in paths])


def _nearest_mean(learn: Tensor, labels: np.ndarray, test: Tensor, truth: np.ndarray) -> float:
    """Accuracy of the class whose mean is nearest by cosine: nothing is tuned, so only the features count."""
    learn, test = (torch.nn.functional.normalize(part.flatten(1)) for part in (learn, test))
    means = torch.stack([learn[torch.from_numpy(labels == label)].mean(0) for label in range(10)])
    nearest = (test @ torch.nn.functional.normalize(means).T).argmax(1).numpy()
    return float((nearest == truth).mean())


def test_it_is_small() -> None:
    model = timm.create_model(NAME, num_classes=0)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.3e6
    assert WEIGHTS.stat().st_size < 2e6


def test_timm_builds_it_with_its_weights_from_the_package(caplog: pytest.LogCaptureFixture) -> None:
    model = timm.create_model(NAME, pretrained=True, num_classes=0)
    tensors, metadata = read_tensors_and_metadata(WEIGHTS)
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
    assert metadata["model"] == NAME
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_timm_lists_it_among_the_pretrained() -> None:
    assert f"{NAME}.omniglot" in timm.list_models(NAME, pretrained=True) + timm.list_pretrained(NAME)


@pytest.mark.parametrize("size", [16, 50])
def test_shapes_follow_the_conventions_of_timm(size: int) -> None:
    model = timm.create_model(NAME, num_classes=7).eval()
    pictures = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        maps = model.forward_features(pictures)
        assert maps.shape == (2, model.num_features, size // 16, size // 16)
        features = model.forward_head(maps, pre_logits=True)
        assert features.shape == (2, model.head_hidden_size)
        assert model(pictures).shape == (2, 7)
        assert torch.equal(model.get_classifier()(features), model(pictures))
        model.reset_classifier(0)
        assert torch.equal(model(pictures), features)
        model.reset_classifier(3)
        assert model(pictures).shape == (2, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_weights_fit_other_numbers_of_channels_and_classes(channels: int) -> None:
    model = timm.create_model(NAME, pretrained=True, num_classes=5, in_chans=channels)
    assert model(torch.rand(2, channels, 35, 35)).shape == (2, 5)


@pytest.mark.parametrize("coarse", [False, True])
def test_groups_run_from_the_stem_to_the_last_block_and_hold_every_parameter(coarse: bool) -> None:
    model = timm.create_model(NAME, num_classes=0)
    groups = group_parameters(model, model.group_matcher(coarse=coarse))
    blocks = [{int(re.match(r"blocks\.(\d)\.", name)[1]) for name in names} for _, names in sorted(groups.items())]
    assert blocks == [{0}, {1}, {2}, {3}]
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_intermediate_maps_are_the_outputs_of_the_blocks() -> None:
    model = timm.create_model(NAME, num_classes=0).eval()
    pictures = torch.rand(2, 3, 35, 35)
    with torch.inference_mode():
        last, maps = model.forward_intermediates(pictures)
        assert [tuple(m.shape[1:]) for m in maps] == [(96, 17, 17), (96, 8, 8), (96, 4, 4), (96, 2, 2)]
        assert torch.equal(last, model.forward_features(pictures))
        assert torch.equal(maps[-1], last)
        (second,) = model.forward_intermediates(pictures, indices=[1], stop_early=True, intermediates_only=True)
        assert torch.equal(second, maps[1])
    assert [info["num_chs"] for info in model.feature_info] == [m.shape[1] for m in maps]


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model = timm.create_model(NAME, num_classes=0).eval()
    pictures = torch.rand(2, 3, 35, 35)
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        model.zero_grad()
        model(pictures).square().sum().backward()
        gradients.append(model.blocks[0][0].weight.grad.clone())
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
def test_its_features_separate_digits_better_than_random_weights_and_pixels(
    digits: tuple[Tensor, np.ndarray, Tensor, np.ndarray],
) -> None:
    learn, labels, test, truth = digits
    torch.manual_seed(0)
    accuracy = {"pixels": _nearest_mean(*digits)}
    for pretrained in (False, True):
        model = timm.create_model(NAME, pretrained=pretrained, num_classes=0).eval()
        with torch.inference_mode():
            accuracy["pretrained" if pretrained else "random"] = _nearest_mean(model(learn), labels, model(test), truth)
    assert accuracy["pretrained"] > max(accuracy["pixels"], accuracy["random"]) + 0.03, accuracy


def test_light_ink_on_dark_is_the_same_to_it(digits: tuple[Tensor, np.ndarray, Tensor, np.ndarray]) -> None:
    learn, labels, test, truth = digits
    model = timm.create_model(NAME, pretrained=True, num_classes=0).eval()
    with torch.inference_mode():
        # Learned on paper, tested on a blackboard.
        assert _nearest_mean(model(learn), labels, model(-test), truth) > 0.7
