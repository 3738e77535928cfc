"""The start and the end of a job of several processes, through Lightning Fabric."""

from __future__ import annotations

import _thread
import logging
import os
import signal
import subprocess
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta

import torch
from lightning_fabric import Fabric

from finetune.entry.signals import StopSignals
from finetune.errors import InputError
from finetune.ranks.group import ProcessLost, Ranks, connection_lost, joined_ranks, registered
from finetune.ranks.launched import Launched, launched

# The others wait while rank 0 reads, measures and writes by itself.
_PATIENCE = timedelta(days=7)
# Seconds between two looks at the other processes.
_EVERY = 0.3
_LOST = "another process of this job ended unexpectedly; --resume continues the run"


@contextmanager
def joined(device: str, devices: int = 1) -> Iterator[Ranks | None]:
    """Join the other processes of a job, which torchrun or srun started; or start them.

    On rank 0, an error of another process ends the block with that error. In one process nothing happens.

    Args:
        device: "auto", "cpu" or "cuda".
        devices: Number of processes to start where no launcher did. Each runs the command of this process again.

    Yields:
        The processes; None for a job of one.

    Raises:
        InputError: If there are fewer GPUs than processes, or a launcher started another number of processes.
        ProcessLost: If another process ended, on rank 0.
    """
    found = launched()
    if devices < 1:
        raise InputError(f"--devices must be at least 1, not {devices}")
    if found is None and devices == 1:
        yield None
        return
    if found is not None and devices not in (1, found.local_size, found.size):
        raise InputError(f"--devices {devices}: the launcher has started {found.size} processes; leave --devices out")
    placed = found or Launched(0, devices, 0, devices)
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda and torch.cuda.device_count() < placed.local_size:
        raise InputError(
            f"{placed.local_size} processes need as many GPUs, and torch sees {torch.cuda.device_count()}; "
            "start fewer processes, or give --device cpu"
        )
    with ExitStack() as stack:
        stack.enter_context(_restored())
        fabric = _fabric(placed, "cuda" if cuda else "cpu", "32-true")
        fabric.launch()
        stack.callback(_leave)

        def engine(precision: str) -> Fabric:
            made = _fabric(placed, "cuda" if cuda else "cpu", precision)
            made.launch()
            return made

        ranks = Ranks(placed, engine, fabric.device)
        stack.enter_context(registered(ranks))
        if ranks.rank > 0:
            yield ranks
            return
        watch = _Watch(ranks, getattr(fabric.strategy.launcher, "procs", ()))
        watch.start()
        try:
            yield ranks
        except (RuntimeError, KeyboardInterrupt) as error:
            watch.stop()
            reported = ranks.reported()
            if reported is not None or watch.found or connection_lost(error):
                ranks.apart = True  # a process that has ended cannot be told that the job ends
                raise reported or ProcessLost(_LOST) from error
            raise
        finally:
            watch.stop()
            ranks.finish(None)


def goes_on_alone() -> bool:
    """Whether an interrupted job may keep what it has: not where another process failed, which ends the whole job.

    Rank 0 then asks nothing of the others any more, which Ctrl-C may have ended.
    """
    ranks = joined_ranks()
    if ranks is None:
        return True
    ranks.apart = True
    signals = StopSignals.installed
    # torchrun and srun send SIGTERM to all processes when one has ended.
    by_launcher = signals is not None and signals.received == signal.SIGTERM
    return not (by_launcher or ranks.lost or ranks.reported() is not None)


def _fabric(placed: Launched, accelerator: str, precision: str) -> Fabric:
    from lightning_fabric.strategies import DDPStrategy

    strategy = DDPStrategy(
        # Objects and frozen activations are exchanged in the memory of the CPU.
        process_group_backend="cpu:gloo,cuda:nccl" if accelerator == "cuda" else "gloo",
        timeout=_PATIENCE,
        forward_sync_buffers=False,  # statistics of batch norm are equal on all ranks
        static_graph=True,  # some networks have parameters without a gradient
    )
    return Fabric(
        accelerator=accelerator,
        devices=placed.local_size,
        num_nodes=placed.nodes,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
    )


@contextmanager
def _restored() -> Iterator[None]:
    """Restore the variables, the number of threads, the log level and the warnings that a job changes."""
    variables, threads, log = dict(os.environ), torch.get_num_threads(), logging.getLogger("lightning_fabric")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # DDP finds gradients of position embeddings laid out otherwise than its own memory; it copies them.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield
    finally:
        log.setLevel(level)
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(variables)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


class _Watch(threading.Thread):
    """Looks after the other processes, and interrupts the main thread when one has failed.

    found: whether a process has failed. children: those that Fabric started; a launcher looks after others itself.
    """

    def __init__(self, ranks: Ranks, children: Sequence[subprocess.Popen[bytes]]):
        super().__init__(daemon=True, name="fewtune ranks")
        self.found = False
        self._ranks, self._children, self._ended = ranks, children, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_EVERY) and not self._ranks.apart:
            if any(child.poll() for child in self._children) or self._ranks.reported() is not None:
                self.found = self._ranks.lost = True
                _thread.interrupt_main()
                return

    def stop(self) -> None:
        self._ended.set()
        if self.is_alive():
            self.join()
