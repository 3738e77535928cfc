"""What a run learns about unknown pictures, from the features of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from finetune.classifier.classifier import Classifier
from finetune.classifier.run_metrics import RunMetrics
from finetune.features.extraction import read_pictures
from finetune.features.forward import Outputs
from finetune.features.table import FeatureTable
from finetune.kept.background import Background, told
from finetune.models.pooled import PooledStages
from finetune.open_set.evidence import used_pictures
from finetune.open_set.unknown_metrics import BackgroundPictures, doubtful, learn_unknown
from finetune.progress import Display


def learned_unknown(
    classifier: Classifier,
    metrics: RunMetrics,
    rows: FeatureTable,
    widths: Sequence[int],
    learned: Sequence[str] = (),
    *,
    trained: bool,
    background: Background | None,
    display: Display,
) -> RunMetrics:
    """Have the classifier learn to tell unknown pictures; `metrics` with its figures of them.

    widths: of the depths of `rows.pooled`. learned: splits that a head on a frozen backbone has learned from. trained:
    whether the backbone has learned from the training pictures; validation pictures then judge. background: pictures of
    none of the classes; those that show pictures of the run are left out, which is told.
    """
    indices = _known(rows) if trained else [index for split in learned for index in rows.indices(split)]
    judging = _judging(rows) if trained and rows.folder.val else None
    used: BackgroundPictures | None = None
    if background is not None:
        some, left_out = background.without_copies(rows.listing.samples, rows.contents)
        used = BackgroundPictures(some.pooled, some.paths, left_out)
        display.say(told(some, left_out))
    classifier.unknown, unknown = learn_unknown(
        rows.pooled[indices],
        rows.labels[indices],
        widths,
        paths=[rows.listing.samples[index].path for index in indices],
        classes=rows.folder.classes,
        judging=judging,
        trained=trained,
        background=used,
    )
    if used is not None and (warning := doubtful(unknown)):
        display.say(warning)
    return replace(metrics, unknown=unknown)


def _known(rows: FeatureTable) -> list[int]:
    return [*rows.indices("train"), *rows.indices("val")]


def _judging(rows: FeatureTable) -> Tensor:
    """Which of `_known` a trained backbone has not learned from."""
    return torch.arange(len(_known(rows))) >= len(rows.folder.train)


def showing_unknown(rows: FeatureTable) -> list[int]:
    """Positions of the pictures whose features of a trained backbone `learned_unknown` uses."""
    known = _known(rows)
    used = used_pictures(rows.labels[known], _judging(rows) if rows.folder.val else None)
    return sorted(known[place] for place in used.tolist())


def read_trained(
    classifier: Classifier, stages: PooledStages, rows: FeatureTable, wanted: list[int] | None, display: Display
) -> FeatureTable:
    """`rows` with the activations of a trained backbone: of all pictures, or of those at `wanted` and zeros for others.

    InputError where a picture has changed.
    """
    positions = list(range(len(rows.contents))) if wanted is None else wanted
    listing = replace(rows.listing, samples=tuple(rows.listing.samples[position] for position in positions))
    outputs = read_pictures(classifier.fabric, stages, listing, classifier.config, display)
    contents = dict(enumerate(rows.contents)) | {positions[row]: found for row, found in outputs.contents.items()}
    index = torch.tensor(positions, dtype=torch.int64)[outputs.index]
    return rows.with_activations(Outputs(outputs.values, index, contents), stages.backbone.width)
