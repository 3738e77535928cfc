"""Tensors exchanged inside a training step: shares of a batch, rows of all ranks with gradients, global batch norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


def share(n: int, rank: int, size: int) -> range:
    """Positions of the part of n things that `rank` of `size` takes: consecutive, and as equal as they can be."""
    return range(rank * n // size, (rank + 1) * n // size)


def mirrored_share(n: int, rank: int, size: int) -> list[int]:
    """As `share`, with the position n - 1 - i for every position i: mixup blends these two pictures."""
    half = share(-(-n // 2), rank, size)
    return sorted({*half, *(n - 1 - position for position in half)})


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed[dist.get_rank()]


def gathered(tensor: Tensor) -> Tensor:
    """Tensors of one shape from all ranks, (ranks, ...). Gradients of all ranks' losses reach the tensor."""
    found: Tensor = _Gathered.apply(tensor)
    return found


def gathered_rows(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, in the order of the ranks. counts: number of rows of each rank."""
    padded = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, max(counts) - len(rows)))
    return torch.cat([part[:count] for part, count in zip(gathered(padded), counts, strict=True)])


class GlobalBatchNorm(TorchFunctionMode):
    """Inside, batch norm that trains takes its statistics from the batch of all ranks.

    torch.nn.SyncBatchNorm does the same, on GPUs only.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`torch.nn.functional.batch_norm` over the batch of all ranks. A rank may have no picture."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    values = input.float()
    axes = [axis for axis in range(input.ndim) if axis != 1]
    shape = [1, -1] + [1] * (input.ndim - 2)
    here = input.numel() // input.shape[1]
    own = values.sum(axes) / max(1, here)
    squares = (values - own.view(shape)).square().sum(axes)
    counts, means, deviations = gathered(torch.stack([torch.full_like(own, here), own, squares])).unbind(1)
    n = counts.sum(0)
    # Chan, Golub & LeVeque (1979): variances of parts and their means give the variance of the whole.
    mean = (counts * means).sum(0) / n
    variance = (deviations + counts * (means - mean).square()).sum(0) / n
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((variance * n / (n - 1).clamp_min(1)).to(running_var.dtype), momentum)
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    normalized = (values - mean.view(shape)) * scale.view(shape)
    return (normalized if bias is None else normalized + bias.view(shape)).to(input.dtype)
