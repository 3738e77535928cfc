"""The published evaluation protocols, each by its paper's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fewshot.omniglot import Run
from finetune.errors import InputError
from finetune.metrics import wilson_interval

# Test pictures (n, 105, 105) and training pictures (m, 105, 105), uint8, ink 255 on 0, to (n, m): smaller is nearer.
Distance = Callable[[Tensor, Tensor], Tensor]

RESAMPLINGS = 10_000


@dataclass(frozen=True)
class ProtocolResult:
    """How often the nearest training picture was of the right class, as fractions.

    accuracy: the mean of `per_run`. interval: 95 %, for other runs like these; it knows nothing of other seeds of
    training. seed: of the bootstrap.
    """

    protocol: str
    accuracy: float
    interval: tuple[float, float]
    per_run: tuple[float, ...]
    trials: int
    seed: int


def lake(distance: Distance, runs: Sequence[Run], *, seed: int = 0) -> ProtocolResult:
    """One-shot classification of Lake et al. (2015): 20 runs, each 20 questions among 20 characters of one alphabet.

    Their papers give the error, 1 - accuracy. InputError where `distance` does not give (n_test, n_train) numbers.
    """
    if not runs:
        raise InputError("no runs to measure; fewshot.omniglot.lake_runs reads them")
    credits = []
    for run in runs:
        with torch.inference_mode():
            distances = distance(run.test, run.train)
        credits.append(score(distances, run.answers, name=run.name))
    per_run = tuple(float(credit.mean()) for credit in credits)
    trials = sum(len(credit) for credit in credits)
    return ProtocolResult(
        protocol="lake",
        accuracy=float(np.mean(per_run)),
        interval=bootstrap_interval(per_run, trials, seed),
        per_run=per_run,
        trials=trials,
        seed=seed,
    )


def score(distances: Tensor, answers: Tensor, name: str = "distances") -> Tensor:
    """What each question earned, (n_test,) float64: 1 for the right class nearest, 1/m where m classes tie for nearest.

    distances: (n_test, n_train), smaller is nearer; one training picture a class. answers: (n_test,), the right column.
    Ties are shared because a model that gives one distance for all must not win by the order of the columns.
    InputError, which begins with `name`, for another shape and for distances that are not numbers.
    """
    if distances.ndim != 2 or len(distances) != len(answers):
        raise InputError(f"{name}: distances of shape {tuple(distances.shape)} for {len(answers)} questions")
    if distances.isnan().any():
        bad = int(distances.isnan().sum())
        raise InputError(f"{name}: {bad} of {distances.numel()} distances are not numbers; are the weights finite?")
    nearest = distances == distances.min(1, keepdim=True).values
    right = nearest.gather(1, answers.to(nearest.device)[:, None])[:, 0]
    return (right.double() / nearest.sum(1)).cpu()


def bootstrap_interval(per_run: Sequence[float], trials: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of `per_run`, resampling whole runs: questions of one run share pictures and alphabet.

    Where all runs are equal there is nothing to resample, and an accuracy of 1 would be certain; then it is Wilson's
    interval for `trials` independent questions.
    """
    values = np.array(per_run)
    if np.ptp(values) == 0:
        return wilson_interval(round(float(values.mean()) * trials), trials)
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLINGS, len(values)))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)
