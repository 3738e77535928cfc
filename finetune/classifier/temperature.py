"""Calibration of probabilities: one temperature, fitted on validation pictures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from finetune.classifier.run_metrics import CalibrationMetrics
from finetune.metrics import expected_calibration_error

# Temperatures that are tried, 5 % apart. The bounds matter where validation pictures are all predicted correctly, which
# would give a temperature of 0, or mostly wrongly, which would give an infinite one.
TEMPERATURES = tuple(1.05**step for step in range(-33, 48))

# Standard deviation of the normal prior on log-temperature: with few pictures the temperature stays near 1.
SPREAD = 0.5

# Folds of the cross-validation where the validation pictures both fit and measure.
FOLDS = 5


def calibrated(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (n, classes) at a temperature: above 1 less confident, below 1 more; the order stays.

    With several views of a picture, the temperature applies after averaging over them.
    """
    if temperature == 1:
        return log_probabilities
    return (log_probabilities / temperature).log_softmax(-1)


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float:
    """The temperature of TEMPERATURES with the lowest log-loss, or 1 without clear evidence for another one.

    Without validation pictures (n = 0) it is 1: the probabilities are those of the head, and nothing tells whether they
    are too high or too low.

    A normal prior on its logarithm (SPREAD) holds it near 1 with few pictures. It is below 1 only while the mean error
    that the probabilities claim is at least what the pictures can show, (wrong + 1) / (n + 2) by Laplace's rule of
    succession. And it differs from 1 only where that lowers the log-loss in FOLDS-fold cross-validation.

    Args:
        log_probabilities: Shape (n, classes), of pictures that the network did not learn from.
        labels: True classes, shape (n,), int64.

    Source: Guo et al. (2017), section 4.2.
    """
    return _Trials(log_probabilities, labels).chosen(torch.ones(len(labels), dtype=torch.bool))


def cross_calibrated(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities (n, classes), each fold calibrated by the temperature of the other folds: an honest measure of
    calibration where there are no other pictures."""
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

    val, test: log-probabilities (n, classes) before the temperature, and labels (n,). The errors are measured on test;
    without it on val, by cross-validation.
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
    """Losses of every picture at every temperature, computed once; fits on subsets are sums of these."""

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
        """Position of the most probable temperature, with the prior."""
        n = int(among.sum())
        if n == 0:
            return self._one
        logs = torch.tensor([math.log(temperature) for temperature in TEMPERATURES], dtype=torch.float64)
        cost = self._losses[:, among].sum(1) + (logs / SPREAD).square() / 2
        shown = (float(self._wrong[among].sum()) + 1) / (n + 2)
        too_sure = (self._claimed[:, among].mean(1) < shown) & (logs < 0)
        return int(cost.masked_fill(too_sure, math.inf).argmin())


def _folds(n: int) -> list[Tensor]:
    """Masks (n,) of at most FOLDS folds, none of them empty; the same on every machine."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    part = torch.empty(n, dtype=torch.int64)
    part[order] = torch.arange(n) % FOLDS
    return [part == number for number in range(min(n, FOLDS))]
