"""Training steps as CUDA graphs: recorded once for each shape of a batch, then run without launching each kernel."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from finetune.terminal import reason_of

# Steps of a shape that run as they are before it is recorded: the first ones choose kernels and take memory.
WARM_UP = 3
# Shapes that are recorded: batches of groups with few classes have many sizes, all of them rare.
MOST = 12

L = TypeVar("L", bound=Hashable)


@dataclass(frozen=True, eq=False)
class _Graph:
    graph: torch.cuda.CUDAGraph
    given: Tensor
    loss: Tensor
    gradients: list[Tensor | None]


class CapturedSteps(Generic[L]):
    """A function of one tensor that computes a loss and sets the gradients, replayed as a CUDA graph where it can be.

    Args:
        learn: Tensor and layout to the loss, a scalar. It sets the gradients of `parameters`, which are None before.
            For tensors of one shape and one layout it launches the same kernels, and it never waits for the device.
        parameters: Those whose gradients it sets.
        capture: Whether graphs are recorded. Otherwise every call runs `learn` as it is.
        say: Called once with a line where a graph cannot be recorded; steps then run as they are.
    """

    def __init__(
        self,
        learn: Callable[[Tensor, L], Tensor],
        parameters: Sequence[Tensor],
        *,
        capture: bool,
        say: Callable[[str], None],
    ):
        self._learn, self._parameters, self.capture, self.say = learn, list(parameters), capture, say
        self._graphs: dict[L, _Graph] = {}
        self._seen: dict[L, int] = {}

    @property
    def captured(self) -> int:
        """Number of recorded shapes."""
        return len(self._graphs)

    def __call__(self, tensor: Tensor, layout: L) -> Tensor:
        """The loss; the gradients are set."""
        found = self._graphs.get(layout) or self._recorded(tensor, layout)
        if found is None:
            return self._learn(tensor, layout)
        found.given.copy_(tensor)
        found.graph.replay()
        for parameter, gradient in zip(self._parameters, found.gradients, strict=True):
            parameter.grad = gradient
        return found.loss.clone()  # the next replay overwrites it

    def _recorded(self, tensor: Tensor, layout: L) -> _Graph | None:
        """A new graph; None where the step runs as it is."""
        seen = self._seen[layout] = self._seen.get(layout, 0) + 1
        if not self.capture or seen <= WARM_UP or len(self._graphs) >= MOST:
            return None
        given, graph = tensor.clone(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss = self._learn(given, layout)
        except RuntimeError as error:
            self.capture = False
            self.say(f"Training steps are not recorded as CUDA graphs and run more slowly ({reason_of(error)}).")
            for parameter in self._parameters:
                parameter.grad = None
            return None
        found = _Graph(graph, given, loss, [parameter.grad for parameter in self._parameters])
        self._graphs[layout] = found
        return found
