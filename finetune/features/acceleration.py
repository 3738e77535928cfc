"""Faster ways to run a frozen network, compared with plain float32: OpenVINO on a CPU, half precision on a GPU."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.computing.openvino_module import openvino_core, openvino_module
from finetune.data.loader import Pictures, check_unchanged, cores
from finetune.data.transforms import Normalized
from finetune.models.device import reproducible_numerics
from finetune.progress import Display
from finetune.terminal import reason_of

# Converting takes seconds, the time that plain PyTorch needs for this many pictures in a network of so many
# multiplications a picture. These are of tf_efficientnet_lite0; in a smaller network it takes more pictures.
WORTH_CONVERTING, MULTIPLICATIONS = 400, 384e6
# torch.compile takes about so many seconds, and saves about this share of the time of a picture on a GPU.
COMPILING, COMPILING_SAVES = 45.0, 0.25

# Least cosine between each output and the output of plain float32.
TOLERANCE = 0.999
# The comparison uses a few pictures out of many, so it allows only this fraction of the tolerated difference: 1 / 2.
_CAUTION = 2.0
# Numbers in one batch of a core. With more, the activations between layers do not stay in the core's cache.
_AT_ONCE = 400_000
# Batches are padded to one size. Below this share of it, the network that needs no padding is faster.
_FEW = 1 / 4


# Pictures in a batch. On a CPU the activations between layers then stay in the cache of a core.
CPU_BATCH, GPU_BATCH = 16, 256
# The same where no output may depend on the other pictures. On a GPU, a few pictures take as long as one.
CPU_ALONE, GPU_ALONE = 1, 32


class Forward(Protocol):
    """A network as it is called: one batch, on the network's device, to float32 outputs (n, ...)."""

    def __call__(self, batch: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Acceleration:
    """A way to run a network, such as "OpenVINO f32", and its smallest cosine with plain float32 over the examples.

    reusable: Whether the choice also holds for a larger number of pictures.
    """

    run: Forward
    name: str
    closeness: float = 1.0
    reusable: bool = True


@dataclass(frozen=True)
class Examples:
    """The pictures, by position, on which faster ways to run a network are compared with plain float32.

    hashes: sha256 of every picture, by position, where they are known already.
    """

    pictures: Pictures
    indices: Sequence[int]
    hashes: Sequence[str] | None = None

    def read(self) -> Tensor:
        """The readable examples, uint8 (n, 3, size, size). InputError for one that no longer has its hash."""
        batch = self.pictures.batch(self.indices)
        if self.hashes is not None:
            check_unchanged(batch.contents, self.pictures, self.hashes)
        return batch.pixels.flatten(0, 1) if batch.pixels.ndim == 5 else batch.pixels


def plain(fabric: Fabric, network: nn.Module) -> Forward:
    """The network in PyTorch, without gradients, in the precision of `fabric`."""

    def run(batch: Tensor) -> Tensor:
        with torch.no_grad(), fabric.autocast():
            outputs: Tensor = network(batch)
            return outputs.float()

    return run


def multiplications(network: Normalized) -> int:
    """Multiplications of the network for one picture."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because it imports Triton

    side = network.preprocessing.size
    tensors = chain(network.parameters(), network.buffers())
    picture = torch.zeros(1, 3, side, side, dtype=torch.uint8, device=next(tensors).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        network(picture)
    return int(counted.get_total_flops()) // 2


def worth_accelerating(device: torch.device, pictures: int, tolerance: float = TOLERANCE) -> bool:
    """Whether `accelerated` looks for a faster way, and therefore needs example pictures."""
    return tolerance < 1 and (device.type != "cpu" or pictures >= WORTH_CONVERTING)


def accelerated(
    network: nn.Module,
    example: Tensor,
    *,
    device: torch.device,
    batch_size: int,
    pictures: int,
    tolerance: float = TOLERANCE,
    display: Display,
) -> Acceleration:
    """The fastest way to run a frozen network whose outputs stay within a tolerance.

    Args:
        network: Network in evaluation mode.
        example: Batch of typical inputs on `device`, on which every way is compared with plain float32. Without a
            picture, as where `worth_accelerating` is false, the network runs in plain float32.
        device: Device of the network.
        batch_size: Largest number of pictures in one call.
        pictures: Number of pictures in all. Converting pays off from WORTH_CONVERTING on.
        tolerance: Least cosine, in (0, 1], between an output and that of plain float32; 1 for plain float32 itself.
        display: Shows one line when the network cannot be converted.

    Returns:
        The way to run it.
    """
    exact = Acceleration(_exact(network), "plain float32")
    if tolerance >= 1:
        return exact
    if not worth_accelerating(device, pictures, tolerance) or not len(example):
        return replace(exact, reusable=False)
    expected = exact.run(example)
    candidates = _on_cpu if device.type == "cpu" else _on_gpu
    try:
        with reproducible_numerics(device):
            for name, run in candidates(network, example, batch_size, pictures):
                closeness = _closeness(run(filled(example, batch_size))[: len(example)], expected)
                if _is_close(closeness, tolerance):
                    return Acceleration(run, name, closeness)
    # Converters raise arbitrary errors; fall back to eager.
    except Exception as error:
        display.say(f"The network runs in plain PyTorch, more slowly: it cannot be converted ({reason_of(error)}).")
    return exact


def _exact(network: nn.Module) -> Forward:
    def run(batch: Tensor) -> Tensor:
        with torch.no_grad():
            outputs: Tensor = network(batch)
            return outputs.float()

    return run


def within(tolerance: float) -> Callable[[Tensor, Tensor], bool]:
    """Whether the outputs of a few examples promise that all outputs are within a cosine of those of plain float32."""
    return lambda found, expected: _is_close(_closeness(found, expected), tolerance)


def _is_close(closeness: float, tolerance: float) -> bool:
    return closeness >= 1 - (1 - tolerance) / _CAUTION


def _closeness(found: Tensor, expected: Tensor) -> float:
    """The smallest cosine between two rows; -1 where a value is not finite."""
    if not found.isfinite().all():
        return -1.0
    return float(F.cosine_similarity(found.double(), expected.double()).min())


# --- on a CPU: OpenVINO -----------------------------------------------------------------------------------------------


def _on_cpu(network: nn.Module, example: Tensor, batch_size: int, pictures: int) -> Iterator[tuple[str, Forward]]:
    """Ways to run a network on a CPU, the fastest first."""
    core = openvino_core()  # slow to import
    at_once = min(batch_size, max(1, _AT_ONCE // example[0].numel()))
    model = openvino_model(network, filled(example[:at_once], at_once))
    precisions = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, hint in (("BF16", "bf16"), ("FP32", "f32")):
        if precision in precisions:
            options = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": cores(), "INFERENCE_NUM_THREADS": cores()}
            yield f"OpenVINO {hint}", _Compiled(core.compile_model(model, "CPU", options), at_once, _exact(network))


def openvino_model(network: nn.Module, batch: Tensor) -> Any:
    """The network as OpenVINO's model for batches of the size of `batch`."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, the exporter and the converter about their own code
        model = openvino_module().convert_model(**_program(network, batch))
    model.reshape(list(batch.shape))  # sizes that are known make it faster
    return model


def _program(network: nn.Module, batch: Tensor) -> dict[str, Any]:
    """What the converter takes: a trace, or an exported program where the path through the network may depend on
    values. A trace takes seconds less, and the model is as fast. Tracing warns where Python reads a value, or a size.
    """
    with warnings.catch_warnings(), suppress(Exception):
        warnings.filterwarnings("error", category=torch.jit.TracerWarning)
        return {"input_model": torch.jit.trace(network, batch, check_trace=False), "example_input": batch}
    return {"input_model": torch.export.export(network, (batch,))}


def one_at_a_time(
    network: nn.Module, picture: Tensor, *, agree: Callable[[Tensor, Tensor], bool], display: Display
) -> Forward | None:
    """A network on a CPU, compiled in float32 for one picture at a time; several threads may call it.

    What it gives for a picture is bit for bit the same in every batch.

    Args:
        network: Network in evaluation mode.
        picture: An input (1, ...), on which it is compared with plain float32.
        agree: Whether outputs (1, ...) are close enough to those of plain float32.
        display: Shows why the network stays as it is.

    Returns:
        None where it cannot be compiled, or its outputs do not agree.
    """
    options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": cores(), "INFERENCE_NUM_THREADS": cores()}
    try:
        core = openvino_core()  # slow to import
        compiled = _OneAtATime(core.compile_model(openvino_model(network, picture), "CPU", options))
        if agree(compiled(picture), _exact(network)(picture)):
            return compiled
        reason = "compiled, it gives other numbers"
    # Converters raise arbitrary errors; fall back to eager.
    except Exception as error:
        reason = f"it cannot be converted ({reason_of(error)})"
    display.say(f"The network runs in plain PyTorch, more slowly: {reason}.")
    return None


class _OneAtATime:
    """A compiled model for batches of one. Requests are kept for later calls, which may come from other threads."""

    def __init__(self, model: Any):
        self._model = model
        self._free: SimpleQueue[Any] = SimpleQueue()

    def __call__(self, batch: Tensor) -> Tensor:
        try:
            request = self._free.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        try:
            pictures = batch.contiguous().numpy()
            rows = [
                np.array(request.infer([pictures[row : row + 1]], share_inputs=True, share_outputs=True)[0], np.float32)
                for row in range(len(pictures))
            ]
        finally:
            self._free.put(request)
        return torch.from_numpy(np.concatenate(rows))


class _Compiled:
    """A compiled model that several threads may call: each thread has its own request, each request one core.

    at_once: pictures in a batch of the model. uncompiled: the network for batches of a few pictures.
    """

    def __init__(self, model: Any, at_once: int, uncompiled: Forward):
        self._model = model
        self._at_once = at_once
        self._uncompiled = uncompiled
        self._of_thread = threading.local()

    def __call__(self, batch: Tensor) -> Tensor:
        if len(batch) <= _FEW * self._at_once:
            return self._uncompiled(batch)
        if not hasattr(self._of_thread, "request"):
            self._of_thread.request = self._model.create_infer_request()
        return torch.cat([self._inferred(part) for part in batch.split(self._at_once)])

    def _inferred(self, part: Tensor) -> Tensor:
        given = filled(part, self._at_once).numpy()
        found = self._of_thread.request.infer([given], share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(np.array(found[: len(part)], np.float32))  # a copy: the request reuses its own


def filled(batch: Tensor, size: int) -> Tensor:
    """The batch padded with zeros to `size` pictures; in evaluation mode no picture's output depends on the others."""
    missing = batch.new_zeros((size - len(batch), *batch.shape[1:]))
    return torch.cat([batch, missing]).contiguous() if len(missing) else batch.contiguous()


def in_full_batches(run: Forward, size: int) -> Forward:
    """`run` in batches of one size: no output depends on how many other pictures are in its batch."""
    return lambda batch: torch.cat([run(filled(part, size))[: len(part)] for part in batch.split(size)])


def size_alone(device: torch.device) -> int:
    """Pictures in a batch where no output may depend on the other pictures."""
    return CPU_ALONE if device.type == "cpu" else GPU_ALONE


def unmixed(run: Forward, device: torch.device) -> Forward:
    """`run` with outputs that do not depend on the other pictures, for batches of at most `size_alone`."""
    return run if device.type == "cpu" else in_full_batches(run, GPU_ALONE)


# --- on a GPU: half precision -----------------------------------------------------------------------------------------


def _on_gpu(network: nn.Module, example: Tensor, batch_size: int, pictures: int) -> Iterator[tuple[str, Forward]]:
    """Ways to run a network on a GPU, the fastest first. float16 is as fast as bfloat16 and 8 times more precise."""
    network = network.to(memory_format=torch.channels_last)
    for name, precision in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        half = _half(network, precision)
        if compiling_pays(pictures * _seconds(half, filled(example, batch_size)) / batch_size):
            yield f"compiled, {name}", _filling(_half(torch.compile(network), precision), batch_size, half)
        yield name, half


def compiling_pays(seconds: float) -> bool:
    """Whether torch.compile saves more time than it takes, for a collection that takes so many seconds without it."""
    return seconds * COMPILING_SAVES > COMPILING


def _seconds(run: Forward, batch: Tensor) -> float:
    """Duration of a batch on a GPU, after one that sets things up."""
    run(batch).cpu()
    started = time.perf_counter()
    run(batch).cpu()
    return time.perf_counter() - started


def _half(network: Forward, precision: torch.dtype) -> Forward:
    def run(batch: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(batch.device.type, precision):
            return network(batch).float()

    return run


def _filling(compiled: Forward, size: int, uncompiled: Forward) -> Forward:
    """`compiled` on batches padded to one size, so that it is compiled once; `uncompiled` on a few pictures."""

    def run(batch: Tensor) -> Tensor:
        return uncompiled(batch) if len(batch) <= _FEW * size else compiled(filled(batch, size))[: len(batch)]

    return run


class AcceleratedModel:
    """A frozen network, run as fast as `precision` allows. The way is chosen when it is first needed.

    Attributes:
        checked: Whether faster ways are compared with plain float32 on the examples.
        name: The accuracy of the outputs in a few words, for the key of a cache.
        runtime: The way that was chosen, such as "OpenVINO f32"; None before `prepare`.
        batch_size: Pictures in a full batch.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: Normalized,
        examples: Examples,
        *,
        pictures: int,
        precision: str,
        display: Display,
    ):
        self._fabric, self._network, self._examples, self._display = fabric, network, examples, display
        self._given = network, examples, pictures, precision
        on_cpu = fabric.device.type == "cpu"
        if on_cpu and precision == "auto" and pictures >= WORTH_CONVERTING:
            pictures = round(pictures * min(1.0, multiplications(network) / MULTIPLICATIONS))
        self._pictures = pictures
        self._run: Forward | None = plain(fabric, network) if precision == "bfloat16" else None
        self._tolerance = 1.0 if precision == "float32" else TOLERANCE
        self.batch_size = CPU_BATCH if on_cpu else GPU_BATCH
        self.checked = precision == "auto" and worth_accelerating(fabric.device, pictures)
        self.name = f"within {TOLERANCE} of float32" if self.checked else precision.replace("auto", "float32")
        self.runtime: str | None = None

    @property
    def given(self) -> tuple[Normalized, Examples, int, str]:
        """The arguments of which a model on another device is made: network, examples, pictures, precision."""
        return self._given

    def prepare(self) -> None:
        """Choose the way to run the network, once. Several threads may call the model afterwards."""
        if self._run is not None:
            return
        device = self._fabric.device
        example = torch.empty(0)
        if worth_accelerating(device, self._pictures, self._tolerance):
            example = self._examples.read()[: self.batch_size].to(device)
        way = accelerated(
            self._network,
            example,
            device=device,
            batch_size=self.batch_size,
            pictures=self._pictures,
            tolerance=self._tolerance,
            display=self._display,
        )
        self._run, self.runtime = way.run, way.name

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 pictures (n, 3, size, size) to outputs (n, width), float32, on the device of the network."""
        assert self._run is not None, "prepare() comes first"
        return self._run(pixels.to(self._fabric.device, non_blocking=True))

    def in_full_batches(self, pixels: Tensor) -> Tensor:
        """The same in batches of one size: no output depends on how many other pictures are in its batch."""
        return in_full_batches(self, self.batch_size)(pixels)
