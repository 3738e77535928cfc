"""What is random in a training step: drawn on the CPU, ahead of the steps, and packed into one tensor for a device."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fewshot.embedding.augmentation import Changes

# Steps that are drawn ahead, and threads that draw them: one thread draws about as fast as a fast GPU takes steps.
AHEAD, THREADS = 8, 4

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class StepNumbers:
    """The random numbers of a step.

    Attributes:
        rows: Shape (n,), int64: the pictures.
        labels: Shape (n,), int64; of all processes, where several take the step.
        changes: How each picture is distorted.
        side: Side of the distorted pictures, in pixels.
    """

    rows: Tensor
    labels: Tensor
    changes: Changes
    side: int

    def packed(self) -> tuple[Layout, Tensor]:
        """All tensors in one of bytes, and where each is."""
        tensors = self.rows, self.labels, *vars(self.changes).values()
        layout = Layout(self.side, tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors))
        return layout, torch.cat([tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors])


@dataclass(frozen=True)
class Layout:
    """Number formats and shapes of the packed tensors of a step, the largest format first. Steps of one layout differ
    in values alone."""

    side: int
    parts: tuple[tuple[torch.dtype, tuple[int, ...]], ...]

    def unpacked(self, memory: Tensor) -> StepNumbers:
        """The numbers in `memory`, which they share, on its device."""
        sizes = [dtype.itemsize * torch.Size(shape).numel() for dtype, shape in self.parts]
        found = zip(memory.split(sizes), self.parts, strict=True)
        rows, labels, *changes = (part.view(dtype).view(shape) for part, (dtype, shape) in found)
        return StepNumbers(rows, labels, Changes(*changes), self.side)


def drawn_ahead(draw: Callable[[int], T], first: int, threads: Executor) -> Iterator[T]:
    """`draw(step)` for every step from `first` on, without end; the next ones are drawn meanwhile, by `threads`."""
    under_way: deque[Future[T]] = deque(threads.submit(draw, step) for step in range(first, first + AHEAD))
    step = first + AHEAD
    while True:
        under_way.append(threads.submit(draw, step))
        step += 1
        yield under_way.popleft().result()
