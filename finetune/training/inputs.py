"""What the training loop is shown: batches for the part that learns, here of pictures seen anew in every epoch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.config import Config
from finetune.data.loader import Batch, Pictures, check_unchanged, shuffled, worker_count
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError
from finetune.features.forward import in_memory, run_frozen

# Decoded validation pictures are kept in memory between epochs up to so many bytes.
VALIDATION_MEMORY = 1 << 30


@dataclass(frozen=True)
class TrainingData:
    """What is learned from. indices: in `pictures`, ascending; labels (all pictures,) int64, by index.

    val: the validation pictures in order; val_labels (m,) theirs. class_weights (classes,) or None. hashes, val_hashes:
    the sha256 of each picture of `pictures`, and of `val`, when the run first read it.
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
        """What is learned from, in one short text: which pictures, and their labels."""
        learned = [(self.hashes[index], int(self.labels[index])) for index in self.indices]
        return hashlib.sha256(json.dumps(learned).encode()).hexdigest()


@dataclass(frozen=True)
class TrainingBatch:
    """One batch. index (n,): which pictures. inputs (n, ...): what the learner maps to logits, on its device."""

    index: Tensor
    inputs: Tensor

    def __len__(self) -> int:
        return len(self.index)


class Inputs(Protocol):
    """Where the batches come from, and what maps them to logits.

    name: in a few words; what two of one name show in an epoch is the same. learner: inputs (n, ...) to logits
    (n, classes), made of the network's own parameters; the network's `train` and `eval` set its mode.
    """

    @property
    def name(self) -> str: ...
    @property
    def learner(self) -> nn.Module: ...

    def batches(self, first_epoch: int, epochs: int) -> Iterator[TrainingBatch]:
        """Every training picture once an epoch, from `first_epoch` to before `epochs`, in `epoch_order`."""
        ...

    def validation_logits(self) -> Tensor:
        """Logits (m, classes) of the validation pictures by the network as it now is, float32 on the CPU."""
        ...


class PictureInputs:
    """Pictures, decoded and seen anew in every epoch, for a network that runs whole."""

    name = "pictures seen anew in every epoch"

    def __init__(self, fabric: Fabric, network: nn.Module, config: Config, material: TrainingData):
        self.learner = network
        self._fabric, self._config, self._material = fabric, config, material
        self._val = self._decoded(material.val)

    def batches(self, first_epoch: int, epochs: int) -> Iterator[TrainingBatch]:
        material, device = self._material, self._fabric.device
        loader = shuffled(
            material.pictures,
            material.indices,
            batch_size=self._config.batch_size,
            first_epoch=first_epoch,
            epochs=epochs,
            workers=worker_count(self._config.workers, len(material.indices), beside_cpu=device.type == "cpu"),
        )
        for batch in loader:
            check_unchanged(batch.contents, material.pictures, material.hashes)
            yield TrainingBatch(
                batch.index, material.preprocessing.normalize(batch.pixels.to(device, non_blocking=True))
            )

    def validation_logits(self) -> Tensor:
        material = self._material
        outputs = run_frozen(
            self._fabric, self.learner, material.preprocessing, self._val, workers=self._config.workers
        )
        if len(outputs.index) < len(material.val_labels):
            raise InputError(
                "validation pictures that could be read at the start of the run cannot now; start a new run"
            )
        return outputs.values[:, 0]

    def _decoded(self, val: Pictures) -> Pictures | list[Batch]:
        """The validation pictures, read once and for all where memory holds them."""
        if len(val) * 3 * self._material.preprocessing.size**2 > VALIDATION_MEMORY:
            return val
        batches = in_memory(self._fabric, val, self._config.workers)
        for batch in batches:
            check_unchanged(batch.contents, val, self._material.val_hashes)
        return batches
