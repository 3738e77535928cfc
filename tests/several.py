"""Several processes that train together, forked from this one: torch is imported already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

_SECONDS = 300


def several(count: int, folder: Path, function: Callable[[int], None]) -> list[tuple[int | None, str]]:
    """Call `function(rank)` in `count` processes that torch.distributed can connect; 1 is a process alone.

    folder: For their output. Returns the exit code of each and what it printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"output{rank}" for rank in range(count)]
    processes = [context.Process(target=_run, args=(rank, count, port, files[rank], function)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
    return [(process.exitcode, file.read_text()) for process, file in zip(processes, files, strict=True)]


def weights_of_last_step() -> dict[str, Tensor]:
    """The trained weights of this process after the latest step of any optimiser, by position."""
    found: dict[str, Tensor] = {}

    def keep(optimizer: Optimizer, *_: object) -> None:
        tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        found.update({str(number): tensor.detach().contiguous().clone() for number, tensor in enumerate(tensors)})

    register_optimizer_step_post_hook(keep)
    return found


def _run(rank: int, count: int, port: str, output: Path, function: Callable[[int], None]) -> None:
    # A forked process must not use the threads of its parent.
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = open(descriptor, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if count > 1:
        names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
        os.environ.update(zip(names, map(str, (rank, rank, count, count, "127.0.0.1", port)), strict=True))
    code = 1
    try:
        function(rank)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)
