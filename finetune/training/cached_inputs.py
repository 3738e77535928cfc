"""Batches for the training loop made of cached activations: frozen stages run once for every augmented view."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.computing.device_stream import copied_ahead
from finetune.config import Config
from finetune.data.loader import Shuffle, check_unchanged
from finetune.data.transforms import Normalized, view_seed
from finetune.errors import InputError
from finetune.features.acceleration import CPU_BATCH, Examples, plain
from finetune.features.cache import ActivationCache, Activations
from finetune.features.cache_keys import DTYPES
from finetune.features.extraction import FeatureExtractor
from finetune.models.backbone import Network, classified
from finetune.models.depth_head import DepthHead
from finetune.progress import Display
from finetune.training.budget import Deadline
from finetune.training.inputs import Inputs, PictureInputs, Share, TrainingBatch, TrainingData, take_all

# As large as bfloat16 and eight times more precise. Numbers beyond its range are an error, and then nothing is cached.
KEPT_AS = "float16"

# Pictures in a validation batch.
_VALIDATION_BATCH = 64


def inputs_for(
    fabric: Fabric,
    network: Network,
    config: Config,
    material: TrainingData,
    *,
    lowest: int,
    epochs: int,
    display: Display,
    deadline: Deadline | None = None,
) -> Inputs:
    """The source of the training batches.

    Args:
        fabric: Device and precision.
        network: The network, whose stages below `lowest` are frozen already.
        config: The run's options. Each training picture has `config.views` views, but no more than there are epochs.
        material: Training and validation pictures.
        lowest: Position of the lowest stage that is trained.
        epochs: Number of epochs.
        display: Shows progress, and why activations cannot be cached.
        deadline: When the training must end.

    Returns:
        Cached activations for the stages from `lowest` up; or pictures for the whole network, where no stage is frozen
        or activations cannot be cached.

    Raises:
        OutOfTime: If the frozen stages take too long for the deadline.
    """
    if lowest > 0:
        try:
            views = min(config.views, epochs)
            return _computed(fabric, network, config, material, lowest, views, display, deadline)
        except _NotCacheable as reason:
            display.say(f"The network trains uncut, so its frozen stages run again in every epoch: {reason}.")
    return PictureInputs(fabric, network, config, material)


def view_shown(seed: int, epoch: int, index: int, views: int) -> int:
    """The view, of `views`, in which the picture at `index` appears in an epoch."""
    return view_seed(seed, epoch, index, "view") % views


@dataclass(frozen=True)
class Cut:
    """A network cut below a stage: pictures to activations (n, *shape), and these to features (n, width).

    The lower part is in evaluation mode. The upper part is traced in training mode and in evaluation mode.
    """

    stage: str
    lower: nn.Module
    upper: nn.Module
    upper_eval: nn.Module
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of one view's activations in the cache."""
        return math.prod(self.shape) * DTYPES[KEPT_AS].itemsize


class FrozenInputs:
    """Cached activations of frozen stages, for the stages above them.

    train: Shape (n, views, numbers), in the order of `material.indices`. val: Shape (m, 1, numbers). views: Of each
    training picture.
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
        self._network, self._learner_eval = network, Upper(cut.upper_eval, network.head)
        self._fabric, self._cut, self._config, self._material = fabric, cut, config, material
        self.views, self.train, self._val = views, train, val

    def batches(self, first_epoch: int, epochs: int, share: Share = take_all) -> Iterator[TrainingBatch]:
        indices, seed = self._material.indices, self._material.pictures.seed
        row = {index: position for position, index in enumerate(indices)}

        def activations_of_batches() -> Iterator[tuple[tuple[Tensor, int], Tensor]]:
            for batch in Shuffle(seed, indices, self._config.batch_size, first_epoch, epochs):
                keys = [batch[position] for position in share(len(batch))]
                views = [view_shown(seed, epoch, index, self.views) for epoch, index in keys]
                index = torch.tensor([index for _, index in keys], dtype=torch.int64)
                yield (index, len(batch)), self.train.entries([row[index] for _, index in keys], views)

        for (index, whole), activations in copied_ahead(activations_of_batches(), self._fabric.device):
            yield TrainingBatch(index, self._maps(activations), whole)

    def validation_logits(self) -> Tensor:
        self._network.eval()
        run = plain(self._fabric, self._learner_eval)
        batches = torch.arange(len(self._val)).split(_VALIDATION_BATCH)
        return torch.cat([run(self._maps(self._val.entries(rows, torch.zeros_like(rows)))).cpu() for rows in batches])

    def _maps(self, activations: Tensor) -> Tensor:
        """Activations (n, numbers) in the shape of the cut, on the device."""
        maps: Tensor = activations.to(self._fabric.device, non_blocking=True).float().unflatten(1, self._cut.shape)
        return maps.contiguous(memory_format=torch.channels_last) if maps.ndim == 4 else maps


class Upper(nn.Module):
    """The upper stages of a network and its head: activations (n, ...) to logits (n, classes)."""

    def __init__(self, stages: nn.Module, head: nn.Linear | DepthHead):
        super().__init__()
        self.stages = stages
        self.head = head

    def forward(self, activations: Tensor) -> Tensor:
        return classified(self.head, self.stages(activations))


# --- the frozen stages, run once --------------------------------------------------------------------------------------


class _NotCacheable(Exception):
    """The reason why the activations of frozen stages cannot be cached."""


def _computed(
    fabric: Fabric,
    network: Network,
    config: Config,
    material: TrainingData,
    lowest: int,
    views: int,
    display: Display,
    deadline: Deadline | None,
) -> FrozenInputs:
    """Activations from the cache, or else by running the frozen stages. _NotCacheable where that is impossible."""
    if config.mixup:
        raise _NotCacheable("--mixup blends each picture with others, and every combination would have to be cached")
    cut = cut_below(network, lowest)
    pictures = replace(material.pictures, views=views)
    every_view = views * len(material.indices) + len(material.val)
    with ActivationCache(disk=None if config.cache else 0, display=display) as cache:
        size = every_view * cut.bytes
        if not cache.has_room(size):
            raise _NotCacheable(f"{views} views of every picture (--views) would take {size / 1e9:.1f} GB")
        extractor = FeatureExtractor(
            fabric,
            Normalized(nn.Sequential(cut.lower, nn.Flatten()), material.preprocessing).eval(),
            network.backbone.name,
            cut.stage,
            Examples(pictures, material.indices[: -(-CPU_BATCH // views)], material.hashes),
            every_view,
            config,
            cache,
            display,
            kept_as=KEPT_AS,
        )
        pictures_in_all = len(material.indices) + len(material.val)
        with display.bar("frozen stages", pictures_in_all) as advance:
            if deadline is not None:
                advance = deadline.watched(advance, pictures_in_all)
            try:
                train = extractor.extract(pictures, material.indices, row_bytes=views * cut.bytes, advance=advance)
                check_unchanged(train.contents, pictures, material.hashes)
                val = extractor.extract(material.val, row_bytes=cut.bytes, advance=advance)
                check_unchanged(val.contents, material.val, material.val_hashes)
            except OverflowError as error:
                raise _NotCacheable(str(error)) from error
    return FrozenInputs(fabric, network, cut, config, material, views, train.activations, val.activations)


def cut_below(network: Network, lowest: int) -> Cut:
    """The network cut below stage `lowest`. _NotCacheable where anything but one tensor crosses the cut."""
    backbone = network.backbone
    try:
        upper = backbone.train().cut(lowest)[1]
        lower, upper_eval = backbone.eval().cut(lowest)
    except InputError as error:
        raise _NotCacheable(str(error)) from error
    if any(parameter.requires_grad for parameter in lower.parameters()):
        raise _NotCacheable("a stage that is trained is also used below the cut")
    stage, size = backbone.stages[lowest].name, backbone.preprocessing.size
    with torch.no_grad():
        crossing = lower(torch.zeros(2, 3, size, size, device=network.head.weight.device))
    if isinstance(crossing, tuple):
        raise _NotCacheable(f"{len(crossing)} tensors pass into {stage}, and only one can be cached")
    if len(crossing) != 2:
        raise _NotCacheable(f"the input of {stage} is not one row per picture")
    return Cut(stage, lower, upper, upper_eval, tuple(crossing.shape[1:]))
