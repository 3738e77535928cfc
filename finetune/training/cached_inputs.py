"""What frozen stages make of the pictures, computed once for every view, as what the training loop is shown."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.config import Config
from finetune.data.loader import Pictures, Shuffle, check_unchanged
from finetune.data.transforms import Normalized, view_seed
from finetune.errors import InputError
from finetune.features.acceleration import CPU_BATCH, GPU_BATCH, AcceleratedModel, plain
from finetune.features.cache import ActivationCache, Activations
from finetune.features.cache_keys import DTYPES, feature_key
from finetune.features.extraction import cached
from finetune.features.forward import Outputs, run_over
from finetune.models.backbone import Network, classified
from finetune.progress import Advance, Display
from finetune.training.inputs import Inputs, PictureInputs, TrainingBatch, TrainingData

# As many bytes as bfloat16 and eight times as fine; numbers beyond its range are told, and not kept.
KEPT_AS = "float16"

# Activations that the upper stages judge at once.
_JUDGED = 64


def inputs_for(
    fabric: Fabric,
    network: Network,
    config: Config,
    material: TrainingData,
    *,
    lowest: int,
    epochs: int,
    display: Display,
) -> Inputs:
    """Activations of the stages below position `lowest`, which are frozen already, for the stages from there up.

    Each training picture is seen in `config.views` views, or in as many as there are epochs where those are fewer.
    Where nothing is frozen, or activations cannot be kept, which is told, it is the pictures, for the whole network.
    """
    if lowest > 0:
        try:
            return _computed(fabric, network, config, material, lowest, min(config.views, epochs), display)
        except _NotKept as reason:
            display.say(f"The network trains uncut, so its frozen stages run again in every epoch: {reason}.")
    return PictureInputs(fabric, network, config, material)


def view_shown(seed: int, epoch: int, index: int, views: int) -> int:
    """Which of its `views` the picture at `index` is shown in, in this epoch."""
    return view_seed(seed, epoch, index, "view") % views


@dataclass(frozen=True)
class Cut:
    """A network in two. lower: in evaluation mode, pictures (n, 3, size, size), normalised, to (n, *shape).

    upper, judge: the stages from `stage` up as they are trained, and as they are in evaluation mode.
    """

    stage: str
    lower: nn.Module
    upper: nn.Module
    judge: nn.Module
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Of one view's activations, as they are kept."""
        return math.prod(self.shape) * DTYPES[KEPT_AS].itemsize


class FrozenInputs:
    """Activations that frozen stages gave once, for the stages above them.

    train: (n, views, numbers), of the training pictures in the order of material.indices. val: (m, 1, numbers).
    """

    def __init__(
        self,
        fabric: Fabric,
        network: Network,
        cut: Cut,
        config: Config,
        material: TrainingData,
        views: int,
        train: Activations,
        val: Activations,
    ):
        self.name = f"{views} views of each picture through frozen stages"
        self.learner = Upper(cut.upper, network.head)
        self._network, self._judge = network, Upper(cut.judge, network.head)
        self._fabric, self._cut, self._config, self._material = fabric, cut, config, material
        self._views, self._train, self._val = views, train, val

    def batches(self, first_epoch: int, epochs: int) -> Iterator[TrainingBatch]:
        indices, seed = self._material.indices, self._material.pictures.seed
        row = {index: position for position, index in enumerate(indices)}
        for keys in Shuffle(seed, indices, self._config.batch_size, first_epoch, epochs):
            views = [view_shown(seed, epoch, index, self._views) for epoch, index in keys]
            kept = self._train.entries([row[index] for _, index in keys], views)
            yield TrainingBatch(torch.tensor([index for _, index in keys]), self._maps(kept))

    def validation_logits(self) -> Tensor:
        self._network.eval()
        run = plain(self._fabric, self._judge)
        every = torch.arange(len(self._val))
        return torch.cat(
            [run(self._maps(self._val.entries(rows, torch.zeros_like(rows)))).cpu() for rows in every.split(_JUDGED)]
        )

    def _maps(self, kept: Tensor) -> Tensor:
        """Activations (n, numbers) as the upper stages receive them, on the device."""
        maps: Tensor = kept.to(self._fabric.device, non_blocking=True).float().unflatten(1, self._cut.shape)
        return maps.contiguous(memory_format=torch.channels_last) if maps.ndim == 4 else maps


class Upper(nn.Module):
    """The upper stages of a network and its head: what the stages receive, (n, ...), to logits (n, classes)."""

    def __init__(self, stages: nn.Module, head: nn.Linear):
        super().__init__()
        self.stages = stages
        self.head = head

    def forward(self, activations: Tensor) -> Tensor:
        return classified(self.head, self.stages(activations))


# --- what is frozen, run once -----------------------------------------------------------------------------------------


class _NotKept(Exception):
    """Why the activations of frozen stages cannot be kept."""


def _computed(
    fabric: Fabric, network: Network, config: Config, material: TrainingData, lowest: int, views: int, display: Display
) -> FrozenInputs:
    """From the cache what it has, and the rest by running the frozen stages. _NotKept where that cannot be."""
    if config.mixup:
        raise _NotKept("--mixup blends each picture with others, and every combination would have to be kept")
    cut = _cut(network, lowest)
    pictures = replace(material.pictures, views=views)
    below = _below(fabric, network.backbone.name, cut, config, pictures, material, display)
    every = len(material.indices) + len(material.val)
    with ActivationCache(disk=None if config.cache else 0, announce=display.say) as cache:
        size = (views * len(material.indices) + len(material.val)) * cut.bytes
        if not cache.has_room(size):
            raise _NotKept(f"{views} views of every picture (--views) would take {size / 1e9:.1f} GB")
        with display.bar("frozen stages", every) as advance:
            train = below.activations(cache, pictures, material.indices, material.hashes, advance)
            val = below.activations(cache, material.val, range(len(material.val)), material.val_hashes, advance)
    return FrozenInputs(fabric, network, cut, config, material, views, train, val)


def _cut(network: Network, lowest: int) -> Cut:
    """The network in two below stage `lowest`. _NotKept where that leaves anything but one tensor to keep."""
    backbone = network.backbone
    try:
        upper = backbone.train().cut(lowest)[1]
        lower, judge = backbone.eval().cut(lowest)
    except InputError as error:
        raise _NotKept(str(error)) from error
    if any(parameter.requires_grad for parameter in lower.parameters()):
        raise _NotKept("a stage that is trained is also used below the cut")
    size = backbone.preprocessing.size
    with torch.no_grad():
        crossing = lower(torch.zeros(2, 3, size, size, device=network.head.weight.device))
    if isinstance(crossing, tuple):
        raise _NotKept(f"{len(crossing)} tensors pass into {backbone.stages[lowest].name}, and only one can be kept")
    if len(crossing) != 2:
        raise _NotKept(f"what passes into {backbone.stages[lowest].name} is not one row per picture")
    return Cut(backbone.stages[lowest].name, lower, upper, judge, tuple(crossing.shape[1:]))


@dataclass(frozen=True)
class _Below:
    """Frozen stages as they run. runtime: what runs them, in the words of a family."""

    fabric: Fabric
    backbone: str
    cut: Cut
    module: Normalized
    run: AcceleratedModel
    runtime: str
    workers: int | None

    def activations(
        self,
        cache: ActivationCache,
        pictures: Pictures,
        indices: Sequence[int],
        hashes: Sequence[str],
        advance: Advance,
    ) -> Activations:
        """(n, views, numbers) of the pictures at these n indices, whose sha256 is still that in `hashes`."""
        family = feature_key(
            self.fabric,
            self.module,
            pictures,
            self.module.preprocessing,
            backbone=self.backbone,
            cut=self.cut.stage,
            runtime=self.runtime,
            kept_as=KEPT_AS,
        )
        views = pictures.views or 1
        # As many views at once on a GPU as it takes pictures; a core takes several batches from one job.
        at_once = CPU_BATCH if self.fabric.device.type == "cpu" else max(1, GPU_BATCH // views)

        def compute(missing: Pictures) -> Outputs:
            self.run.prepare()
            return run_over(
                self.fabric.device, self._see, missing, batch_size=at_once, workers=self.workers, advance=advance
            )

        try:
            seen = cached(
                cache,
                family,
                pictures,
                compute,
                indices=indices,
                row_bytes=views * self.cut.bytes,
                workers=self.workers,
                advance=advance,
            )
        except OverflowError as error:
            raise _NotKept(str(error)) from error
        check_unchanged(seen.contents, pictures, hashes)
        return seen.activations

    def _see(self, pixels: Tensor) -> Tensor:
        views = pixels.unsqueeze(1) if pixels.ndim == 4 else pixels
        rows: Tensor = self.run.whole(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return rows


def _below(
    fabric: Fabric,
    backbone: str,
    cut: Cut,
    config: Config,
    pictures: Pictures,
    material: TrainingData,
    display: Display,
) -> _Below:
    views = pictures.views or 1
    examples = material.indices[: -(-CPU_BATCH // views)]
    module = Normalized(nn.Sequential(cut.lower, nn.Flatten()), material.preprocessing).eval()

    def example() -> Tensor:
        batch = pictures.batch(examples)
        check_unchanged(batch.contents, pictures, material.hashes)
        return batch.pixels.flatten(0, 1)

    run = AcceleratedModel(
        fabric,
        module,
        example,
        pictures=views * len(material.indices) + len(material.val),
        precision=config.precision,
        announce=display.say,
    )
    # Checked by other pictures, it might have come to run in another way, and to other bits.
    checked_by = hashlib.sha256("".join(material.hashes[index] for index in examples).encode()).hexdigest()
    runtime = f"{run.name}, checked by {checked_by}" if run.checked else run.name
    return _Below(fabric, backbone, cut, module, run, runtime, config.workers)
