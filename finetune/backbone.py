"""A timm model as an ordered list of stages that can be frozen and cut anywhere."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import timm
import torch
from timm.models import group_parameters
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import NodePathTracer

import finetune.conv4  # noqa: F401  registers the encoder that ships with the package
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError, reason_of


@dataclass(frozen=True)
class Stage:
    """One step of a backbone, by the name of its module, with the names of its parameters."""

    name: str
    parameters: tuple[str, ...]


class Backbone(nn.Module):
    """A timm model without its classifier: pictures (n, 3, size, size), normalised, to features (n, width).

    `stages` runs from the stem to the last block. Frozen stages stay in evaluation mode whatever `train()` is told, and
    so do all batch norms unless `freeze_below` was told that they train.
    """

    def __init__(self, name: str, *, image_size: int | None = None):
        super().__init__()
        self.name = name
        # What timm must be told beyond the name to build the same model again.
        self.options = _options(name, image_size)
        try:
            self.model: Any = timm.create_model(name, pretrained=False, num_classes=0, **self.options).eval()
            self.preprocessing = _preprocessing(name, self.model, image_size)
            size = self.preprocessing.size
            with torch.inference_mode():
                self.width = int(self.model(torch.zeros(1, 3, size, size)).shape[1])
        # Each model refuses a size that does not suit it in its own way.
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
        # The highest stage that is left, by name, where those above it were dropped.
        self.highest: str | None = None
        self._lowest_trained = 0
        self._batch_norm_trains = True
        self.to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.model(pictures)  # type: ignore[no-any-return]

    def stage_index(self, name: str) -> int:
        """Position of the stage called `name`. InputError, listing the stages, when there is none."""
        for index, stage in enumerate(self.stages):
            if stage.name == name:
                return index
        names = ", ".join(stage.name for stage in self.stages)
        raise InputError(f"{self.name} has no stage {name!r}; from stem to head they are {names}")

    def freeze_below(self, stage: int, *, batch_norm_trains: bool = False) -> None:
        """Let only the stages from position `stage` up learn; len(stages) freezes all, 0 none."""
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
        """Leave out the stages above the one called `name`: the features (n, width) are then the mean over places of
        what that gives. InputError when there is no such stage, or the model's code cannot be traced."""
        above = self.stage_index(name) + 1
        if above == len(self.stages):
            return
        device, was_training = next(self.parameters()).device, self.training
        self.eval()
        self.model = _pooled_below(self, above, device)
        self.stages = self.stages[:above]
        self.highest = name
        with torch.no_grad():
            size = self.preprocessing.size
            self.width = int(self.model(torch.zeros(1, 3, size, size, device=device)).shape[1])
        self.train(was_training)

    def cut(self, stage: int) -> tuple[nn.Module, nn.Module]:
        """The network below stage `stage` and the network from it up, sharing this one's parameters.

        lower(pictures) gives what the stage receives, a tensor or a tuple of them, and upper(that) the features
        (n, width). Both are traced in the mode, training or evaluation, that this module is in. InputError, one line,
        when the model's code cannot be traced, or when the two parts do not compute what the whole network computes.
        """
        lower, upper = _cut(self, stage)
        if not self.training and 0 < stage < len(self.stages):
            _check_cut(self, stage, lower, upper)
        return lower, upper


class Network(nn.Module):
    """A backbone and the linear head on it: pictures (n, 3, size, size), normalised, to logits (n, classes).

    stages: what gives the pooled activations of every depth of this backbone, for a head that reads more of them than
    the features; it reads the last ones.
    """

    def __init__(self, backbone: Backbone, head: nn.Linear, stages: nn.Module | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = head
        # Not as a sub-module: it holds the backbone, whose parameters would be listed twice.
        object.__setattr__(self, "stages", stages)

    def forward(self, pictures: Tensor) -> Tensor:
        stages = self.__dict__["stages"]
        if stages is None:
            return classified(self.head, self.backbone(pictures))
        return classified(self.head, stages(pictures)[:, -self.head.in_features :])


def classified(head: nn.Linear, features: Tensor) -> Tensor:
    """Logits (n, classes) of features (n, width)."""
    # In float32 whatever surrounds it: as it was solved, and as the features are when they are kept.
    with torch.autocast(features.device.type, enabled=False):
        return head(features.float())  # type: ignore[no-any-return]


def _options(name: str, image_size: int | None) -> dict[str, Any]:
    if not timm.is_model(name):
        base = name.split(".")[0].replace("-", "_").lower()
        known = timm.list_models()
        close = (
            difflib.get_close_matches(base, known, cutoff=0.8)
            or [model for model in known if base in model][:3]
            or difflib.get_close_matches(base, known)
        )
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise InputError(f"timm has no model {name!r} (--backbone){hint}")
    tags = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
    if "." in name and name not in tags:
        raise InputError(
            f"timm has no weights {name!r} (--backbone); it has {', '.join(tags) or 'none for this model'}"
        )
    # Transformers carry position embeddings for one size and must be told another when they are built.
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
    """timm's coarse grouping of the parameters, from stem to last block, each group named by one of its modules."""
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
    # Some of timm's models state no grouping, or no coarse one: their numbered modules are the stages.
    except (AttributeError, AssertionError, NotImplementedError):
        named: dict[str, list[str]] = {"": []}
        for name, _ in model.named_parameters():
            parts = name.split(".")[:-1]
            numbered = next((depth for depth, part in enumerate(parts) if part[-1].isdigit()), None)
            # What has no number belongs to the stem, or to the last block.
            key = list(named)[-1] if numbered is None else ".".join(parts[: numbered + 1])
            named.setdefault(key, []).append(name)
        return [parameters for parameters in named.values() if parameters]


def _module_of(parameters: Sequence[str], others: Sequence[str]) -> str | None:
    """The module that a stage begins with and no other stage is in: "blocks.3" for "blocks.3.0.conv.weight" and its
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


def _cut(backbone: Backbone, stage: int) -> tuple[nn.Module, nn.Module]:
    if stage == 0:
        return nn.Identity(), backbone.model
    if stage == len(backbone.stages):
        return backbone.model, nn.Identity()
    tracer = _Tracer()
    nodes, first = _traced(tracer, backbone, stage)
    pictures = next(node for node in nodes[0].graph.nodes if node.op == "placeholder")
    result = next(node for node in nodes[0].graph.nodes if node.op == "output").args[0]
    crossing = [node for node in [pictures, *nodes[:first]] if not set(nodes[first:]).isdisjoint(node.users)]
    lower = _part_of(nodes[:first], [pictures], crossing)
    upper = _part_of(nodes[first:], crossing, [result])
    return GraphModule(tracer.root, lower), GraphModule(tracer.root, upper)


def _check_cut(backbone: Backbone, stage: int, lower: nn.Module, upper: nn.Module) -> None:
    """InputError unless `lower` and then `upper` give what the whole network gives, on two made pictures."""
    size, parameter = backbone.preprocessing.size, next(backbone.parameters())
    pictures = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(parameter.device)
    problem = "its two parts compute something else than the whole"
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


def _pooled_below(backbone: Backbone, stage: int, device: torch.device) -> GraphModule:
    """The network below stage `stage`, averaged over places. Modules keep their names, and whole stages stay whole."""
    tracer = _Tracer({below.name for below in backbone.stages[1:]})
    nodes, first = _traced(tracer, backbone, stage)
    pictures = next(node for node in nodes[0].graph.nodes if node.op == "placeholder")
    crossing = [node for node in nodes[:first] if not set(nodes[first:]).isdisjoint(node.users)]
    if len(crossing) != 1:
        raise InputError(f"{len(crossing)} values leave {backbone.stages[stage - 1].name} of {backbone.name}, not one")
    below = GraphModule(tracer.root, _part_of(nodes[:first], [pictures], crossing)).eval()
    size = backbone.preprocessing.size
    try:
        with torch.no_grad():
            # forward, not a call: a traced module that is called prints its code to stderr when it fails.
            shape = below.forward(torch.zeros(1, 3, size, size, device=device)).shape
    # Traced code raises arbitrary errors.
    except Exception as error:
        raise InputError(
            f"{backbone.name} cannot be cut above {backbone.stages[stage - 1].name} ({reason_of(error)})"
        ) from error
    graph = below.graph
    result = next(node for node in graph.nodes if node.op == "output")
    if len(shape) > 2:
        places = (1,) if len(shape) == 3 else (1, 2) if shape[1] == shape[2] != shape[3] else (2, 3)
        with graph.inserting_before(result):
            result.args = (graph.call_method("mean", (result.args[0], places)),)
    below.recompile()
    return below


class _Tracer(NodePathTracer):  # type: ignore[misc]
    """whole: names of modules that are one step each."""

    def __init__(self, whole: Collection[str] = ()):
        super().__init__(leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions())
        self._whole = whole

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # Pictures are the only symbol. Optional arguments, such as a mask, keep their defaults: as symbols they would
        # take the branches that the network does not take.
        return root_fn, [self.root, self.create_proxy("placeholder", "pictures", (), {})]

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self._whole or bool(super().is_leaf_module(module, name))


def _traced(tracer: _Tracer, backbone: Backbone, stage: int) -> tuple[list[Node], int]:
    """What the backbone computes, step by step, and the position of the first step of stage `stage`."""
    try:
        graph = tracer.trace(backbone.model)
    # A model's own Python runs on symbols here and raises arbitrary errors.
    except Exception as error:
        raise InputError(f"{backbone.name} cannot be cut: its code cannot be traced ({reason_of(error)})") from error
    above = tuple(f"{upper.name}." for upper in backbone.stages[stage:])
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    positions = (i for i, node in enumerate(nodes) if f"{tracer.node_to_qualname.get(node, '')}.".startswith(above))
    first = next(positions, 0)
    if first == 0:
        raise InputError(f"{backbone.name} cannot be cut below {backbone.stages[stage].name}: no step of it is found")
    return nodes, first


def _part_of(nodes: list[Node], inputs: list[Node], outputs: list[Node]) -> Graph:
    """The graph of `nodes` alone: one argument and one result each way, a tuple where several values cross."""
    part = Graph()
    argument = part.placeholder("below")
    copies: dict[Node, Node] = {}
    for position, node in enumerate(inputs):
        several = len(inputs) > 1
        copies[node] = part.call_function(operator.getitem, (argument, position)) if several else argument

    def copy(node: Node) -> Any:
        if node not in copies:  # a parameter used outside of its module, wherever the original fetched it
            copies[node] = part.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = part.node_copy(node, copy)
    found = tuple(copies[node] for node in outputs)
    part.output(found if len(found) > 1 else found[0])
    return part
