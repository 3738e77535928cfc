"""A frozen network run faster than it is: by an inference runtime on a CPU, in half precision on a GPU, and checked."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.data.loader import cores
from finetune.data.transforms import Normalized
from finetune.errors import reason_of
from finetune.models.onnx_graph import onnx_program

# Converting takes seconds, in which as many pictures as these have gone through the network as it is.
WORTH_CONVERTING = 400
# torch.compile takes longer, and a GPU does more meanwhile.
WORTH_COMPILING = 20_000

# Cosine that each output keeps with that of plain float32.
TOLERANCE = 0.999
# The check sees a few pictures of many: what it allows is so much nearer to 1.
_CAUTION = 2.0
# Numbers that a core is shown at once: of more pictures, what passes between layers does not stay in its cache.
_AT_ONCE = 400_000
# Batches are filled up to one size. A smaller part of one than this is seen sooner by a network that needs no filling.
_FEW = 1 / 4


# Pictures at once: on a CPU so few that what passes between layers stays in the cache of a core.
CPU_BATCH, GPU_BATCH = 16, 256


class Forward(Protocol):
    """A network as it is called: one batch, on the network's device, to float32 outputs (n, width) there."""

    def __call__(self, batch: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Acceleration:
    """How a network runs. name: in a few words. closeness: the smallest cosine with plain float32 that was seen.

    lasting: whether it holds for more pictures than it was chosen for.
    """

    run: Forward
    name: str
    closeness: float = 1.0
    lasting: bool = True


def plain(fabric: Fabric, network: nn.Module) -> Forward:
    """The network as it is, in evaluation mode and in the precision of `fabric`."""

    def run(batch: Tensor) -> Tensor:
        with torch.no_grad(), fabric.autocast():
            return network(batch).float()  # type: ignore[no-any-return]

    return run


def accelerated(
    network: nn.Module,
    example: Callable[[], Tensor],
    *,
    device: torch.device,
    batch_size: int,
    pictures: int,
    tolerance: float = TOLERANCE,
    announce: Callable[[str], None],
) -> Acceleration:
    """The fastest way to run `network`, which is in evaluation mode, whose outputs keep to `tolerance`.

    example: gives a batch of what it will see, on `device`, by which each way is checked against plain float32; not
    called where nothing is to be checked. batch_size: the most that will come at once. pictures: how many will come in
    all; few are not worth converting for. tolerance: cosine that each output must keep with plain float32's; 1 for
    exactly that. announce: told, once, when a network cannot be converted.
    """
    exact = Acceleration(_exact(network), "plain float32")
    on_cpu = device.type == "cpu"
    if tolerance >= 1:
        return exact
    if (on_cpu and pictures < WORTH_CONVERTING) or not len(seen := example()):
        return replace(exact, lasting=False)
    wanted = exact.run(seen)
    try:
        for name, run in (_on_cpu if on_cpu else _on_gpu)(network, seen, batch_size, pictures):
            closeness = _closeness(run(filled(seen, batch_size))[: len(seen)], wanted)
            if closeness >= 1 - (1 - tolerance) / _CAUTION:
                return Acceleration(run, name, closeness)
    # Converters raise arbitrary errors; fall back to eager.
    except Exception as error:
        announce(f"The network runs in plain PyTorch, more slowly: it cannot be converted ({reason_of(error)}).")
    return exact


def _exact(network: nn.Module) -> Forward:
    def run(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return network(batch).float()  # type: ignore[no-any-return]

    return run


def _closeness(found: Tensor, wanted: Tensor) -> float:
    """The smallest cosine of two rows; -1 where something is not finite."""
    if not found.isfinite().all():
        return -1.0
    return float(F.cosine_similarity(found.double(), wanted.double()).min())


# --- on a CPU: OpenVINO -----------------------------------------------------------------------------------------------


def _on_cpu(network: nn.Module, example: Tensor, batch_size: int, pictures: int) -> Iterator[tuple[str, Forward]]:
    """The ways to run it on a CPU, the fastest first."""
    import openvino  # here, because it takes a while to import

    core = openvino.Core()
    at_once = min(batch_size, max(1, _AT_ONCE // example[0].numel()))
    model = core.read_model(_onnx(network, filled(example[:at_once], at_once)))
    precisions = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    for precision, hint in (("BF16", "bf16"), ("FP32", "f32")):
        if precision in precisions:
            options = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": cores(), "INFERENCE_NUM_THREADS": cores()}
            yield f"OpenVINO {hint}", _Compiled(core.compile_model(model, "CPU", options), at_once, _exact(network))


def _onnx(network: nn.Module, batch: Tensor) -> bytes:
    """The network for batches of one size, weights included."""
    file = io.BytesIO()
    onnx_program(network, batch, optimize=False).save(file)  # OpenVINO does that faster
    return file.getvalue()


class _Compiled:
    """A compiled model that several threads may call: each has a request of its own, and each request one core.

    at_once: pictures that it takes. uncompiled: how a few are run.
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
    """A batch of `size`, filled up with zeros: no picture's output depends on its neighbours in evaluation mode."""
    missing = batch.new_zeros((size - len(batch), *batch.shape[1:]))
    return torch.cat([batch, missing]).contiguous() if len(missing) else batch.contiguous()


# --- on a GPU: half precision -----------------------------------------------------------------------------------------


def _on_gpu(network: nn.Module, example: Tensor, batch_size: int, pictures: int) -> Iterator[tuple[str, Forward]]:
    """The ways to run it on a GPU, the fastest first. float16 before bfloat16: as fast, and eight times as fine."""
    network = network.to(memory_format=torch.channels_last)
    for name, precision in (("float16", torch.float16), ("bfloat16", torch.bfloat16)):
        half = _half(network, precision)
        if pictures >= WORTH_COMPILING:
            yield f"compiled, {name}", _filling(_half(torch.compile(network), precision), batch_size, half)
        yield name, half


def _half(network: Callable[[Tensor], Tensor], precision: torch.dtype) -> Forward:
    def run(batch: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cuda", precision):
            return network(batch).float()

    return run


def _filling(compiled: Forward, size: int, uncompiled: Forward) -> Forward:
    """compiled: for batches of one `size`, so that it is compiled once. uncompiled: how a few pictures are run."""

    def run(batch: Tensor) -> Tensor:
        return uncompiled(batch) if len(batch) <= _FEW * size else compiled(filled(batch, size))[: len(batch)]

    return run


class AcceleratedModel:
    """`module` as fast as `precision` allows, found when it is first needed.

    example: gives pictures that it will see, uint8 (n, 3, size, size), by which each way is checked. pictures: how many
    it will see in all. precision: as in `Config`. announce: as for `accelerated`. name: which way it is.
    """

    def __init__(
        self,
        fabric: Fabric,
        module: Normalized,
        example: Callable[[], Tensor],
        *,
        pictures: int,
        precision: str,
        announce: Callable[[str], None],
    ):
        self._fabric, self._module, self._example, self._announce = fabric, module, example, announce
        self._pictures = pictures
        self._run: Forward | None = plain(fabric, module) if precision == "bfloat16" else None
        self._tolerance = 1.0 if precision == "float32" else TOLERANCE
        self.batch_size = CPU_BATCH if fabric.device.type == "cpu" else GPU_BATCH
        self.checked = precision == "auto" and pictures >= WORTH_CONVERTING
        self.name = f"within {TOLERANCE} of float32" if self.checked else precision.replace("auto", "float32")

    def prepare(self) -> None:
        """Find it, once; threads may call from then on."""
        if self._run is not None:
            return
        self._run = accelerated(
            self._module,
            lambda: self._example()[: self.batch_size].to(self._fabric.device),
            device=self._fabric.device,
            batch_size=self.batch_size,
            pictures=self._pictures,
            tolerance=self._tolerance,
            announce=self._announce,
        ).run

    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, width) float32 on the CPU of n pictures as their view made them."""
        assert self._run is not None, "prepare() comes first"
        return self._run(pixels.to(self._fabric.device, non_blocking=True)).cpu()

    def whole(self, pixels: Tensor) -> Tensor:
        """The same, always in batches of one size: no picture's numbers depend on how many others are seen with it."""
        parts = pixels.split(self.batch_size)
        return torch.cat([self(filled(part, self.batch_size))[: len(part)] for part in parts])
