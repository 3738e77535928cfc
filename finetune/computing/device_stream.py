"""Batches copied onto a device beside its work, and results copied back without waiting for each of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

# Batches whose results a GPU may still be computing when the next batch is given to it.
BEHIND = 2

T = TypeVar("T")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device. The copy does not wait for the work that a GPU has been given before.

    `tensor.to(device)` waits, as `torch.tensor(values, device=device)` does, unless the tensor lies in pinned memory.

    Example:
        >>> sent(torch.ones(2), torch.device("cpu"))
        tensor([1., 1.])
    """
    if device.type != "cuda" or tensor.device.type != "cpu" or not tensor.numel():
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def copied_ahead(batches: Iterable[tuple[T, Tensor]], device: torch.device) -> Iterator[tuple[T, Tensor]]:
    """Batches with their tensor on a device.

    On a GPU, pinned memory is copied on a stream of its own, so that a copy runs beside the work on earlier batches and
    the caller does not wait for it.

    Args:
        batches: Pairs of anything and a tensor, such as a batch and its pixels (n, 3, h, w).
        device: Where the tensors are needed.

    Returns:
        The same pairs, one at a time, with the tensor on `device`.

    Example:
        >>> next(copied_ahead([("first", torch.ones(2))], torch.device("cpu")))
        ('first', tensor([1., 1.]))
    """
    if device.type != "cuda":
        for about, tensor in batches:
            yield about, tensor.to(device)
        return
    copying = torch.cuda.Stream(device)
    for about, tensor in batches:
        with torch.cuda.stream(copying):
            there = sent(tensor, device)
        working = torch.cuda.current_stream(device)
        working.wait_stream(copying)
        there.record_stream(working)  # its memory is not reused before the work on it has ended
        yield about, there


def fetched_behind(
    results: Iterable[tuple[T, Tensor | None]], device: torch.device
) -> Iterator[tuple[T, Tensor | None]]:
    """Results of a device on the CPU, in their order.

    On a GPU a result is given out when up to `BEHIND` later ones have been begun, so that the GPU always has work.

    Args:
        results: Pairs of anything and a tensor on `device`; None instead of a tensor stays None.
        device: Where the tensors are computed.

    Returns:
        The same pairs, with the tensor on the CPU.

    Example:
        >>> list(fetched_behind([("first", torch.ones(2)), ("second", None)], torch.device("cpu")))
        [('first', tensor([1., 1.])), ('second', None)]
    """
    if device.type != "cuda":
        for about, tensor in results:
            yield about, None if tensor is None else tensor.cpu()
        return
    under_way: deque[tuple[T, Tensor | None, torch.cuda.Event]] = deque()
    for about, tensor in results:
        under_way.append((about, *_sent(tensor)))
        if len(under_way) > BEHIND:
            yield _arrived(*under_way.popleft())
    while under_way:
        yield _arrived(*under_way.popleft())


def _sent(tensor: Tensor | None) -> tuple[Tensor | None, torch.cuda.Event]:
    """A copy in pinned memory that is under way, and the event of its end."""
    there = None
    if tensor is not None:
        there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        there.copy_(tensor, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return there, event


def _arrived(about: T, tensor: Tensor | None, event: torch.cuda.Event) -> tuple[T, Tensor | None]:
    event.synchronize()
    return about, tensor
