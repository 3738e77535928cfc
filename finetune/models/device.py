"""The device and the precision of a network: one Lightning Fabric, made from two options."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from lightning_fabric import Fabric
from torch import nn

from finetune.errors import InputError
from finetune.options.suggestions import CHOICES, did_you_mean
from finetune.ranks.group import joined_ranks
from finetune.shared_change import SharedChange

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def open_engine(device: str = "auto", precision: str = "auto") -> Fabric:
    """A Fabric on one device.

    Args:
        device: "cpu" or "cuda". "auto" takes a GPU where there is one.
        precision: "float32" or "bfloat16". "auto" takes bfloat16 where the processor computes in it.

    Raises:
        InputError: For a GPU that does not exist, and for another value.
    """
    if device not in ("auto", "cpu", "cuda"):
        meant = did_you_mean(str(device), ("auto", "cpu", "cuda"), CHOICES)
        raise InputError(f"--device must be one of auto, cpu, cuda, not {device!r}{meant}")
    if precision not in ("auto", "float32", "bfloat16"):
        meant = did_you_mean(str(precision), ("auto", "float32", "bfloat16"), CHOICES)
        raise InputError(f"--precision must be one of auto, float32, bfloat16, not {precision!r}{meant}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" or _cpu_has_bfloat16() else "float32"
    ranks = joined_ranks()
    # One of several processes has a GPU of its own.
    devices = 1 if ranks is None or device == "cpu" else [ranks.local_rank]
    with _fabric_warnings_only():
        fabric = Fabric(
            accelerator=device, devices=devices, precision="bf16-mixed" if precision == "bfloat16" else "32-true"
        )
        fabric.launch()
    return fabric


@contextmanager
def _fabric_warnings_only() -> Iterator[None]:
    """Fabric logs its precision plugin each time; config.json contains the precision."""
    log = logging.getLogger("lightning_fabric.utilities.rank_zero")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(before)


@SharedChange
@contextmanager
def _one_order() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    chosen = _CUBLAS in os.environ
    if not chosen:
        os.environ[_CUBLAS] = ":4096:8"
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before
        if not chosen:
            os.environ.pop(_CUBLAS, None)


def reproducible_numerics(device: torch.device) -> AbstractContextManager[None]:
    """cuBLAS and cuDNN add in one order while a job runs. Their settings are restored at the end.

    As far as speed allows, the same seed then gives the same numbers. Nothing changes on a CPU. The settings belong to
    the process, so jobs in several threads share them.
    """
    return _one_order() if device.type == "cuda" else nullcontext()


def engine_to_train(fabric: Fabric, network: nn.Module, precision: str) -> Fabric:
    """The Fabric for training a network.

    Args:
        fabric: The Fabric of the forward pass.
        network: The network that is trained.
        precision: As for `open_engine`.

    Returns:
        `fabric`; or one in float32 where the precision is "auto" and training in bfloat16 would be slower: on a CPU,
        the backward pass of grouped and depthwise convolutions has no fast kernel in bfloat16.
    """
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    if precision == "auto" and fabric.device.type == "cpu" and grouped:
        return open_engine("cpu", "float32")
    return fabric


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(fabric: Fabric) -> dict[str, str]:
    """Device, precision and versions, for config.json."""
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "cpu"
    return {"device": device, "precision": str(fabric._precision.precision), "torch": torch.__version__}


def _cpu_has_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))
