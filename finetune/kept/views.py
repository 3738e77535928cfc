"""Activations of the views that are averaged for a prediction, read once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.classifier.calibrated_network import averaged
from finetune.classifier.classifier import Classifier
from finetune.errors import InputError
from finetune.features.forward import run_frozen
from finetune.features.table import FeatureTable
from finetune.linear.head import LinearHead
from finetune.models.pooled import PooledStages
from finetune.progress import Display


@dataclass(frozen=True)
class Views:
    """Pooled activations of several views of pictures.

    Attributes:
        values: Shape (m, views, sum of widths), float32, the features last.
        index: Position of each row's picture, shape (m,) int64, ascending.
    """

    values: Tensor
    index: Tensor

    def log_probabilities(self, head: LinearHead, indices: Sequence[int]) -> Tensor:
        """Of the pictures at `indices`, averaged over their views: (n, classes)."""
        row = {position: row for row, position in enumerate(self.index.tolist())}
        wanted = self.values[torch.tensor([row[index] for index in indices], dtype=torch.int64)]
        return averaged(head(wanted.flatten(0, 1)).unflatten(0, wanted.shape[:2]))


def read_views(
    classifier: Classifier,
    stages: PooledStages,
    rows: FeatureTable,
    indices: Sequence[int],
    known: Views | None,
    display: Display,
) -> Views:
    """The views of pictures as predictions of `classifier` read them; those that are known already are not read again.

    Args:
        classifier: Says which views there are.
        stages: Its backbone.
        rows: The pictures.
        indices: Positions of the wanted pictures.
        known: Views of some pictures of `rows`.
        display: Shows progress.

    Raises:
        InputError: If a picture can no longer be read.
    """
    there = set() if known is None else set(known.index.tolist())
    missing = sorted(set(indices) - there)
    if not missing and known is not None:
        return known
    paths = rows.paths()
    wanted = [paths[index] for index in missing]
    with display.bar("measuring", len(wanted)) as advance:
        outputs = run_frozen(
            classifier.fabric,
            stages,
            classifier.preprocessing,
            classifier.pictures(wanted),
            workers=classifier.config.workers,
            test_time=classifier.config.test_time,
            advance=advance,
        )
    if len(outputs.index) < len(wanted):
        lost = next(path for place, path in enumerate(wanted) if outputs.contents[place].reason)
        raise InputError(f"{lost} could be read at the start of the run and cannot now; was the folder changed?")
    values, index = outputs.values, torch.tensor(missing)[outputs.index]
    if known is None:
        return Views(values, index)
    values = torch.cat([known.values, values[..., -known.values.shape[-1] :]])
    index, order = torch.cat([known.index, index]).sort()
    return Views(values[order], index)
