"""The pictures of a run as rows of a table: labels, splits, and pooled activations of a frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import BEST, Config
from finetune.data.folder import Listing, Sample
from finetune.data.images import Content
from finetune.data.split_record import recorded_splits
from finetune.data.splits import Folder, audit
from finetune.errors import InputError
from finetune.features.forward import Outputs
from finetune.models.backbone import Backbone
from finetune.models.pooled import PooledStages
from finetune.progress import Display

SPLITS = ("train", "val", "test")

# Most training pictures that the classifier is measured on: enough for the diagnosis.
MOST_OF_TRAIN = 300


@dataclass(frozen=True)
class FeatureTable:
    """A row for every sample of a listing.

    Attributes:
        listing: The pictures.
        folder: The split of each picture.
        labels: Shape (samples,), int64; -1 for a class that is not used.
        pooled: Pooled activations of every depth, shape (samples, sum of widths); zeros for an unreadable picture.
        width: Number of features, the last columns of `pooled`.
        contents: What reading each picture found.
    """

    listing: Listing
    folder: Folder
    labels: Tensor
    pooled: Tensor
    width: int
    contents: Sequence[Content]

    @classmethod
    def audited(
        cls,
        listing: Listing,
        outputs: Outputs,
        width: int,
        config: Config,
        recorded: Mapping[str, str] | None = None,
    ) -> FeatureTable:
        """Assign each picture to a split.

        Args:
            listing: The pictures.
            outputs: Their pooled activations.
            width: Number of features.
            config: Fractions of the splits, and the bound on unreadable files.
            recorded: Splits by sha256. None for those of earlier runs.

        Raises:
            InputError: As for `audit`.
        """
        contents = [outputs.contents[position] for position in range(len(listing.samples))]
        folder = audit(
            listing,
            contents,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            max_bad=config.max_bad,
            recorded=recorded_splits(listing, config) if recorded is None else recorded,
        )
        position = {name: label for label, name in enumerate(folder.classes)}
        labels = torch.tensor([position.get(sample.label, -1) for sample in listing.samples])
        return cls(listing, folder, labels, _by_picture(outputs, len(contents)), width, contents)

    def with_activations(self, outputs: Outputs, width: int) -> FeatureTable:
        """The same pictures with the activations of another network.

        Raises:
            InputError: If a picture has changed.
        """
        for position, content in enumerate(self.contents):
            if outputs.contents[position].sha256 != content.sha256:
                path = self.listing.root / self.listing.samples[position].path
                raise InputError(f"{path} has changed since the start of the run; start a new run")
        return replace(self, pooled=_by_picture(outputs, len(self.contents)), width=width)

    @property
    def hashes(self) -> list[str]:
        """sha256 of every picture."""
        return [content.sha256 for content in self.contents]

    @property
    def measured(self) -> Literal["val", "test"] | None:
        """The split whose figures are the run's result: test, or val where there is no test. None where there is
        neither."""
        if self.folder.test:
            return "test"
        return "val" if self.folder.val else None

    @property
    def val_was_made(self) -> bool:
        """Whether the validation split was made from the training pictures."""
        return all(sample.split != "val" for sample in self.listing.samples)

    @property
    def splits_by_content(self) -> dict[str, str]:
        """The split of each used picture, by sha256."""
        return {self.contents[index].sha256: split for split in SPLITS for index in self.indices(split)}

    @property
    def to_measure(self) -> int:
        """Number of pictures that a trained network is measured on."""
        held_out = len(self.folder.val) + len(self.folder.test)
        return held_out + min(MOST_OF_TRAIN, len(self.folder.train))

    def indices(self, split: str) -> list[int]:
        return list({"train": self.folder.train, "val": self.folder.val, "test": self.folder.test}[split])

    def of_split(self, split: str) -> tuple[Tensor, Tensor]:
        """Pooled activations (n, sum of widths) and labels (n,)."""
        indices = self.indices(split)
        return self.pooled[indices], self.labels[indices]

    def samples(self, split: str) -> list[Sample]:
        return [self.listing.samples[index] for index in self.indices(split)]

    def paths(self) -> list[Path]:
        return [self.listing.root / sample.path for sample in self.listing.samples]

    def summary(self) -> list[str]:
        """Lines that describe the pictures, to show before training."""
        counts = ", ".join(
            f"{len(self.indices(split))} {name}"
            for split, name in zip(SPLITS, ("training", "validation", "test"), strict=True)
        )
        lines = [f"{len(self.folder.classes)} classes; pictures: {counts}.", *self.folder.notes]
        bad = self.folder.unreadable
        if bad:
            shown = "; ".join(f"{entry.path} ({entry.reason})" for entry in bad[:5])
            more = f"; and {len(bad) - 5} more, all in metrics.json" if len(bad) > 5 else ""
            lines.append(f"{len(bad)} pictures are unreadable and left out: {shown}{more}.")
        return lines


def _by_picture(outputs: Outputs, count: int) -> Tensor:
    """Activations (pictures, sum of widths), zeros for an unreadable picture."""
    pooled = torch.zeros(count, outputs.values.shape[2])
    pooled[outputs.index] = outputs.values[:, 0]
    return pooled


# --- without the upper stages (--drop-above) --------------------------------------------------------------------------


def drop_above(
    stages: PooledStages, rows: FeatureTable, asked: str, best: str | None, display: Display
) -> tuple[PooledStages, FeatureTable]:
    """Remove the stages of the backbone above `asked`, and their activations from `rows`.

    `asked` is the name of a stage, or BEST for `best`, the depth whose probe has the least error; None without a curve.

    Raises:
        InputError: For an unknown stage, for BEST without a curve, and for a model that cannot be cut there.
    """
    backbone = stages.backbone
    if asked == BEST:
        if best is None:
            raise InputError(f"--drop-above {BEST} needs two training pictures of each class; name a stage instead")
        if best == stages.depths[-1]:
            display.say("no stage is dropped: the last one has the lowest error.")
            return stages, rows
        asked = best
    position = backbone.stage_index(asked)
    if position == len(backbone.stages) - 1:
        display.say(f"no stage is dropped: {asked} is the last.")
        return stages, rows
    if asked not in stages.depths:
        raise InputError(f"{backbone.name} cannot be cut above {asked}: the stage above it is not called as a module")
    # In training mode the forward passes that measure its size would change its batch norm statistics.
    backbone.eval()
    before = _size(backbone)
    backbone.drop_above(asked)
    after = _size(backbone)
    display.say(
        f"stages above {asked} dropped: {after[0] / 1e6:.2f} of {before[0] / 1e6:.2f} million parameters and "
        f"{after[1] / before[1]:.0%} of the multiplications are left."
    )
    widths = stages.widths[: stages.depths.index(asked) + 1]
    return PooledStages(backbone), replace(rows, pooled=rows.pooled[:, : sum(widths)], width=widths[-1])


def _size(backbone: Backbone) -> tuple[int, int]:
    """Number of parameters, and of multiplications for one picture."""
    side, device = backbone.preprocessing.size, next(backbone.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        backbone(torch.zeros(1, 3, side, side, device=device))
    return sum(parameter.numel() for parameter in backbone.parameters()), counted.get_total_flops() // 2
