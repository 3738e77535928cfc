"""A network as an ONNX graph: torch's exporter, told once how."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def onnx_program(
    network: nn.Module,
    batch: Tensor,
    *,
    names: tuple[str, str] | None = None,
    opset: int | None = None,
    optimize: bool = True,
) -> Any:
    """torch's ONNXProgram of `network`, weights included, for batches of the size of `batch`.

    names: of its input and output; given, batches may have any size. opset: torch's own choice where None.
    optimize: simplify the graph, which takes as long as a fifth of the rest, and which runtimes do by themselves.
    """
    options: dict[str, Any] = {}
    if names is not None:
        options = {
            "input_names": [names[0]],
            "output_names": [names[1]],
            "dynamic_shapes": ({0: torch.export.Dim("n", min=1)},),
        }
    options |= {"dynamo": True, "verbose": False, "opset_version": opset, "optimize": optimize}
    with _quiet():
        try:
            return torch.onnx.export(network, (batch,), **options)
        # The exporter raises arbitrary errors.
        except Exception:
            with _attention_written_out(network) as changed:
                if not changed:
                    raise
                return torch.onnx.export(network, (batch,), **options)


@contextmanager
def _attention_written_out(network: nn.Module) -> Iterator[bool]:
    """timm's attention as matrix products instead of one fused call, which ONNX has for 4 dimensions only (hiera's has
    5). Whether there is any."""
    fused = [module for module in network.modules() if getattr(module, "fused_attn", False) is True]
    try:
        for module in fused:
            module.fused_attn = False  # type: ignore[assignment]
        yield bool(fused)
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about its own code, and its log of what it does not simplify."""
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
