"""Encoders for drawings, registered with timm."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

GRID = 4  # the last feature map is 4 x 4, not averaged: the position of a stroke identifies a character


class DrawingNet(nn.Module):
    """The default encoder: pictures (n, in_chans, h, w) to (n, dim). Sides from 16; designed for 40 x 40.

    A convolution and pooling, then residual blocks (He et al. 2016, section 3) that grow wider as the maps shrink, so
    that most weights are applied to small maps. The last map, 4 x 4, is flattened and projected.
    """

    def __init__(
        self,
        num_classes: int = 0,
        in_chans: int = 1,
        widths: tuple[int, ...] = (32, 64, 128, 192),
        dim: int = 256,
    ):
        super().__init__()
        _no_classes(num_classes)
        self.num_classes, self.in_chans, self.num_features = 0, in_chans, dim
        first, *rest = widths
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, first, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(first), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        for position, (before, after) in enumerate(zip(widths, rest, strict=False)):
            pool = nn.MaxPool2d(2) if position < len(rest) - 1 else nn.AdaptiveAvgPool2d(GRID)
            blocks.append(nn.Sequential(_Residual(before, after), pool))
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Linear(widths[-1] * GRID * GRID, dim, bias=False)

    def forward(self, pictures: Tensor) -> Tensor:
        vectors: Tensor = self.project(self.blocks(self.stem(pictures)).flatten(1))
        return vectors


class Koch2015(nn.Module):
    """The convolutional twin of Koch et al. (2015, figure 4): (n, in_chans, 105, 105) to (n, 4096), from 0 to 1.

    38.9 M parameters. The paper weights the distances of single features by a learned layer after both twins. An
    embedding has no such layer.
    """

    def __init__(self, num_classes: int = 0, in_chans: int = 1):
        super().__init__()
        _no_classes(num_classes)
        self.num_classes, self.in_chans, self.num_features = 0, in_chans, 4096
        self.features = nn.Sequential(
            *(nn.Conv2d(in_chans, 64, 10), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 7), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(128, 128, 4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(128, 256, 4), nn.ReLU()),
        )
        self.project = nn.Linear(256 * 6 * 6, 4096)

    def forward(self, pictures: Tensor) -> Tensor:
        vectors: Tensor = self.project(self.features(pictures).flatten(1)).sigmoid()
        return vectors


class FullyConnected(nn.Module):
    """The "Siamese neural net" of Koch et al. (2015, table 2): two linear layers, (n, in_chans, 35, 35) to (n, 512).

    The paper does not give the widths; here they are 1024 and 512.
    """

    def __init__(self, num_classes: int = 0, in_chans: int = 1):
        super().__init__()
        _no_classes(num_classes)
        self.num_classes, self.in_chans, self.num_features = 0, in_chans, 512
        self.layers = nn.Sequential(
            nn.Linear(in_chans * 35 * 35, 1024, bias=False), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 512)
        )

    def forward(self, pictures: Tensor) -> Tensor:
        vectors: Tensor = self.layers(pictures.flatten(1))
        return vectors


class _Residual(nn.Module):
    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Conv2d(before, after, 1, bias=False) if before != after else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(maps)))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(maps))


def _no_classes(num_classes: int) -> None:
    if num_classes:
        raise ValueError("num_classes must be 0: an encoder has no classifier")


def _cfg(side: int, first_conv: str) -> dict[str, Any]:
    return {
        "num_classes": 0,
        "input_size": (1, side, side),
        "mean": (0.0,),
        "std": (1.0,),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": None,
        "license": "mit",
    }


default_cfgs = generate_default_cfgs(
    {
        "fewtune_drawing.untrained": _cfg(40, "stem.0"),
        "fewtune_koch2015.untrained": _cfg(105, "features.0"),
        "fewtune_fully_connected.untrained": _cfg(35, "layers.0"),
    }
)


@register_model
def fewtune_drawing(pretrained: bool = False, **kwargs: Any) -> DrawingNet:
    """The default encoder of `fewshot train`: 1.65 M parameters, vectors of length 256."""
    return build_model_with_cfg(DrawingNet, "fewtune_drawing", pretrained, **kwargs)


@register_model
def fewtune_koch2015(pretrained: bool = False, **kwargs: Any) -> Koch2015:
    """Koch et al. 2015 at 105 x 105."""
    return build_model_with_cfg(Koch2015, "fewtune_koch2015", pretrained, **kwargs)


@register_model
def fewtune_fully_connected(pretrained: bool = False, **kwargs: Any) -> FullyConnected:
    """The fully connected Siamese network of the classic table."""
    return build_model_with_cfg(FullyConnected, "fewtune_fully_connected", pretrained, **kwargs)
