"""How many threads torch computes with: one where a problem is small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Numbers in a matrix below which several threads gain less than they cost. They wait for each other after every small
# product, and on a busy machine each wait lasts as long as other programs keep one of the cores.
SMALL = 2_000_000


@contextmanager
def one_thread_if_small(numbers: int) -> Iterator[None]:
    """Compute with one thread where a problem has fewer than SMALL numbers; the count is restored at the end."""
    before = torch.get_num_threads()
    if numbers < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
