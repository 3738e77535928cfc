"""The classifier of a run on other pictures, solved from their features, and the files of its new state."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetune.api.outcome import Outcome, measure, write_run
from finetune.api.prepare import Prepared, solve
from finetune.api.unlabelled import read_unlabelled
from finetune.classifier.classifier import Classifier
from finetune.classifier.run_folder import HISTORY_FILE
from finetune.classifier.run_metrics import RunMetrics
from finetune.computing.threads import one_thread_if_small
from finetune.data.folder import check_listing
from finetune.data.near_duplicates import connected
from finetune.data.splits import Unreadable
from finetune.features.forward import Outputs
from finetune.features.table import SPLITS, FeatureTable
from finetune.files.exchange import link_or_copy
from finetune.kept.background import Background
from finetune.kept.features import KeptFeatures
from finetune.kept.history import Change, write_changes
from finetune.kept.union import without
from finetune.linear.choice import StrategyChoice
from finetune.metrics import accuracy_of
from finetune.models.backbone import Network
from finetune.models.pooled import PooledStages
from finetune.progress import Display
from finetune.report.report import write_report
from finetune.strategies import STRATEGIES
from finetune.training.loop import TrainingResult


@dataclass(frozen=True)
class Solved:
    """A classifier solved on the features of its pictures, measured as `fit` does.

    Attributes:
        outcome: The classifier, its figures, and its predictions.
        rows: The pictures.
        kept: What the run keeps of them.
        new: Positions of the pictures that were added.
    """

    outcome: Outcome
    rows: FeatureTable
    kept: KeptFeatures
    new: frozenset[int]

    @property
    def used(self) -> frozenset[int]:
        """Positions of the pictures that are used."""
        return frozenset(position for split in SPLITS for position in self.rows.indices(split))

    def write(self, folder: Path, run: Path, asked: dict[str, Any], changes: tuple[Change, ...], at: Path) -> None:
        """Write the files of the new state.

        Args:
            folder: Where to write them.
            run: The run folder of the old state, which has the history of the training.
            asked: The options that were asked for with another value, see `RunConfig`.
            changes: Of the run, this one included.
            at: The folder that they will lie in.
        """
        write_run(folder, asked, self.outcome, self.rows)
        self.kept.write(folder)
        write_changes(folder, changes)
        if (run / HISTORY_FILE).exists():
            link_or_copy(run / HISTORY_FILE, folder / HISTORY_FILE)
        write_report(folder, classifier=self.outcome.classifier, at=at)


def solve_again(
    old: Classifier,
    kept: KeptFeatures,
    new: frozenset[int],
    display: Display,
    *,
    background: Background | None = None,
    max_bad: float | None = None,
) -> Solved:
    """The head of a run solved on other pictures.

    Args:
        old: The classifier of the run.
        kept: The pictures. Their splits are those of the run, None for a new one.
        new: Positions of the new ones in it.
        display: Shows the pictures and the result.
        background: Pictures of none of the classes.
        max_bad: Most unreadable pictures, as a share. None for the bound of the run.

    Raises:
        InputError: Where a class or a picture for training is missing, as of `fit`.
    """
    assert old.run_metrics is not None
    config, backbone, metrics = old.config, old.network.backbone, old.run_metrics
    check_listing(kept.listing, to_train=True)
    stages = PooledStages(backbone)
    limit = config if max_bad is None else replace(config, max_bad=max_bad)
    rows = _table(kept, limit)
    if joining := _joining(kept, rows, new):
        kept, new, left_out = _without_new(kept, new, joining)
        rows = _table(kept, limit)
        rows = replace(rows, folder=replace(rows.folder, left_out=(*rows.folder.left_out, *left_out)))
    for line in rows.summary():
        display.say(line)
    unlabelled = None
    if config.unlabelled is not None and metrics.kept == "head":
        measuring = [*rows.indices("val"), *rows.indices("test")]
        unlabelled = read_unlabelled(old.fabric, stages, kept.contents, measuring, config, None, display)
        unlabelled = None if unlabelled is None else replace(unlabelled, pooled=unlabelled.pooled[:, -kept.width :])
    with one_thread_if_small(rows.pooled.numel()):
        heads, class_weights, learned = solve(kept.widths, rows, unlabelled, config)
    choice = StrategyChoice(STRATEGIES[metrics.strategy], metrics.reason or "")
    prepared = Prepared(old.fabric, stages, rows, choice, heads, class_weights, learned, kept.views, background)
    hooks = None if heads.kept.width == backbone.width else stages.hooks
    network = Network(backbone, heads.kept.as_layer(), hooks)
    classifier = Classifier(network, rows.folder.classes, old.preprocessing, config, old.fabric)
    trained = metrics.kept != "head"
    outcome = measure(classifier, prepared, heads, TrainingResult(), display, backbone_was_trained=trained)
    outcome = replace(outcome, metrics=_of_the_run(outcome.metrics, metrics))
    classifier.run_metrics = outcome.metrics
    return Solved(outcome, rows, KeptFeatures.of(rows, kept.depths, kept.widths, outcome.views), new)


def retraining(solved: Solved) -> str:
    """Whether training the backbone again would pay: the head on held-out new pictures beside held-out old ones."""
    right: dict[bool, list[bool]] = defaultdict(list)
    for split, log_probabilities in solved.outcome.log_probabilities.items():
        positions = solved.rows.indices(split)
        answers = log_probabilities.argmax(1) == solved.rows.labels[positions]
        for position, answer in zip(positions, answers.tolist(), strict=True):
            right[position in solved.new].append(answer)
    if not right[True] or not right[False]:
        return "None of the new pictures is held out, so nothing shows whether training the backbone again would pay."
    new, old = (
        accuracy_of(torch.tensor(right[which]).long(), torch.ones(len(right[which]))) for which in (True, False)
    )
    figures = (
        f"The head is right on {new.accuracy:.1%} of {len(right[True])} new held-out pictures, and on "
        f"{old.accuracy:.1%} of {len(right[False])} old ones"
    )
    if new.interval[1] < old.interval[0]:
        return f"{figures}: training the backbone again, with finetune fit on all pictures, would probably pay."
    if new.interval[0] < old.interval[0] and len(right[True]) < _ENOUGH_TO_TELL:
        return f"{figures}, too few to tell whether training the backbone again would pay."
    return f"{figures}: there is no sign that training the backbone again would pay."


# With fewer new held-out pictures than these, only a large difference shows.
_ENOUGH_TO_TELL = 30


def _table(kept: KeptFeatures, config: Any) -> FeatureTable:
    outputs = Outputs(kept.pooled[:, None], kept.index, dict(enumerate(kept.contents)))
    return FeatureTable.audited(kept.listing, outputs, kept.widths[-1], config, kept.splits_by_content)


def _joining(kept: KeptFeatures, rows: FeatureTable, new: frozenset[int]) -> dict[int, str]:
    """New pictures that are near-duplicates of old ones in two splits, with the reason to leave them out: one of the
    old ones would change its split."""
    now = {position: split for split in ("train", "val", "test") for position in rows.indices(split)}
    moved = any(now.get(position, split) != split for position, split in enumerate(kept.splits) if position not in new)
    found: dict[int, str] = {}
    for group in connected(rows.folder.near) if moved else ():
        old = {kept.splits[position]: position for position in group if position not in new}
        if len(old) > 1:
            named = " and ".join(f"{kept.listing.samples[place].path} ({split})" for split, place in old.items())
            found |= {position: f"near-duplicate of {named}" for position in group if position in new}
    return found


def _without_new(
    kept: KeptFeatures, new: frozenset[int], left_out: dict[int, str]
) -> tuple[KeptFeatures, frozenset[int], list[Unreadable]]:
    reasons = [Unreadable(kept.listing.samples[place].path, reason) for place, reason in sorted(left_out.items())]
    return without(kept, left_out), shifted(new, left_out), reasons


def shifted(positions: Collection[int], gone: Collection[int]) -> frozenset[int]:
    """Where `positions` are after those in `gone` are left out."""
    order = sorted(gone)
    return frozenset(position - bisect_left(order, position) for position in set(positions).difference(gone))


def _of_the_run(found: RunMetrics, before: RunMetrics) -> RunMetrics:
    """The figures of the solved head with what remains true of the run: the choice of its network, its training."""
    trained = before.kept != "head"
    baselines = replace(found.baselines, head=None) if trained else found.baselines
    return replace(
        found,
        kept=before.kept,
        baselines=baselines,
        backbones=before.backbones,
        probe_curve=before.probe_curve,
        epochs=before.epochs,
        best_epoch=before.best_epoch,
        share_of_the_way=before.share_of_the_way,
        lr=before.lr,
        lr_sweep=before.lr_sweep,
        seconds=before.seconds,
    )
