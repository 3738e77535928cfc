"""What the errors on training and validation pictures say together: too small a model, too large a one, or done.

As taught since Ng (2017, Machine Learning Yearning, chapters 20 to 27): a high training error asks for a larger model
or longer training, a low one with a high validation error for regularisation and more data. Where both are high, the
larger of the two, the training error and what validation adds to it, is the one to mend first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.metrics import wilson_interval

# An error is high beyond this share of the pictures.
HIGH = 0.10
# Validation is done with where its error, at the worst that its interval allows, stays at or below this.
DONE = 0.15
# Validation must be worse than training by more than this, interval and all, to speak of overfitting.
GAP = 0.03
# Of the way from guessing to a perfect fit, what a training loss may leave before it counts as high.
HIGH_LOSS = 0.3
# How much higher the validation loss may end than it was at its best, before it counts as having turned.
TURNED = 1.1

NAMES = {
    "underfit": "underfitting",
    "overfit": "overfitting",
    "done": "done",
    "unknown": "too little is known",
}


@dataclass(frozen=True)
class Diagnosis:
    """kind: a key of NAMES. sentence: what is the matter. evidence: the numbers that say so. advice: what to try next,
    each a flag and why, the first first."""

    kind: str
    sentence: str
    evidence: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def name(self) -> str:
        return NAMES[self.kind]


def diagnose(
    metrics: Mapping[str, Any], history: Sequence[Mapping[str, float]], config: Mapping[str, Any], classes: int
) -> Diagnosis:
    """The diagnosis of a run by its metrics.json, its history.csv (epochs, oldest first) and its options.

    Training pictures are judged by metrics["train"], the kept network's accuracy on them as they are; without it by
    the training loss, which augmentation and label smoothing raise. Test pictures have no say.
    """
    val = metrics.get("val")
    if not val:
        return _unknown([], "there is no accuracy on validation pictures, which a diagnosis stands on")
    error = 1 - val["accuracy"]
    low, high = (1 - share for share in reversed(val.get("interval") or _interval(val["accuracy"], val["n"])))
    evidence = [f"validation error {_share(error)} ({_share(low)} to {_share(high)}) on {val['n']:,} pictures"]
    train = metrics.get("train")
    if train:
        train_error = 1 - train["accuracy"]
        on = f" on {train['n']:,} pictures" if "n" in train else ""
        evidence.insert(0, f"training error {_share(train_error)}{on}, as they are, without augmentation")
        if train_error > HIGH and (error - train_error <= train_error or low - train_error <= GAP):
            later = _fitted_later(history, config, classes)
            return _overfit(evidence + later, metrics, config) if later else _underfit(evidence, metrics, config)
        if low - train_error > GAP:
            return _overfit(evidence + _turned(history), metrics, config)
        if high <= DONE:
            return _done(evidence)
        return _unknown(evidence, "there are too few validation pictures to tell a good model from a middling one")
    if high <= DONE:
        return _done(evidence)
    left = _loss_left(history, metrics.get("best_epoch", 0), config, classes)
    if left is None:
        return _unknown(evidence, "how well it does on its own training pictures was not measured")
    evidence.append(
        f"training loss {_share(left)} of the way from a perfect fit to guessing, at the epoch that was kept; "
        "augmentation is in it, so it tells less than an accuracy would"
    )
    if left > HIGH_LOSS and error > HIGH:
        return _underfit(evidence, metrics, config)
    if left <= HIGH_LOSS and low > GAP:
        return _overfit(evidence + _turned(history), metrics, config)
    return _unknown(evidence, "the two errors lie too near each other, for so few validation pictures")


def _underfit(evidence: Sequence[str], metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Diagnosis:
    advice = []
    strategy = metrics.get("strategy")
    larger = {"head": "partial", "partial": "full"}.get(str(metrics.get("kept") or strategy))
    if strategy == "scratch":
        advice.append("--strategy auto: start from pretrained weights, which know most of what pictures are made of")
    elif larger and larger != strategy:
        advice.append(f"--strategy {larger}: let more of the network learn")
    epochs = metrics.get("epochs", 0)
    if metrics.get("interrupted"):
        advice.insert(0, "--resume: the run was interrupted, let it go to its end")
    elif epochs:
        longer = f"--epochs {2 * epochs}: train longer"
        at_the_end = metrics.get("best_epoch", 0) >= 0.8 * epochs
        advice.insert(
            0 if at_the_end else len(advice), longer + (", it was still getting better" if at_the_end else "")
        )
    advice.append(f"--backbone NAME: a larger one than {config.get('backbone', 'this')}")
    if epochs and config.get("mixup"):
        advice.append("--mixup 0: less to fight against")
    return Diagnosis(
        "underfit",
        "The model makes many mistakes even on the pictures that it learned from: it is too small for them, or has "
        "not learned for long enough. More pictures would not help yet.",
        tuple(evidence),
        tuple(advice),
    )


def _overfit(evidence: Sequence[str], metrics: Mapping[str, Any], config: Mapping[str, Any]) -> Diagnosis:
    advice = []
    strategy = metrics.get("strategy")
    kept = metrics.get("kept") or strategy
    trained = bool(metrics.get("epochs", 0)) and strategy != "head"
    if strategy == "scratch":
        advice.append("--strategy auto: pretrained weights need far fewer pictures than random ones")
    elif trained and kept != "head":
        advice.append(f"--strategy {'head' if kept == 'partial' else 'partial'}: let less of the network move")
    if trained:
        stronger = max(0.08, round((config.get("crop_scale") or 0.35) / 2, 2))
        if not config.get("trivial_augment", True):
            advice.append("--trivial-augment: stronger augmentation")
        advice.append(f"--mixup {0.4 if config.get('mixup') else 0.2}: stronger augmentation")
        advice.append(f"--crop-scale {stronger:g}: stronger augmentation")
        advice.append(f"--weight-decay {5 * (config.get('weight_decay') or 0.02):g}: more regularisation")
    elif kept == "head":
        advice.append("--strategy partial: augmented views, which a head on frozen features never sees")
    advice.append("more training pictures, first of the classes with the lowest recall: nothing else helps as much")
    return Diagnosis(
        "overfit",
        "The model does well on the pictures that it learned from and clearly worse on others: it needs more pictures, "
        "stronger augmentation or more regularisation.",
        tuple(evidence),
        tuple(advice),
    )


def _done(evidence: Sequence[str]) -> Diagnosis:
    return Diagnosis(
        "done",
        "Few mistakes on new pictures, and no sign of a model that is too small or too large. What is left is in "
        "single pictures: look at the mistakes below, some may be wrong labels.",
        tuple(evidence),
        (),
    )


def _unknown(evidence: Sequence[str], why: str) -> Diagnosis:
    return Diagnosis(
        "unknown",
        f"No diagnosis: {why}.",
        tuple(evidence),
        ("--val-fraction 0.3, or a val/ folder with more pictures: to know more before anything is changed",),
    )


def _fitted_later(history: Sequence[Mapping[str, float]], config: Mapping[str, Any], classes: int) -> list[str]:
    """What tells that training went on to fit its pictures while validation turned: what was kept, an early epoch or
    the head from before, has a high training error because it was stopped, not because it could not learn."""
    left = _loss_left(history, history[-1]["epoch"], config, classes) if history else None
    turned = _turned(history)
    if left is None or left > HIGH_LOSS or not turned:
        return []
    return [*turned, f"training loss ended {_share(left)} of the way from a perfect fit to guessing"]


def _loss_left(
    history: Sequence[Mapping[str, float]], epoch: float, config: Mapping[str, Any], classes: int
) -> float | None:
    """Where the training loss of `epoch` lies between the least that label smoothing allows, 0, and that of guessing,
    1; None where there was no such epoch."""
    smoothing: float = config.get("label_smoothing", 0.0)
    row = next((row for row in history if row["epoch"] == epoch), None)
    if row is None or classes < 2 or not math.isfinite(row["train_loss"]):
        return None
    spread = smoothing / classes
    target = 1 - smoothing + spread
    floor = -target * math.log(target) - ((classes - 1) * spread * math.log(spread) if spread else 0.0)
    return max(0.0, (row["train_loss"] - floor) / (math.log(classes) - floor))


def _turned(history: Sequence[Mapping[str, float]]) -> list[str]:
    losses = [row["val_loss"] for row in history if math.isfinite(row["val_loss"])]
    if not losses or losses[-1] <= TURNED * min(losses):
        return []
    return [f"validation loss rose from {min(losses):.3g} to {losses[-1]:.3g} while training went on"]


def _interval(share: float, n: int) -> tuple[float, float]:
    return wilson_interval(round(share * n), n)


def _share(value: float) -> str:
    return f"{value:.1%}"
