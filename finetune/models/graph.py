"""A network cut in two between its stages, by its traced graph."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torchvision.models.feature_extraction import NodePathTracer

from finetune.errors import InputError
from finetune.terminal import reason_of


def cut(model: nn.Module, name: str, stages: Sequence[str], position: int) -> tuple[nn.Module, nn.Module]:
    """Cut a network, of this name and with these stages, below the stage at `position`.

    The two parts share its parameters. InputError if the code of the network cannot be traced.
    """
    if position == 0:
        return nn.Identity(), model
    if position == len(stages):
        return model, nn.Identity()
    tracer = _Tracer()
    nodes, first = _traced(tracer, model, name, stages, position)
    pictures = next(node for node in nodes[0].graph.nodes if node.op == "placeholder")
    result = next(node for node in nodes[0].graph.nodes if node.op == "output").args[0]
    crossing = [node for node in [pictures, *nodes[:first]] if not set(nodes[first:]).isdisjoint(node.users)]
    lower = _part_of(nodes[:first], [pictures], crossing)
    upper = _part_of(nodes[first:], crossing, [result])
    return GraphModule(tracer.root, lower), GraphModule(tracer.root, upper)


def pooled_below(model: nn.Module, name: str, stages: Sequence[str], position: int, pictures: Tensor) -> GraphModule:
    """The network below a stage, with its output averaged over places: pictures to features (n, width).

    Modules keep their names, and stages are not taken apart. pictures: A batch that is run once to find the dimensions
    of the places. InputError if the code of the network cannot be traced.
    """
    tracer = _Tracer(stages[1:])
    nodes, first = _traced(tracer, model, name, stages, position)
    source = next(node for node in nodes[0].graph.nodes if node.op == "placeholder")
    crossing = [node for node in nodes[:first] if not set(nodes[first:]).isdisjoint(node.users)]
    if len(crossing) != 1:
        raise InputError(f"{len(crossing)} values leave {stages[position - 1]} of {name}, not one")
    below = GraphModule(tracer.root, _part_of(nodes[:first], [source], crossing)).eval()
    try:
        with torch.no_grad():
            # forward, not a call: a traced module that is called prints its code to stderr when it fails.
            shape = below.forward(pictures).shape
    # Traced code raises arbitrary errors.
    except Exception as error:
        raise InputError(f"{name} cannot be cut above {stages[position - 1]} ({reason_of(error)})") from error
    graph = below.graph
    result = next(node for node in graph.nodes if node.op == "output")
    if len(shape) > 2:
        places = (1,) if len(shape) == 3 else (1, 2) if shape[1] == shape[2] != shape[3] else (2, 3)
        with graph.inserting_before(result):
            result.args = (graph.call_method("mean", (result.args[0], places)),)
    below.recompile()
    return below


class _Tracer(NodePathTracer):
    """Traces a network. The modules named in `whole` are not taken apart."""

    def __init__(self, whole: Collection[str] = ()):
        super().__init__(leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions())
        self._whole = whole

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # Pictures are the only symbol. Optional arguments, such as a mask, keep their defaults: a symbol would lead
        # into branches that the network does not use.
        return root_fn, [self.root, self.create_proxy("placeholder", "pictures", (), {})]

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self._whole or bool(super().is_leaf_module(module, name))


def _traced(
    tracer: _Tracer, model: nn.Module, name: str, stages: Sequence[str], position: int
) -> tuple[list[Node], int]:
    """The steps of the model, and the index of the first step of the stage at `position`."""
    try:
        graph = tracer.trace(model)
    # A model's own Python code runs on symbols here and raises arbitrary errors.
    except Exception as error:
        raise InputError(f"{name} cannot be cut: its code cannot be traced ({reason_of(error)})") from error
    above = tuple(f"{stage}." for stage in stages[position:])
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    positions = (i for i, node in enumerate(nodes) if f"{tracer.node_to_qualname.get(node, '')}.".startswith(above))
    first = next(positions, 0)
    if first == 0:
        raise InputError(f"{name} cannot be cut below {stages[position]}: no step of it is found")
    return nodes, first


def _part_of(nodes: list[Node], inputs: list[Node], outputs: list[Node]) -> Graph:
    """The graph of `nodes` alone, with one argument and one result, each a tuple where several values cross."""
    part = Graph()
    argument = part.placeholder("below")
    copies: dict[Node, Node] = {}
    for position, node in enumerate(inputs):
        several = len(inputs) > 1
        copies[node] = part.call_function(operator.getitem, (argument, position)) if several else argument

    def copy(node: Node) -> Any:
        if node not in copies:  # a parameter that is used outside of its module
            copies[node] = part.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = part.node_copy(node, copy)
    found = tuple(copies[node] for node in outputs)
    part.output(found if len(found) > 1 else found[0])
    return part
