"""Milliseconds that a frozen network takes for a picture on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.data.loader import cores
from finetune.features.acceleration import Forward, accelerated, plain, worth_accelerating
from finetune.features.extraction import StageReader
from finetune.models.device import reproducible_numerics
from finetune.progress import Display

# Each time is the least of so many, which other programs disturb less than a mean.
REPETITIONS = 3
# A network that takes longer than this for one picture is timed once, on few pictures.
_SLOW, _FEW = 0.5, 4


@dataclass(frozen=True)
class Speed:
    """Time of a network without reading pictures: the least of REPETITIONS.

    On a CPU it is processor time, so that other programs on the machine do not count.

    Attributes:
        ms: Milliseconds a picture in full batches, all cores at work.
        ms_single: Milliseconds of one picture by itself, on one core.
        runtime: How full batches ran, such as "plain float32" or "OpenVINO f32".
    """

    ms: float
    ms_single: float
    runtime: str


def measure_speed(reader: StageReader, display: Display) -> Speed:
    """Time the network of a reader on its first pictures.

    Full batches run as they do where pictures are read: accelerated where the pictures are many, and always on a GPU.
    For reading, a small network is converted from more pictures on than a large one; here all run the same way. A
    single picture runs in plain PyTorch, as in predictions.

    Args:
        reader: The network and its pictures.
        display: Shows one line when the network cannot be converted.
    """
    model, device = reader.model, reader.fabric.device
    on_cpu = device.type == "cpu"
    unconverted = plain(reader.fabric, reader.network)
    pixels = reader.examples().to(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each core of a forward pass
    try:
        with reproducible_numerics(device):
            single = _least(unconverted, pixels[:1], on_cpu)
            slow = single > _SLOW
            batch = _filled(pixels, _FEW if slow else model.batch_size)
            if reader.config.precision != "auto" or not worth_accelerating(device, len(reader.pictures)):
                run, runtime = unconverted, "plain PyTorch"
            elif model.checked:
                model.prepare()
                run, runtime = model, model.runtime or model.name
            else:
                way = accelerated(
                    reader.network,
                    batch,
                    device=device,
                    batch_size=len(batch),
                    pictures=len(reader.pictures),
                    display=display,
                )
                run, runtime = way.run, way.name
            seconds = _least(run, batch, on_cpu, 1 if slow else REPETITIONS)
    finally:
        torch.set_num_threads(threads)
    return Speed(1000 * seconds / len(batch) / (cores() if on_cpu else 1), 1000 * single, runtime)


def _least(run: Forward, batch: Tensor, on_cpu: bool, repetitions: int = REPETITIONS) -> float:
    """Seconds of one call, the first one not counted."""
    clock: Callable[[], float] = time.process_time if on_cpu else time.perf_counter
    found = []
    if repetitions > 1:
        run(batch).cpu()
    for _ in range(repetitions):
        start = clock()
        run(batch).cpu()  # waits for a GPU
        found.append(clock() - start)
    return min(found)


def _filled(pixels: Tensor, size: int) -> Tensor:
    """`size` pictures, repeated where there are fewer."""
    return pixels.repeat(-(-size // len(pixels)), 1, 1, 1)[:size]
