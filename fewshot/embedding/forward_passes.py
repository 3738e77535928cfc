"""The forward pass of an encoder: the fastest way for so many pictures, chosen once for each size of a batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fewshot.embedding.encoder import EncoderSpec
from finetune.config import MAX_PIXELS
from finetune.data.loader import Pictures
from finetune.data.transforms import Normalized
from finetune.features.acceleration import (
    CPU_ALONE,
    Acceleration,
    Forward,
    accelerated,
    one_at_a_time,
    within,
    worth_accelerating,
)
from finetune.progress import Display

# Pictures on which faster ways of a GPU are checked. A GPU waits while they are decoded.
_EXAMPLES = 32
# The picture on which a network compiled for one picture at a time is checked.
_GRADIENT = np.add.outer(np.arange(128), np.arange(128)).astype(np.uint8)


class ForwardPasses:
    """Ways to run an encoder.

    Args:
        network: In evaluation mode, on `device`.
        spec: What it reads.
        device: Where it runs.
        tolerance: Smallest cosine between its vectors and those of plain float32, in (0, 1].

    Attributes:
        module: What runs: the network, with its normalisation where pictures are given as pixels.
        chosen: The ways that were chosen, by size of a batch.
    """

    def __init__(self, network: nn.Module, spec: EncoderSpec, device: torch.device, tolerance: float):
        self.module = network if spec.preprocessing is None else Normalized(network, spec.preprocessing).eval()
        self._spec, self._device, self._tolerance = spec, device, tolerance
        self.chosen: dict[int, Acceleration] = {}

    def of(self, pictures: Pictures, batch_size: int, display: Display, count: int | None = None) -> Forward:
        """The fastest way for pictures such as these.

        count: Number of pictures, where it is not that of `pictures`.
        """
        count = len(pictures) if count is None else count
        if batch_size not in self.chosen:
            checked = worth_accelerating(self._device, count, self._tolerance)
            chosen = accelerated(
                self.module,
                self._example(pictures, batch_size) if checked else torch.empty(0),
                device=self._device,
                batch_size=batch_size,
                pictures=count,
                tolerance=self._tolerance,
                display=display,
            )
            if not chosen.reusable:
                return chosen.run
            self.chosen[batch_size] = chosen
        return self.chosen[batch_size].run

    def compile_alone(self, display: Display) -> bool:
        """Compile the network for batches of one picture, see `Embedder.compile_alone`; whether it was compiled."""
        if self._device.type != "cpu" or self._tolerance >= 1:
            return False
        pictures = Pictures([_GRADIENT], self._spec.view(), self._spec.decoded_side, MAX_PIXELS)
        run = one_at_a_time(self.module, self._example(pictures, 1), agree=within(self._tolerance), display=display)
        if run is None:
            return False
        self.chosen[CPU_ALONE] = Acceleration(run, "OpenVINO f32, one picture at a time")
        return True

    def _example(self, pictures: Pictures, batch_size: int) -> Tensor:
        """The network's input for the readable ones of the first pictures, at most a batch."""
        count = batch_size if self._device.type == "cpu" else min(batch_size, _EXAMPLES)
        readable = pictures.batch(range(min(count, len(pictures)))).pixels.to(self._device)
        return self._spec.network_input(readable) if len(readable) else readable
