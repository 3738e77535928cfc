"""Where and in which precision the network runs: one Lightning Fabric, set up from two options."""

from __future__ import annotations

import ctypes
import logging
import os
import sys

import torch
from lightning_fabric import Fabric
from torch import nn

from finetune.errors import InputError
from finetune.options.suggestions import CHOICES, did_you_mean


def open_engine(device: str = "auto", precision: str = "auto") -> Fabric:
    """A Fabric on one device. device: "auto", "cpu" or "cuda"; precision: "auto", "float32" or "bfloat16".

    "auto" takes a GPU when there is one, and bfloat16 where the processor computes in it. InputError when a GPU is
    asked for and there is none.
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
    if device == "cuda":
        # As near to the same numbers for the same seed as speed allows: cuBLAS and cuDNN keep to one order of adding.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    else:
        _keep_freed_memory()
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" or _cpu_has_bfloat16() else "float32"
    # Fabric logs its precision plugin each time; config.json says it.
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    fabric = Fabric(accelerator=device, devices=1, precision="bf16-mixed" if precision == "bfloat16" else "32-true")
    fabric.launch()
    return fabric


def engine_to_train(fabric: Fabric, network: nn.Module, precision: str) -> Fabric:
    """`fabric`, or one in float32 where training in bfloat16 would be slower, when `precision` is "auto".

    On CPUs the backward pass of grouped and depthwise convolutions has no fast kernel in bfloat16, while plain
    convolutions gain.
    """
    grouped = any(isinstance(module, nn.Conv2d) and module.groups > 1 for module in network.modules())
    if precision == "auto" and fabric.device.type == "cpu" and grouped:
        return open_engine("cpu", "float32")
    return fabric


def describe(fabric: Fabric) -> dict[str, str]:
    """Device, precision and versions, for config.json."""
    device = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else "cpu"
    return {"device": device, "precision": str(fabric._precision.precision), "torch": torch.__version__}


def _cpu_has_bfloat16() -> bool:
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks rather than give each back: fresh, zeroed pages cost a pass much of its time."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        mmap_max, trim_threshold, arena_max = -4, -1, -8  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 1 << 30)
        # An arena of a thread's own is trimmed all the same.
        libc.mallopt(arena_max, 1)
