"""Measures the classifier of a run, and writes the files of its run folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.api.prepare import Prepared
from finetune.api.unlabelled import IN_REPORT
from finetune.classifier.classifier import Classifier
from finetune.classifier.run_folder import (
    HISTORY_FILE,
    PICTURES_FILE,
    PICTURES_HEADER,
    PREDICTIONS_FILE,
    PREDICTIONS_HEADER,
    PROBABILITIES_FILE,
    prediction_rows,
)
from finetune.classifier.run_metrics import (
    Baselines,
    PictureCounts,
    ProbeCurveMetrics,
    RunMetrics,
    SplitMetrics,
    SweepMetrics,
    UnlabelledMetrics,
    ValidationMetrics,
    write_metrics,
)
from finetune.classifier.temperature import calibrated, calibration_summary, fit_temperature
from finetune.errors import InputError
from finetune.features.table import MOST_OF_TRAIN, SPLITS, FeatureTable
from finetune.files.reading import as_type
from finetune.files.tables import write_csv
from finetune.files.writing import write_tensors
from finetune.kept.background import BACKGROUND_FILE, Background, read_again
from finetune.kept.features import FEATURES_FILE, KeptFeatures
from finetune.kept.unknown import learned_unknown, read_trained, showing_unknown
from finetune.kept.views import Views, read_views
from finetune.linear.head import Heads, nearest_mean
from finetune.metrics import accuracy_of, measure_predictions, no_measurement
from finetune.models.device import describe
from finetune.models.pooled import PooledStages
from finetune.progress import Display
from finetune.training.loop import TrainingResult


@dataclass(frozen=True)
class Outcome:
    """A measured classifier, and the training behind it. metrics: the content of metrics.json. log_probabilities: of
    the val and test pictures by split, (n, classes), calibrated. training: empty for a head that was solved. views: of
    the pictures that were measured, where a prediction averages several. background: pictures of none of the classes
    that the classifier has learned the threshold of unknown ones from."""

    classifier: Classifier
    metrics: RunMetrics
    log_probabilities: dict[str, Tensor]
    training: TrainingResult
    views: Views | None = None
    background: Background | None = None

    @property
    def val_accuracy(self) -> float:
        """0 without validation pictures."""
        return 0.0 if self.metrics.val is None else self.metrics.val.accuracy

    def after(self, training: TrainingResult) -> Outcome:
        """The same classifier after a training that did not improve on it."""
        return replace(self, metrics=_with_training(self.metrics, training), training=training)


def measure(
    classifier: Classifier,
    prepared: Prepared,
    heads: Heads | None,
    training: TrainingResult,
    display: Display,
    *,
    backbone_was_trained: bool = False,
) -> Outcome:
    """Fit the temperature of the classifier, and measure it.

    heads: those of `prepared` where the classifier is `heads.kept`: its figures of validation pictures are then those
    of heads that were fitted without the picture. None where the classifier was trained by gradient.
    backbone_was_trained: Whether the backbone below `heads` has learned from the training pictures.
    """
    rows, choice = prepared.rows, prepared.choice
    asked = {split: indices for split, indices in _measured(rows).items() if indices}
    views = None
    if heads is not None and classifier.config.test_time != "plain":
        every = [index for indices in asked.values() for index in indices]
        views = read_views(classifier, prepared.stages, rows, every, prepared.views, display)
    raw = _judged(classifier, rows, heads, views, asked, display)
    val_labels = rows.of_split("val")[1]
    test = (raw["test"], rows.of_split("test")[1]) if "test" in raw else None
    classifier.temperature = fit_temperature(raw["val"], val_labels) if "val" in raw else 1.0
    judged = {split: calibrated(values, classifier.temperature) for split, values in raw.items()}
    from_val = heads is not None and heads.learned_from_val
    learned = ("train", "val") if from_val else ("train",)
    val = _split_metrics(judged["val"], val_labels) if "val" in judged else None
    metrics = RunMetrics(
        **_result(rows, judged),
        split=rows.measured,
        used_for_selection=rows.measured == "val",
        strategy=choice.strategy.name,
        reason=choice.reason,
        probe_curve=None if choice.curve is None else as_type(choice.curve.to_dict(), ProbeCurveMetrics, "probe curve"),
        kept="head" if heads is not None else choice.strategy.name,
        learned_from=learned,
        highest_stage=prepared.backbone.highest,
        head_reads=prepared.stages.last(classifier.network.head.in_features),
        frozen_head_reads=prepared.stages.last(prepared.heads.kept.width),
        baselines=_baselines(rows, prepared.heads),
        train=_split_metrics(judged.pop("train"), rows.labels[asked["train"]]),
        val=None if val is None else ValidationMetrics(**vars(val)),
        calibration=(
            calibration_summary(classifier.temperature, (raw["val"], val_labels), test) if "val" in raw else None
        ),
        pictures=PictureCounts(**{split: len(rows.indices(split)) for split in SPLITS}),
        unreadable=rows.folder.unreadable,
        left_out=rows.folder.left_out,
        notes=rows.folder.notes,
        unlabelled=_unlabelled(prepared),
    )
    background = None if heads is None else prepared.background
    if heads is not None:
        metrics = learned_unknown(
            classifier,
            metrics,
            rows,
            prepared.widths,
            learned,
            trained=backbone_was_trained,
            background=background,
            display=display,
        )
    return Outcome(classifier, _with_training(metrics, training), judged, training, views, background)


def _measured(rows: FeatureTable) -> dict[str, list[int]]:
    """The pictures that a classifier is measured on, by split: of the training pictures some, evenly spread."""
    some = rows.indices("train")[:: max(1, -(-len(rows.folder.train) // MOST_OF_TRAIN))]
    return {"train": some} | {split: rows.indices(split) for split in SPLITS[1:]}


def _result(rows: FeatureTable, judged: dict[str, Tensor]) -> dict[str, Any]:
    """The figures of the split that measures the run, as fields of `RunMetrics`."""
    if rows.measured is None:
        return no_measurement(rows.folder.classes)
    return vars(measure_predictions(judged[rows.measured], rows.of_split(rows.measured)[1], rows.folder.classes))


def _unlabelled(prepared: Prepared) -> UnlabelledMetrics | None:
    learned = prepared.unlabelled
    if learned is None:
        return None
    return learned.metrics(learned.next(prepared.rows, prepared.widths, IN_REPORT))


def _with_training(metrics: RunMetrics, training: TrainingResult) -> RunMetrics:
    """`metrics` with what is known of the training."""
    return replace(
        metrics,
        interrupted=training.interrupted,
        epochs=training.epochs,
        best_epoch=training.best_epoch,
        share_of_the_way=training.share,
        lr=training.lr,
        lr_sweep=None if training.sweep is None else as_type(training.sweep, SweepMetrics, "learning-rate sweep"),
    )


def _judged(
    classifier: Classifier,
    rows: FeatureTable,
    heads: Heads | None,
    views: Views | None,
    asked: dict[str, list[int]],
    display: Display,
) -> dict[str, Tensor]:
    """Log-probabilities (n, classes) of pictures by split. asked: their indices."""
    if heads is not None and views is not None:
        return {split: views.log_probabilities(heads.kept, indices) for split, indices in asked.items()}
    if heads is not None:
        # A head on the frozen backbone, whose activations are known.
        answers = {split: heads.kept(rows.pooled[indices]) for split, indices in asked.items() if split != "val"}
        if "val" in asked:
            answers["val"] = heads.val_logits
        return {split: answers[split].log_softmax(1) for split in ("val", "train", "test") if split in answers}
    found = log_probabilities(classifier, rows, [index for indices in asked.values() for index in indices], display)
    return dict(zip(asked, found.split([len(indices) for indices in asked.values()]), strict=True))


def log_probabilities(classifier: Classifier, rows: FeatureTable, indices: Sequence[int], display: Display) -> Tensor:
    """Log-probabilities (n, classes) of the pictures at n indices. InputError where one can no longer be read."""
    paths = rows.paths()
    wanted = [paths[index] for index in indices]
    found, readable, contents = classifier.log_probabilities(wanted, display=display)
    if len(readable) < len(wanted):
        lost = next(path for position, path in enumerate(wanted) if contents[position].reason)
        raise InputError(f"{lost} could be read at the start of the run and cannot now; was the folder changed?")
    return found


def _baselines(rows: FeatureTable, heads: Heads) -> Baselines:
    if rows.measured is None:
        return Baselines()
    pooled, labels = rows.of_split(rows.measured)
    train_pooled, train_labels = rows.of_split("train")
    majority = torch.full_like(labels, int(train_labels.bincount().argmax()))
    means = nearest_mean(train_pooled[:, -rows.width :], train_labels, pooled[:, -rows.width :])
    answers = heads.kept(pooled) if rows.measured == "test" else heads.val_logits
    return Baselines(
        majority_class=accuracy_of(majority, labels),
        nearest_class_mean=accuracy_of(means, labels),
        head=accuracy_of(answers.argmax(1), labels),
    )


def _split_metrics(log_probabilities: Tensor, labels: Tensor) -> SplitMetrics:
    loss = float(torch.nn.functional.nll_loss(log_probabilities.double(), labels))
    found = accuracy_of(log_probabilities.argmax(1), labels)
    return SplitMetrics(accuracy=found.accuracy, interval=found.interval, loss=loss, n=len(labels))


def write_run(folder: Path, asked: dict[str, Any], outcome: Outcome, rows: FeatureTable) -> None:
    """Fill a run folder; config.json goes last, because a run with class names in it can be loaded.

    asked: options that were asked for with another value, see `RunConfig`.
    """
    classifier, metrics, history = outcome.classifier, outcome.metrics, outcome.training.history
    if history:
        write_csv(folder / HISTORY_FILE, list(history[0]), [list(row.values()) for row in history])
    predictions = [
        (sample, split, row)
        for split, log_probabilities in outcome.log_probabilities.items()
        for sample, row in zip(rows.samples(split), log_probabilities, strict=True)
    ]
    write_csv(folder / PREDICTIONS_FILE, PREDICTIONS_HEADER, prediction_rows(classifier.classes, predictions))
    write_tensors(folder / PROBABILITIES_FILE, outcome.log_probabilities)
    write_csv(folder / PICTURES_FILE, PICTURES_HEADER, _picture_rows(rows, metrics.learned_from or ()))
    write_metrics(folder, metrics)
    if outcome.background is None:
        (folder / BACKGROUND_FILE).unlink(missing_ok=True)
    else:
        outcome.background.write(folder)
    classifier.save(
        folder,
        {
            "folder": str(rows.listing.root.resolve()),
            **({} if rows.listing.table is None else {"table": rows.listing.table}),
            **({"asked": asked} if asked else {}),
            "strategy": metrics.strategy,
            "kept": metrics.kept,
            "made_with": describe(classifier.fabric),
        },
    )


def _picture_rows(rows: FeatureTable, learned: Sequence[str]) -> list[tuple[str, ...]]:
    return [
        (sample.path, split, sample.label, rows.contents[index].sha256, "yes" if split in learned else "no")
        for split in SPLITS
        for sample, index in zip(rows.samples(split), rows.indices(split), strict=True)
    ]


def learn_features(folder: Path | None, outcome: Outcome, prepared: Prepared, display: Display) -> None:
    """Learn to tell unknown pictures where the backbone was trained, and keep the features that `extend` and `forget`
    solve the head on where the run's options say so.

    The activations of a frozen backbone are those that the head learned from. Those of a trained one are read now, in
    one pass: of all pictures where they are kept, and otherwise of those that show unknown ones. A run that has little
    time, or was interrupted, does without. folder: None for a run in memory, which keeps none.
    """
    classifier, rows, stages = outcome.classifier, prepared.rows, prepared.stages
    config, views, trained = classifier.config, outcome.views, outcome.metrics.kept != "head"
    keeps = folder is not None and config.keep_features
    if folder is not None:
        (folder / FEATURES_FILE).unlink(missing_ok=True)
    if trained and config.minutes is not None:
        return
    if trained:
        stages = PooledStages(classifier.network.backbone)
        rows = read_trained(classifier, stages, rows, None if keeps else showing_unknown(rows), display)
        assert classifier.run_metrics is not None
        background = prepared.background
        if background is not None:
            background = read_again(background, classifier.fabric, stages, config, display)
        classifier.run_metrics = learned_unknown(
            classifier,
            classifier.run_metrics,
            rows,
            stages.widths,
            trained=True,
            background=background,
            display=display,
        )
        if folder is not None:
            classifier.require_unknown().write(folder)
            if background is not None:
                background.write(folder)
            write_metrics(folder, classifier.run_metrics)
    if folder is None or not keeps:
        return
    if trained and config.test_time != "plain":
        every = [index for indices in _measured(rows).values() for index in indices]
        views = read_views(classifier, stages, rows, every, None, display)
    size = KeptFeatures.of(rows, stages.depths, stages.widths, views).write(folder)
    display.say(
        f"features of the pictures kept for finetune extend and finetune forget: {size / 1e6:,.1f} MB "
        "(--no-keep-features keeps none)."
    )
