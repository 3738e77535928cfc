"""The number of threads that torch computes with: one for a small problem."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

# Numbers in a matrix below which several threads cost more than they gain. Threads wait for each other after every
# small product, and on a busy machine a wait lasts until other programs release a core.
SMALL = 2_000_000


@contextmanager
def one_thread_if_small(numbers: int) -> Iterator[None]:
    """Compute with one thread where a problem has fewer than SMALL numbers; the count is restored at the end."""
    with one_thread() if numbers < SMALL else nullcontext():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread, whose time depends little on other programs; the count is restored at the end."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
