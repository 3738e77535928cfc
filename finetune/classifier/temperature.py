"""Probabilities that mean what they say: one temperature, fitted on validation pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finetune.classifier.run_metrics import CalibrationMetrics
from finetune.metrics import expected_calibration_error

# What is tried, 5 % apart. Validation pictures that are all told apart would ask for a temperature of 0, which turns
# every doubt into certainty; ones that are mostly wrong for one without end, which makes all classes alike.
TEMPERATURES = tuple(1.05**step for step in range(-33, 48))

# Standard deviation of log-temperature before any picture was seen: few pictures move it little from 1.
SPREAD = 0.5

# Parts that validation is cut into, where it must judge what was fitted on it.
FOLDS = 5


def calibrated(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (n, classes) at a temperature: over 1 they come nearer to each other, under 1 they part.

    The order of the classes stays. Log-probabilities averaged over views are taken as they are after averaging.
    """
    if temperature == 1:
        return log_probabilities
    return (log_probabilities / temperature).log_softmax(-1)


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """Temperature scaling (Guo et al. 2017, section 4.2) of log-probabilities (n, classes) for labels (n,): one of
    TEMPERATURES, that with the least log-loss on them. Give it pictures that the network did not learn from.

    1, which changes nothing, is left only on evidence. A normal prior on its logarithm (SPREAD) holds it near 1 while
    pictures are few. It falls below 1 only while the error that the probabilities claim on average stays at or over
    what the pictures can show, (wrong + 1) / (n + 2) by Laplace's rule of succession. And it is kept only where it
    lowers the log-loss of pictures that did not fit it, in FOLDS-fold cross-validation.
    """
    return _Trials(log_probabilities, labels).chosen(torch.ones(len(labels), dtype=torch.bool))


def cross_calibrated(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """`log_probabilities` (n, classes), each picture's at the temperature that `fit_temperature` finds on the other
    folds: what calibration is worth where there are no other pictures to tell."""
    trials = _Trials(log_probabilities, labels)
    result = log_probabilities.clone()
    for fold in _folds(len(labels)):
        result[fold] = calibrated(log_probabilities[fold], trials.chosen(~fold))
    return result


def calibration_summary(
    temperature: float,
    val: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor] | None,
) -> CalibrationMetrics:
    """Expected calibration errors before and after a temperature that was fitted on `val`.

    Args:
        temperature: As `fit_temperature` found it.
        val: Log-probabilities (n, classes) before the temperature, and labels (n,).
        test: The same of pictures that did not fit the temperature. The errors are measured on these; where there are
            none, on `val` by cross-validation.
    """
    log_probabilities, labels = val if test is None else test
    after = cross_calibrated(*val) if test is None else calibrated(log_probabilities, temperature)
    return CalibrationMetrics(
        temperature=temperature,
        ece_before=expected_calibration_error(log_probabilities, labels),
        ece_after=expected_calibration_error(after, labels),
        n=len(labels),
        split="val" if test is None else "test",
    )


class _Trials:
    """What every temperature does to every picture, computed once: all that is fitted is sums over some of them."""

    def __init__(self, log_probabilities: Tensor, labels: Tensor):
        given = log_probabilities.double()
        rows = torch.arange(len(labels))
        losses, claimed = [], []
        for temperature in TEMPERATURES:
            scaled = calibrated(given, temperature)
            losses.append(-scaled[rows, labels])
            claimed.append(1 - scaled.amax(1).exp())
        self._losses, self._claimed = torch.stack(losses), torch.stack(claimed)  # (temperatures, n)
        self._wrong = (given.argmax(1) != labels).double()
        self._one = TEMPERATURES.index(1.0)

    def chosen(self, among: Tensor) -> float:
        """The temperature for the pictures where `among` (n,) holds."""
        best = self._fitted(among)
        if best == self._one:
            return 1.0
        positions = among.nonzero().flatten()
        gain = 0.0
        for fold in _folds(len(positions)):
            rest = among.clone()
            rest[positions[fold]] = False
            losses = self._losses[:, positions[fold]].sum(1)
            gain += float(losses[self._one] - losses[self._fitted(rest)])
        return TEMPERATURES[best] if gain > 0 else 1.0

    def _fitted(self, among: Tensor) -> int:
        """Position of the likeliest temperature, the prior included."""
        n = int(among.sum())
        if n == 0:
            return self._one
        logs = torch.tensor([math.log(temperature) for temperature in TEMPERATURES], dtype=torch.float64)
        cost = self._losses[:, among].sum(1) + (logs / SPREAD).square() / 2
        shown = (float(self._wrong[among].sum()) + 1) / (n + 2)
        too_sure = (self._claimed[:, among].mean(1) < shown) & (logs < 0)
        return int(cost.masked_fill(too_sure, math.inf).argmin())


def _folds(n: int) -> list[Tensor]:
    """Masks (n,): each of n pictures in one of FOLDS parts, the same on every machine; none without a picture."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    part = torch.empty(n, dtype=torch.int64)
    part[order] = torch.arange(n) % FOLDS
    return [part == number for number in range(min(n, FOLDS))]
