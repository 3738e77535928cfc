"""Exact search on a device: products of matrices, of which only the groups with the highest values are sorted."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Vectors of a group. The k nearest lie in the k groups with the highest similarities, so that all others are read once,
# for their maximum, and never sorted.
GROUP = 64
# Similarities in memory at once, in float32: 4 GiB on a GPU, 64 MiB on a CPU.
AT_ONCE_GPU, AT_ONCE_CPU = 1 << 30, 1 << 24


class DeviceGallery:
    """Vectors on a device, searched exactly. Several threads may search at once.

    Args:
        vectors: Shape (n, d), float32. Copied to `device`.
        device: Where to compare them.

    Example:
        >>> import numpy as np
        >>> gallery = DeviceGallery(np.eye(3, dtype=np.float32), torch.device("cpu"))
        >>> gallery.search(np.array([[0, 0.6, 0.8]], np.float32), 2)[1].tolist()
        [[2, 1]]
    """

    def __init__(self, vectors: NDArray[np.float32], device: torch.device):
        self._n, self._device = len(vectors), device
        given = torch.from_numpy(vectors)
        self._groups = -(-self._n // GROUP)
        self._vectors = torch.zeros(self._groups * GROUP, given.shape[1], device=device)
        self._vectors[: self._n].copy_(given)

    def search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The k nearest of each query.

        Args:
            queries: Shape (m, d), float32.
            k: From 1 to n.

        Returns:
            Similarities and rows, both (m, k), the most similar first.
        """
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self._device)
        at_once = AT_ONCE_CPU if self._device.type == "cpu" else AT_ONCE_GPU
        height = max(1, min(len(asked), at_once // len(self._vectors)))
        product = torch.empty(height, len(self._vectors), device=self._device)
        found = [self._nearest(part, k, product[: len(part)]) for part in asked.split(height)]
        similarity, rows = (torch.cat(column).cpu().numpy() for column in zip(*found, strict=True))
        return similarity, rows

    @torch.inference_mode()
    def _nearest(self, queries: Tensor, k: int, product: Tensor) -> tuple[Tensor, Tensor]:
        torch.matmul(queries, self._vectors.T, out=product)
        product[:, self._n :] = -torch.inf  # rows that fill the last group
        if k >= self._groups:
            similarity, rows = product.topk(k)
            return similarity, rows
        grouped = product.unflatten(1, (self._groups, GROUP))
        chosen = grouped.amax(2).topk(k, sorted=False).indices
        candidates = grouped.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1)
        similarity, place = candidates.topk(k)
        return similarity, chosen.gather(1, place // GROUP) * GROUP + place % GROUP
