"""A network as an ONNX graph: torch's exporter, told once how."""

from __future__ import annotations

import warnings
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own ways
        return torch.onnx.export(
            network, (batch,), dynamo=True, verbose=False, opset_version=opset, optimize=optimize, **options
        )
