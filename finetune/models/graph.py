"""A network as an ONNX graph: torch's exporter, told once how."""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.models._features_fx import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torchvision.models.feature_extraction import NodePathTracer

from finetune.errors import InputError, reason_of
from finetune.models.backbone import Backbone


def onnx_program(
    network: nn.Module,
    batch: Tensor,
    *,
    names: tuple[str, str] | None = None,
    opset: int | None = None,
    optimize: bool = True,
) -> Any:
    """torch's ONNXProgram of `network`, weights included, for batches of the size of `batch`.

    names: of its input and output; given, batches may have any size. opset: torch's own choice where None.
    optimize: simplify the graph, which takes as long as a fifth of the rest, and which runtimes do by themselves.
    """
    options: dict[str, Any] = {}
    if names is not None:
        options = {
            "input_names": [names[0]],
            "output_names": [names[1]],
            "dynamic_shapes": ({0: torch.export.Dim("n", min=1)},),
        }
    options |= {"dynamo": True, "verbose": False, "opset_version": opset, "optimize": optimize}
    with _quiet(), _Attention():
        return torch.onnx.export(network, (batch,), **options)


class _Attention(TorchFunctionMode):
    """Attention in other than 4 dimensions (hiera's has 5) as matrix products: ONNX has no fused call for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) == 3 and args[0].ndim != 4 and not kwargs:
            query, key, value = args
            weights = (query @ key.transpose(-1, -2)) / query.shape[-1] ** 0.5
            return weights.softmax(-1) @ value
        return func(*args, **kwargs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about its own code, and its log of what it does not simplify."""
    log = logging.getLogger("onnxscript.optimizer._constant_folding")
    log.addFilter(_nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


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
