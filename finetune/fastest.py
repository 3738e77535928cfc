"""A frozen module run over pictures as fast as its precision allows: which way that is, and whole batches for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.data.transforms import Normalized
from finetune.frozen import CPU_BATCH, GPU_BATCH
from finetune.runtime import TOLERANCE, WORTH_CONVERTING, Run, accelerated, filled, plain


class Fastest:
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
        self._run: Run | None = plain(fabric, module) if precision == "bfloat16" else None
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
