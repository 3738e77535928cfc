"""Diagnosis of a run from its training and validation errors: underfitting, overfitting, or done.

After Ng (2017, Machine Learning Yearning, chapters 20 to 27): a high training error asks for a larger model or longer
training; a low training error with a high validation error asks for regularisation and more data. Where both are high,
the larger of the training error and the gap to validation is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.classifier.run_metrics import RunMetrics
from finetune.config import Config
from finetune.metrics import wilson_interval

# An error is high beyond this share of the pictures.
HIGH = 0.10
# A run is done where the upper end of the validation error's interval is at most this.
DONE = 0.15
# Overfitting: the lower end of the validation error's interval exceeds the training error by more than this.
GAP = 0.03
# A training loss counts as high above this share of the loss of guessing, after the loss of a perfect fit is removed.
HIGH_LOSS = 0.3
# The validation loss has turned where its last value is more than this many times its lowest.
TURNED = 1.1

NAMES = {
    "underfit": "underfitting",
    "overfit": "overfitting",
    "done": "done",
    "unknown": "no diagnosis",
}


@dataclass(frozen=True)
class Diagnosis:
    """The diagnosis of a run.

    kind: a key of NAMES. sentence: the diagnosis in words. evidence: the numbers behind it. advice: what to try next,
    most promising first, each "--flag VALUE: reason" or a plain sentence.
    """

    kind: str
    sentence: str
    evidence: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def name(self) -> str:
        return NAMES[self.kind]


def diagnose(metrics: RunMetrics, history: Sequence[Mapping[str, float]], config: Config, classes: int) -> Diagnosis:
    """Diagnose a run. Test pictures are not used.

    Args:
        metrics: Contents of metrics.json.
        history: Rows of history.csv, oldest first.
        config: Options of the run.
        classes: Number of classes.

    Returns:
        The diagnosis. The training error is that of `metrics.train`, measured without augmentation; where it is
        missing, the training loss is used, which augmentation and label smoothing raise.
    """
    val, train = metrics.val, metrics.train
    if val is None and metrics.pictures is not None and metrics.pictures.val == 0:
        return _without_validation(metrics)
    if val is None:
        return _unknown([], "the run has no accuracy on validation pictures")
    error = 1 - val.accuracy
    low, high = (1 - share for share in reversed(val.interval or _interval(val.accuracy, val.n)))
    evidence = [
        f"validation error {_share(error)} (95% interval {_share(low)} to {_share(high)}) on {val.n:,} pictures"
    ]
    if train is not None:
        train_error = 1 - train.accuracy
        on = "" if train.n is None else f" on {train.n:,} pictures"
        evidence.insert(0, f"training error {_share(train_error)}{on}, measured without augmentation")
        if train_error > HIGH and (error - train_error <= train_error or low - train_error <= GAP):
            later = _fitted_later(history, config, classes)
            return _overfit(evidence + later, metrics, config) if later else _underfit(evidence, metrics, config)
        if low - train_error > GAP:
            return _overfit(evidence + _turned(history), metrics, config)
        if high <= DONE:
            return _done(evidence)
        return _unknown(evidence, "there are too few validation pictures to say whether the model is good")
    if high <= DONE:
        return _done(evidence)
    left = _loss_left(history, metrics.best_epoch, config, classes)
    if left is None:
        return _unknown(evidence, "the error on training pictures was not measured")
    evidence.append(
        f"training loss of the kept epoch {_share(left)} of the way from a perfect fit to guessing; "
        "augmentation raises it"
    )
    if left > HIGH_LOSS and error > HIGH:
        return _underfit(evidence, metrics, config)
    if left <= HIGH_LOSS and low > GAP:
        return _overfit(evidence + _turned(history), metrics, config)
    return _unknown(evidence, "with so few validation pictures, training and validation error do not differ clearly")


def _underfit(evidence: Sequence[str], metrics: RunMetrics, config: Config) -> Diagnosis:
    advice = []
    strategy = metrics.strategy
    larger = {"head": "partial", "partial": "full"}.get(metrics.kept or strategy)
    if strategy == "scratch":
        advice.append("--strategy auto: start from pretrained weights")
    elif larger and larger != strategy:
        advice.append(f"--strategy {larger}: train more layers")
    epochs = metrics.epochs
    if metrics.interrupted:
        advice.insert(0, "--resume: finish the run, which was interrupted")
    elif epochs:
        longer = f"--epochs {2 * epochs}: train longer"
        at_the_end = metrics.best_epoch >= 0.8 * epochs
        advice.insert(
            0 if at_the_end else len(advice),
            longer + (", since the last epochs still improved the result" if at_the_end else ""),
        )
    advice.append(f"--backbone NAME: use a larger backbone than {config.backbone}")
    if epochs and config.mixup:
        advice.append("--mixup 0: weaken the augmentation")
    return Diagnosis(
        "underfit",
        "The model makes many mistakes even on its training pictures. It is too small, or was not trained for long "
        "enough. More pictures would not help yet.",
        tuple(evidence),
        tuple(advice),
    )


def _overfit(evidence: Sequence[str], metrics: RunMetrics, config: Config) -> Diagnosis:
    advice = []
    strategy = metrics.strategy
    kept = metrics.kept or strategy
    trained = metrics.epochs > 0 and strategy != "head"
    if strategy == "scratch":
        advice.append("--strategy auto: start from pretrained weights, which need far fewer pictures than random ones")
    elif trained and kept not in ("head", "partial"):
        # After partial, fewer layers would be the head alone, which this run has tried: it was not better.
        advice.append("--strategy partial: train fewer layers")
    if trained:
        stronger = max(0.08, round(config.crop_scale / 2, 2))
        if not config.trivial_augment:
            advice.append("--trivial-augment: use stronger augmentation")
        advice.append(f"--mixup {0.4 if config.mixup else 0.2}: use stronger augmentation")
        advice.append(f"--crop-scale {stronger:g}: use stronger augmentation")
        advice.append(f"--weight-decay {5 * (config.weight_decay or 0.02):g}: use more regularisation")
    elif kept == "head":
        advice.append(
            "--strategy partial: train the top layers on augmented pictures, which a head on frozen features cannot use"
        )
    advice.append("Add training pictures, first of the classes with the lowest recall. Nothing else helps as much.")
    return Diagnosis(
        "overfit",
        "The model is clearly better on its training pictures than on others. It needs more pictures, stronger "
        "augmentation or more regularisation.",
        tuple(evidence),
        tuple(advice),
    )


def _done(evidence: Sequence[str]) -> Diagnosis:
    return Diagnosis(
        "done",
        "The model makes few mistakes on new pictures, and shows no sign of underfitting or overfitting. Some of "
        "the remaining mistakes may be wrong labels.",
        tuple(evidence),
        (),
    )


def _unknown(evidence: Sequence[str], why: str) -> Diagnosis:
    return Diagnosis(
        "unknown",
        f"{why[0].upper()}{why[1:]}.",
        tuple(evidence),
        ("--val-fraction 0.3: set more pictures aside for validation, or give a val/ folder with more",),
    )


def _without_validation(metrics: RunMetrics) -> Diagnosis:
    evidence = []
    if metrics.train is not None:
        on = "" if metrics.train.n is None else f" on {metrics.train.n:,} pictures"
        evidence = [f"training error {_share(1 - metrics.train.accuracy)}{on}"]
    return Diagnosis(
        "unknown",
        "No class has two different training pictures, so none could be set aside for validation.",
        tuple(evidence),
        ("Add pictures. From two different pictures of a class on, some are set aside for validation.",),
    )


def _fitted_later(history: Sequence[Mapping[str, float]], config: Config, classes: int) -> list[str]:
    """Evidence that training fitted its pictures after the kept epoch, while the validation loss rose.

    The kept weights then have a high training error because training was stopped early, not because they underfit.
    """
    left = _loss_left(history, history[-1]["epoch"], config, classes) if history else None
    turned = _turned(history)
    if left is None or left > HIGH_LOSS or not turned:
        return []
    return [*turned, f"at the last epoch, training loss {_share(left)} of the way from a perfect fit to guessing"]


def _loss_left(history: Sequence[Mapping[str, float]], epoch: float, config: Config, classes: int) -> float | None:
    """Training loss of `epoch`, rescaled: 0 is the minimum under label smoothing, 1 the loss of guessing.

    None where there was no such epoch.
    """
    smoothing = config.label_smoothing
    row = next((row for row in history if row["epoch"] == epoch), None)
    if row is None or classes < 2 or not math.isfinite(row["train_loss"]):
        return None
    spread = smoothing / classes
    target = 1 - smoothing + spread
    floor = -target * math.log(target) - ((classes - 1) * spread * math.log(spread) if spread else 0.0)
    room = math.log(classes) - floor
    return max(0.0, (row["train_loss"] - floor) / room) if room > 0 else None


def _turned(history: Sequence[Mapping[str, float]]) -> list[str]:
    losses = [row["val_loss"] for row in history if math.isfinite(row["val_loss"])]
    if not losses or losses[-1] <= TURNED * min(losses):
        return []
    return [f"validation loss rose from {min(losses):.3g} to {losses[-1]:.3g} during training"]


def _interval(share: float, n: int) -> tuple[float, float]:
    return wilson_interval(round(share * n), n)


def _share(value: float) -> str:
    return f"{value:.1%}"
