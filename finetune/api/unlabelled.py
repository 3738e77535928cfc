"""Unlabelled pictures of a run: read, mixed into its heads, and listed by what a label for each would teach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.classifier.run_folder import RunFolder
from finetune.classifier.run_metrics import PictureToLabel, UnlabelledMetrics
from finetune.classifier.temperature import calibrated, fit_temperature
from finetune.config import Config
from finetune.data.images import Content
from finetune.features.extraction import read_pictures
from finetune.features.table import FeatureTable
from finetune.features.unlabelled import UnlabelledPictures, list_some, without_copies
from finetune.linear.head import Heads
from finetune.linear.label_next import label_next
from finetune.linear.unlabelled import Mixture, refine_heads
from finetune.models.pooled import PooledStages
from finetune.progress import Display

# Pictures to label next in the report of a run, and in an inspection where no number is given.
IN_REPORT, IN_INSPECTION = 12, 20


@dataclass(frozen=True)
class LearnedUnlabelled:
    """The unlabelled pictures of a run, the heads that have learned from them, and how."""

    pictures: UnlabelledPictures
    heads: Heads
    mixture: Mixture | None

    def next(self, rows: FeatureTable, widths: Sequence[int], count: int) -> tuple[PictureToLabel, ...]:
        """The `count` pictures whose labels would teach most. Test pictures play no part."""
        if self.mixture is None:
            return ()
        (train, _), (val, val_labels) = rows.of_split("train"), rows.of_split("val")
        temperature = fit_temperature(self.heads.val_logits.log_softmax(1), val_labels) if len(val_labels) else 1.0
        logits = self.heads.kept(self.pictures.pooled)
        probabilities = calibrated(logits.log_softmax(1), temperature).exp()
        chosen = label_next(
            torch.cat([train, val]), self.pictures.pooled, widths, probabilities, self.mixture.weights, count
        )
        classes = rows.folder.classes
        return tuple(
            PictureToLabel(
                path=self.pictures.paths[each.row],
                predicted=classes[each.predicted],
                probability=round(each.probability, 6),
                second=classes[each.second],
                doubt=round(each.doubt, 6),
                novelty=round(each.novelty, 6),
                score=round(each.score, 6),
            )
            for each in chosen
        )

    def metrics(self, to_label: tuple[PictureToLabel, ...]) -> UnlabelledMetrics:
        """What the run says of them. to_label: the pictures to label next."""
        pictures, mixture = self.pictures, self.mixture
        return UnlabelledMetrics(
            folder=str(pictures.root.resolve()),
            pictures=len(pictures),
            unreadable=pictures.unreadable,
            labelled=pictures.labelled,
            measuring=pictures.measuring,
            skipped=pictures.skipped,
            strength=0.0 if mixture is None else mixture.strength,
            alike=mixture is None or mixture.alike,
            judged=0 if mixture is None else mixture.judged,
            without=None if mixture is None else mixture.without,
            accuracy=None if mixture is None else mixture.accuracy,
            label_next=to_label,
        )


def read_unlabelled(
    fabric: Fabric,
    stages: PooledStages,
    labelled: Sequence[Content],
    measuring: Iterable[int],
    config: Config,
    run: RunFolder | None,
    display: Display,
) -> UnlabelledPictures | None:
    """The unlabelled pictures of --unlabelled, read once and cached; None without that option.

    labelled: what reading the labelled pictures found. measuring: positions of the validation and test pictures in it.
    run: keeps the activations for --resume. InputError for a folder that cannot be used.
    """
    if config.unlabelled is None:
        return None
    listing, skipped = list_some(config.unlabelled)
    outputs = None if run is None else run.kept_unlabelled(listing, sum(stages.widths))
    if outputs is None:
        outputs = read_pictures(fabric, stages, listing, config, display)
        if run is not None:
            run.keep_unlabelled(listing, outputs)
    pictures = without_copies(listing, outputs, labelled, measuring, skipped)
    for line in pictures.notes():
        display.say(line)
    return pictures


def learn_unlabelled(
    heads: Heads,
    rows: FeatureTable,
    pictures: UnlabelledPictures,
    widths: Sequence[int],
    class_weights: Tensor | None,
) -> LearnedUnlabelled:
    """`heads` mixed with heads that have learned from the unlabelled pictures, as far as these help."""
    if not len(pictures):
        return LearnedUnlabelled(pictures, heads, None)
    refined, mixture = refine_heads(
        heads,
        rows.of_split("train"),
        rows.of_split("val"),
        pictures.pooled,
        widths,
        class_weights,
    )
    return LearnedUnlabelled(pictures, refined, mixture)
