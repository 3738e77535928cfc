"""A network as an ONNX graph, by torch's exporter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def onnx_program(
    network: nn.Module,
    batch: Tensor,
    *,
    names: Sequence[str] | None = None,
    opset: int | None = None,
) -> Any:
    """Export a network as torch's ONNXProgram, weights included, for batches of the size of `batch`.

    names: Of the input and of each output, for batches of any size.
    """
    options: dict[str, Any] = {}
    if names is not None:
        options = {
            "input_names": [names[0]],
            "output_names": list(names[1:]),
            "dynamic_shapes": ({0: torch.export.Dim("n", min=1)},),
        }
    options |= {"dynamo": True, "verbose": False, "opset_version": opset}
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
    """Hide the exporter's warnings about its own code, and its log of constants that it does not fold."""
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
