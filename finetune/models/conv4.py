"""fewtune_conv4, the small encoder that ships with the package: four convolutional blocks, registered with timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights" / "fewtune_conv4.safetensors"

WIDTH = 96  # channels of every block
GRID = 2  # the last feature map is kept as GRID x GRID places: where a stroke is tells characters apart


class Conv4(nn.Module):
    """Pictures (n, in_chans, h, w) to logits (n, num_classes), or with num_classes 0 to features (n, 384).

    Trained on 35 x 35 pixels; every size from 16 works, because the last map is averaged down to 2 x 2 places.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = WIDTH
        self.head_hidden_size = WIDTH * GRID * GRID
        self.feature_info = [{"num_chs": WIDTH, "reduction": 2 ** (i + 1), "module": f"blocks.{i}"} for i in range(4)]
        self.blocks = nn.Sequential(_block(in_chans), _block(WIDTH), _block(WIDTH), _block(WIDTH))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(GRID), nn.Flatten())
        self.head_drop = nn.Dropout(drop_rate)
        self.head = _classifier(self.head_hidden_size, num_classes)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(pictures))

    def forward_features(self, pictures: Tensor) -> Tensor:
        """Pictures (n, in_chans, h, w) to the last map (n, 96, h // 16, w // 16)."""
        maps: Tensor = checkpoint_seq(self.blocks, pictures) if self.grad_checkpointing else self.blocks(pictures)
        return maps

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (n, num_classes), or with `pre_logits` to features (n, 384)."""
        features: Tensor = self.head_drop(self.pool(maps))
        return features if pre_logits else self.head(features)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps after the blocks `indices` (an int: so many last ones, None: all), and before them the last map."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        blocks = range(len(self.blocks))
        wanted = blocks if indices is None else blocks[-indices:] if isinstance(indices, int) else indices
        wanted = [blocks[position] for position in wanted]
        maps = []
        for position, block in enumerate(self.blocks):
            if stop_early and position > max(wanted):
                break
            x = block(x)
            if position in wanted:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear head of `num_classes`, or none for 0. There is one way to pool, so `global_pool` is ignored."""
        self.num_classes = num_classes
        self.head = _classifier(self.head_hidden_size, num_classes)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """timm's grouping of the parameters by depth: the first block is the stem, the same at either grain."""
        return {"stem": r"^blocks\.0\.", "blocks": r"^blocks\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable


def _block(channels: int) -> nn.Sequential:
    # Pooling comes first: what follows then works on a quarter of the pixels, which is most of the time saved on a CPU.
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1, bias=False), nn.MaxPool2d(2), nn.BatchNorm2d(WIDTH), nn.ReLU()
    )


def _classifier(features: int, num_classes: int) -> nn.Module:
    return nn.Linear(features, num_classes) if num_classes > 0 else nn.Identity()


# Mean and deviation 0.5 put black at -1 and white at 1: neither ink on paper nor chalk on a board is the normal case,
# and the weights were trained on both.
default_cfgs = generate_default_cfgs(
    {
        "fewtune_conv4.omniglot": {
            "file": str(WEIGHTS),
            "num_classes": 0,
            "input_size": (3, 35, 35),
            "min_input_size": (3, 16, 16),
            "pool_size": (GRID, GRID),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "blocks.0.0",
            "classifier": "head",
            "license": "mit",
        }
    }
)


@register_model
def fewtune_conv4(pretrained: bool = False, **kwargs: Any) -> Conv4:
    """Four 96-channel blocks, 0.25 M parameters; its weights know handwritten characters (weights/README.md)."""
    return build_model_with_cfg(Conv4, "fewtune_conv4", pretrained, **kwargs)
