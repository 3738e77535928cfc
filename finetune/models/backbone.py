"""A timm model as an ordered list of stages that can be frozen and cut anywhere."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import finetune.models.conv4  # noqa: F401  registers the encoder that ships with the package
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError
from finetune.models.depth_head import DepthHead
from finetune.models.graph import cut, pooled_below
from finetune.models.stage_hooks import StageHooks
from finetune.terminal import reason_of


@dataclass(frozen=True)
class Stage:
    """A stage of a backbone: the name of its first module, and the names of its parameters."""

    name: str
    parameters: tuple[str, ...]


class Backbone(nn.Module):
    """A timm model without its classifier: normalised pictures (n, 3, size, size) to features (n, width).

    Frozen stages stay in evaluation mode after `train()`, and so do all batch norms unless `freeze_below` lets them
    train.

    Args:
        name: timm's name of the model.
        image_size: Side of the pictures in pixels. None for the model's own.

    Attributes:
        preprocessing: Preprocessing that the model expects.
        stages: Stages from the stem to the last block.
        width: Number of features.
        highest: Name of the last stage, where the stages above it were dropped.

    Raises:
        InputError: For a model or an image size that does not exist.
    """

    def __init__(self, name: str, *, image_size: int | None = None):
        super().__init__()
        self.name = name
        # timm's options, besides the name, that build the same model again.
        self.options = _options(name, image_size)
        try:
            self.model: Any = timm.create_model(name, pretrained=False, num_classes=0, **self.options).eval()
            self.preprocessing = _preprocessing(name, self.model, image_size)
            size = self.preprocessing.size
            with torch.inference_mode():
                self.width = int(self.model(torch.zeros(1, 3, size, size)).shape[1])
        # Models raise different errors for a size that they do not take.
        except (RuntimeError, ValueError, AssertionError) as error:
            if image_size is None:
                raise
            published = timm.models.get_pretrained_cfg(name)
            own = "" if published is None else f"it was trained at {published.input_size[-1]}, and "
            raise InputError(
                f"{name} does not take --image-size {image_size} ({reason_of(error)}); {own}most models take "
                "multiples of 32"
            ) from error
        self.stages = _stages(self.model)
        self.highest: str | None = None
        self._lowest_trained = 0
        self._batch_norm_trains = True
        self.to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.model(pictures)
        return features

    def stage_index(self, name: str) -> int:
        """Position of the stage called `name`. InputError, with the names of all stages, where there is none."""
        for index, stage in enumerate(self.stages):
            if stage.name == name:
                return index
        raise InputError(f"{self.name} has no stage {name!r}; from stem to head they are {', '.join(self._names())}")

    def freeze_below(self, stage: int, *, batch_norm_trains: bool = False) -> None:
        """Freeze the stages below position `stage`: none for 0, all for len(stages).

        batch_norm_trains: Whether batch norms of trained stages update their statistics.
        """
        self._lowest_trained = stage
        self._batch_norm_trains = batch_norm_trains
        frozen = {name for below in self.stages[:stage] for name in below.parameters}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if not mode or not hasattr(self, "_lowest_trained"):
            return self
        if self._lowest_trained == len(self.stages):
            self.model.eval()
        for module in self.model.modules():
            parameters = list(module.parameters())
            frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
            if frozen or (isinstance(module, _BatchNorm) and not self._batch_norm_trains):
                module.eval()
        return self

    def drop_above(self, name: str) -> None:
        """Remove the stages above the one called `name`: the features (n, width) are its output, averaged over places.

        InputError if there is no such stage, or the model's code cannot be traced.
        """
        above = self.stage_index(name) + 1
        if above == len(self.stages):
            return
        device, was_training = next(self.parameters()).device, self.training
        self.eval()
        size = self.preprocessing.size
        pictures = torch.zeros(1, 3, size, size, device=device)
        self.model = pooled_below(self.model, self.name, self._names(), above, pictures)
        self.stages = self.stages[:above]
        self.highest = name
        with torch.no_grad():
            self.width = int(self.model(pictures).shape[1])
        self.train(was_training)

    def cut(self, stage: int) -> tuple[nn.Module, nn.Module]:
        """Cut the network in two parts, which share its parameters.

        Both are traced in the mode, training or evaluation, of this module.

        Args:
            stage: Position of the lowest stage of the upper part.

        Returns:
            The lower part, from pictures to the input of the stage, a tensor or a tuple of tensors; and the upper part,
            from that to the features (n, width).

        Raises:
            InputError: If the model's code cannot be traced, or the two parts give other features than the network.
        """
        lower, upper = cut(self.model, self.name, self._names(), stage)
        if not self.training and 0 < stage < len(self.stages):
            _check_cut(self, stage, lower, upper)
        return lower, upper

    def _names(self) -> list[str]:
        return [stage.name for stage in self.stages]


class Network(nn.Module):
    """A backbone with a linear head: normalised pictures (n, 3, size, size) to logits (n, classes).

    Args:
        backbone: The backbone.
        head: The head.
        hooks: Records pooled activations of the backbone, for a head that reads more depths than the features. The head
            reads the last `head.in_features` values. None for a head on the features.
    """

    def __init__(self, backbone: Backbone, head: nn.Linear | DepthHead, hooks: StageHooks | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.hooks = hooks

    def forward(self, pictures: Tensor) -> Tensor:
        if self.hooks is None:
            return classified(self.head, self.backbone(pictures))
        return classified(self.head, self.hooks(self.backbone, pictures)[:, -self.head.in_features :])


def classified(head: nn.Linear | DepthHead, features: Tensor) -> Tensor:
    """Logits (n, classes) of features (n, width)."""
    # In float32 even under autocast: the head was solved in float32, and cached features are float32.
    with torch.autocast(features.device.type, enabled=False):
        logits: Tensor = head(features.float())
        return logits


def check_name(name: str, option: str = "--backbone") -> None:
    """InputError, with names that are close, for a model that timm does not have. option: where the name was given."""
    if not timm.is_model(name):
        base = name.split(".")[0].replace("-", "_").lower()
        known = timm.list_models()
        close = (
            difflib.get_close_matches(base, known, cutoff=0.8)
            or [model for model in known if base in model][:3]
            or difflib.get_close_matches(base, known)
        )
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"timm has no model {name!r} ({option}){hint}")
    tags = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
    if "." in name and name not in tags:
        raise InputError(f"timm has no weights {name!r} ({option}); it has {', '.join(tags) or 'none for this model'}")


def _options(name: str, image_size: int | None) -> dict[str, Any]:
    check_name(name)
    # Transformers have position embeddings for one size. Another size is an option of their constructor.
    published = timm.models.get_pretrained_cfg(name)
    fixed = published is not None and published.fixed_input_size
    return {"img_size": image_size} if image_size is not None and fixed else {}


def _preprocessing(name: str, model: Any, image_size: int | None) -> Preprocessing:
    wanted = timm.data.resolve_model_data_config(model)
    channels, height, width = wanted["input_size"]
    if channels != 3 or height != width:
        raise InputError(
            f"{name} (--backbone) takes {channels}x{height}x{width} pictures; only square colour pictures are supported"
        )
    return Preprocessing(
        size=image_size or height,
        crop_pct=wanted["crop_pct"],
        interpolation=wanted["interpolation"],
        mean=tuple(wanted["mean"]),
        std=tuple(wanted["std"]),
    )


def _stages(model: Any) -> tuple[Stage, ...]:
    """timm's coarse groups of parameters, from the stem to the last block, each named by one of its modules."""
    groups = _groups(model)
    stages = [Stage("stem", tuple(groups[0]))]
    for position, parameters in enumerate(groups[1:], 1):
        others = [name for other in (*groups[:position], *groups[position + 1 :]) for name in other]
        name = _module_of(parameters, others)
        if name is None:  # parameters outside of any module of their own
            stages[-1] = Stage(stages[-1].name, (*stages[-1].parameters, *parameters))
        else:
            stages.append(Stage(name, tuple(parameters)))
    return tuple(stages)


def _groups(model: Any) -> list[list[str]]:
    """Names of parameters, grouped, from the stem up."""
    try:
        groups: Mapping[int, list[str]] = group_parameters(model, model.group_matcher(coarse=True))
        return [parameters for _, parameters in sorted(groups.items())]
    # Some of timm's models have no grouping, or no coarse one: their numbered modules are the stages.
    except (AttributeError, AssertionError, NotImplementedError):
        named: dict[str, list[str]] = {"": []}
        for name, _ in model.named_parameters():
            parts = name.split(".")[:-1]
            numbered = next((depth for depth, part in enumerate(parts) if part[-1].isdigit()), None)
            # A module without a number belongs to the stem, or to the last block.
            key = list(named)[-1] if numbered is None else ".".join(parts[: numbered + 1])
            named.setdefault(key, []).append(name)
        return [parameters for parameters in named.values() if parameters]


def _module_of(parameters: Sequence[str], others: Sequence[str]) -> str | None:
    """The first module of a stage that contains no other stage: "blocks.3" for "blocks.3.0.conv.weight" and its
    neighbours. None where there is none."""
    modules = [name.split(".")[:-1] for name in parameters]
    # A last group also holds the layers after the blocks, "blocks.6..." and "conv_head": named by its first module.
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, zip(*modules, strict=False))]
    for parts in (shared, *modules):
        depths = [depth for depth, part in enumerate(parts) if part[-1].isdigit()]
        for depth in (*depths, len(parts) - 1):
            name = ".".join(parts[: depth + 1])
            if name and not any(other.startswith(f"{name}.") for other in others):
                return name
    return None


def _check_cut(backbone: Backbone, stage: int, lower: nn.Module, upper: nn.Module) -> None:
    """InputError unless the two parts give the features of the whole network, on two pictures of noise."""
    size, parameter = backbone.preprocessing.size, next(backbone.parameters())
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(parameter.device)
    problem = "its two parts compute other features than the whole"
    try:
        with torch.no_grad():
            whole = backbone.model(pictures)
            # forward, not a call: a traced module that is called prints its code to stderr when it fails.
            parts = upper.forward(lower.forward(pictures))
        same = whole.shape == parts.shape and torch.allclose(whole, parts, rtol=1e-3, atol=1e-4, equal_nan=True)
    # Traced code raises arbitrary errors.
    except Exception as error:
        same, problem = False, reason_of(error)
    if not same:
        raise InputError(f"{backbone.name} cannot be cut below {backbone.stages[stage].name} ({problem})")
