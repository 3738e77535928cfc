"""Batches for the training loop, made of pictures that are decoded and augmented anew in every epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.computing.device_stream import copied_ahead
from finetune.config import Config
from finetune.data.loader import Batch, Pictures, Shuffle, check_unchanged, decoded, worker_count
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError
from finetune.features.forward import in_memory, run_frozen

# Decoded validation pictures stay in memory between epochs if they take at most this many bytes.
VALIDATION_MEMORY = 1 << 30


@dataclass(frozen=True)
class TrainingData:
    """Training and validation pictures.

    Attributes:
        pictures: All pictures, in their training view.
        indices: Positions of the training pictures, ascending.
        labels: Classes of all pictures, shape (all pictures,), int64.
        val: The validation pictures, in their evaluation view.
        val_labels: Their classes, shape (m,).
        class_weights: Shape (classes,); None for equal weights.
        preprocessing: Normalisation of the pictures.
        hashes: sha256 of every picture of `pictures` when the run first read it.
        val_hashes: The same for `val`.
    """

    pictures: Pictures
    indices: list[int]
    labels: Tensor
    val: Pictures
    val_labels: Tensor
    class_weights: Tensor | None
    preprocessing: Preprocessing
    hashes: Sequence[str]
    val_hashes: Sequence[str]

    @property
    def fingerprint(self) -> str:
        """A hash of the training pictures and their labels."""
        learned = [(self.hashes[index], int(self.labels[index])) for index in self.indices]
        return hashlib.sha256(json.dumps(learned).encode()).hexdigest()


@dataclass(frozen=True)
class TrainingBatch:
    """A batch, or the share of one process in it.

    Attributes:
        index: Positions of n pictures, shape (n,).
        inputs: The learner's inputs (n, ...), on its device.
        whole: Number of pictures in the batch of all processes.
    """

    index: Tensor
    inputs: Tensor
    whole: int

    def __len__(self) -> int:
        return self.whole


# Positions of the pictures of a batch of this size that one of several processes takes, ascending.
Share = Callable[[int], Sequence[int]]


def take_all(n: int) -> Sequence[int]:
    """The share of the only process."""
    return range(n)


class Inputs(Protocol):
    """A source of batches, with the part of the network that they train.

    Attributes:
        name: The source in a few words. Sources of one name have the same batches in an epoch.
        learner: Inputs (n, ...) to logits (n, classes), with parameters of the network. The network's `train` and
            `eval` set its mode.
    """

    @property
    def name(self) -> str: ...
    @property
    def learner(self) -> nn.Module: ...

    def batches(self, first_epoch: int, epochs: int, share: Share = take_all) -> Iterator[TrainingBatch]:
        """Every training picture once an epoch in `epoch_order`, from `first_epoch` to before `epochs`.

        share: Of each batch.
        """
        ...

    def validation_logits(self) -> Tensor:
        """Logits (m, classes) of the validation pictures by the current network, float32 on the CPU."""
        ...


class PictureInputs:
    """Pictures that are decoded and augmented anew in every epoch, for the whole network."""

    name = "pictures seen anew in every epoch"  # checkpoints hold this text

    def __init__(self, fabric: Fabric, network: nn.Module, config: Config, material: TrainingData):
        self.learner = network
        self._fabric, self._config, self._material = fabric, config, material
        self._val = self._decoded(material.val)

    def batches(self, first_epoch: int, epochs: int, share: Share = take_all) -> Iterator[TrainingBatch]:
        material, device, size = self._material, self._fabric.device, self._material.preprocessing.size
        keys = Shuffle(material.pictures.seed, material.indices, self._config.batch_size, first_epoch, epochs)
        loader = decoded(
            material.pictures,
            ([batch[position] for position in share(len(batch))] for batch in keys),
            workers=worker_count(self._config.workers, len(material.indices), beside_cpu=device.type == "cpu"),
        )

        def pixels_of_batches() -> Iterator[tuple[tuple[Tensor, int], Tensor]]:
            for whole, batch in zip(keys, loader, strict=True):
                check_unchanged(batch.contents, material.pictures, material.hashes)
                pixels = batch.pixels if len(batch.index) else torch.empty(0, 3, size, size, dtype=torch.uint8)
                yield (batch.index, len(whole)), pixels

        for (index, whole), pixels in copied_ahead(pixels_of_batches(), device):
            yield TrainingBatch(index, material.preprocessing.normalize(pixels), whole)

    def validation_logits(self) -> Tensor:
        material = self._material
        outputs = run_frozen(
            self._fabric, self.learner, material.preprocessing, self._val, workers=self._config.workers
        )
        if len(outputs.index) < len(material.val_labels):
            raise InputError("some validation pictures can no longer be read; start a new run")
        return outputs.values[:, 0]

    def _decoded(self, val: Pictures) -> Pictures | list[Batch]:
        """The validation pictures, read once if they fit in memory."""
        if len(val) * 3 * self._material.preprocessing.size**2 > VALIDATION_MEMORY:
            return val
        batches = in_memory(self._fabric, val, self._config.workers)
        for batch in batches:
            check_unchanged(batch.contents, val, self._material.val_hashes)
        return batches
