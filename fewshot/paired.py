"""Two models asked the same questions: how much one is better, and whether that could be luck."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fewshot.intervals import RESAMPLINGS
from fewshot.protocols import ProtocolResult, VerificationResult
from finetune.errors import InputError

Result = ProtocolResult | VerificationResult


@dataclass(frozen=True)
class Difference:
    """difference: of the accuracies, the first less the second. interval: 95 %. p: how often a difference as large, in
    either direction, comes about where the two are as good as each other."""

    protocol: str
    difference: float
    interval: tuple[float, float]
    p: float


def compare(one: Result, other: Result, seed: int = 0) -> Difference:
    """Both by the same protocol, seed and questions.

    What is paired are the runs, characters or alphabets, not the questions: those of one share pictures. The interval
    resamples them; p flips the sign of each one's difference at random (Fisher's randomisation test, two-sided).
    InputError for results of different questions.
    """
    if _questions(one) != _questions(other):
        raise InputError(f"{one.protocol} and {other.protocol} asked different questions; they cannot be compared")
    differences = np.array(one.parts) - np.array(other.parts)
    random = np.random.default_rng(seed)
    drawn = differences[random.integers(len(differences), size=(RESAMPLINGS, len(differences)))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    flipped = (random.integers(2, size=(RESAMPLINGS, len(differences))) * 2 - 1) @ differences / len(differences)
    observed = float(differences.mean())
    # Sums in another order differ in the last bits.
    as_large = np.count_nonzero(np.abs(flipped) >= abs(observed) - 1e-12)
    return Difference(one.protocol, observed, (float(low), float(high)), (as_large + 1) / (RESAMPLINGS + 1))


def _questions(result: Result) -> tuple[object, ...]:
    shape = (result.way, result.shot) if isinstance(result, ProtocolResult) else ()
    return result.protocol, result.tested, result.trials, result.seed, len(result.parts), *shape
