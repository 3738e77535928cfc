from __future__ import annotations

import pytest
import torch
from torch import nn

from finetune.features.familiarity import LEAST_PICTURES, batch_norm_distance
from finetune.models.backbone import Backbone


def trained_on(pixels: torch.Tensor) -> nn.Module:
    """A network whose batch norms hold the statistics of these pictures."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8, momentum=1.0),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8, momentum=1.0),
    )
    with torch.no_grad():
        network(pixels)
    return network.eval()


def blobs(n: int, seed: int, contrast: float = 1.0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return contrast * nn.functional.interpolate(torch.randn(n, 3, 4, 4, generator=random), size=24, mode="bilinear")


def test_pictures_like_those_of_the_training_are_near_and_others_far() -> None:
    network = trained_on(blobs(200, 0))
    near, flat, noise = (
        batch_norm_distance(network, pixels)
        for pixels in (
            blobs(24, 1),
            blobs(24, 1, contrast=0.2),
            torch.randn(24, 3, 24, 24, generator=torch.Generator().manual_seed(2)),
        )
    )
    assert near is not None
    assert flat is not None
    assert noise is not None
    assert near < 0.05
    assert min(flat, noise) > 5 * near


def test_too_few_pictures_or_no_batch_norm_have_no_distance() -> None:
    network = trained_on(blobs(50, 0))
    assert batch_norm_distance(network, blobs(LEAST_PICTURES - 1, 1)) is None
    assert batch_norm_distance(network, blobs(LEAST_PICTURES, 1)) is not None
    assert batch_norm_distance(nn.Conv2d(3, 4, 3), blobs(24, 1)) is None


def test_the_network_is_left_as_it_was() -> None:
    network = Backbone("fewtune_conv4").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert batch_norm_distance(network, torch.randn(8, 3, 35, 35)) is not None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_pre_hooks for module in network.modules())


@pytest.mark.slow
def test_a_transformer_has_no_distance() -> None:
    assert batch_norm_distance(Backbone("test_vit").eval(), torch.randn(8, 3, 160, 160)) is None
