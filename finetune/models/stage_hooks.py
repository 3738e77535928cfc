"""Pooled inputs of some modules, recorded by hooks that exist only during a forward pass."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune.shared_change import SharedChange


class StageHooks:
    """Pooled inputs of modules, named by position from the stem up. Several threads may use it on one network."""

    def __init__(self, modules: Mapping[int, str]):
        self.modules = dict(modules)
        self._recorded = threading.local()
        self._hooked = SharedChange(self._hooks)  # between its first and last thread, none changes a module

    def __reduce__(self) -> tuple[type[StageHooks], tuple[dict[int, str]]]:
        return type(self), (self.modules,)

    def parts(self, network: nn.Module, pictures: Tensor) -> list[tuple[int, Tensor]]:
        """Position and pooled input (n, width) of every module that is called, ascending; the output is the last."""
        self._recorded.parts = {}
        try:
            with self._hooked(network):
                features = network(pictures)
            parts = sorted(self._recorded.parts.items())
        finally:
            del self._recorded.parts
        return [*((position, part.float()) for position, part in parts), (len(self.modules) + 1, features.float())]

    def __call__(self, network: nn.Module, pictures: Tensor) -> Tensor:
        """Pooled inputs of the modules and the network's output side by side, (n, sum of widths)."""
        return torch.cat([part for _, part in self.parts(network, pictures)], 1)

    @contextmanager
    def _hooks(self, network: nn.Module) -> Iterator[None]:
        with ExitStack() as hooks:
            for position, name in self.modules.items():
                hook = partial(self._record, position)
                hooks.enter_context(network.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
            yield

    def _record(self, position: int, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        # Only the first call of a module counts, and only in a thread that is inside `parts`.
        if hasattr(self._recorded, "parts") and position not in self._recorded.parts:
            self._recorded.parts[position] = pooled(arguments[0] if arguments else next(iter(options.values())))


def pooled(activations: Tensor | Sequence[Tensor]) -> Tensor:
    """Activations averaged over places, (n, width); branches of a network side by side.

    activations: Feature maps (n, width, h, w) or (n, h, w, width), or tokens (n, tokens, width), or several of these.
    """
    if not isinstance(activations, Tensor):
        branches = [branch for branch in activations if isinstance(branch, Tensor)]
        rows = branches[0].shape[0]  # len() would fix the size of the batch in an exported graph
        return torch.cat([pooled(branch) for branch in branches if branch.shape[0] == rows], 1)
    if activations.ndim == 4:
        channels_last = activations.shape[1] == activations.shape[2] != activations.shape[3]
        return activations.mean((1, 2) if channels_last else (2, 3))
    return activations.mean(1) if activations.ndim == 3 else activations
