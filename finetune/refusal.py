"""When to say "unsure": the probability below which a prediction is refused, for an error not to be exceeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import betaincinv  # type: ignore[import-untyped]

from finetune.errors import InputError
from finetune.files import read_csv
from finetune.run_files import PREDICTIONS_FILE

# Shares of the validation pictures that may be left after refusal. Few, and the same for every target: each bound is
# paid for by the others, which all hold at once.
COVERAGES = (1.0, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)

# How sure it is that the error on new pictures is under its bound.
CONFIDENCE = 0.95

# predictions.csv keeps six decimals: what was rounded up to a threshold is not below it.
HALF_DIGIT = 5e-7


@dataclass(frozen=True)
class Refusal:
    """min_probability: below it a prediction is refused. coverage: share of the validation pictures that are not.

    error: share of those that is wrong. bound: under which that share stays on new pictures, at CONFIDENCE.
    """

    min_probability: float
    coverage: float
    error: float
    bound: float


def refusals(probabilities: Sequence[float], right: Sequence[bool]) -> list[Refusal]:
    """What refusal can promise, a row for each of COVERAGES, most pictures kept first.

    probabilities: of the predicted class, (n,), of pictures that were not learned from. right: whether it is the true
    one. Each bound is the upper end of a one-sided interval of Clopper and Pearson (1934), and the confidence is shared
    out between all rows (Bonferroni), as in "selection with guaranteed risk" of Geifman and El-Yaniv (2017): whichever
    is chosen after looking holds, for new pictures of the same kind.
    """
    values, wrong = np.asarray(probabilities, dtype=np.float64), ~np.asarray(right, dtype=bool)
    if len(values) == 0:
        return []
    falling = np.sort(values)[::-1]
    rows = []
    for coverage in COVERAGES:
        last = max(1, round(coverage * len(values))) - 1
        threshold = 0.0 if coverage == 1 else max(0.0, float(falling[last]) - HALF_DIGIT)
        kept = values >= threshold
        n, errors = int(kept.sum()), int(wrong[kept].sum())
        bound = upper_bound(errors, n, 1 - (1 - CONFIDENCE) / len(COVERAGES))
        rows.append(Refusal(threshold, n / len(values), errors / n, bound))
    return rows


def refusal_for(rows: Sequence[Refusal], target_error: float) -> Refusal:
    """The row that keeps most pictures of those whose bound is at or under `target_error`.

    InputError for a target outside of (0, 1), and for one that none of the rows can promise.
    """
    if not 0 < target_error < 1:
        raise InputError(f"--target-error must be between 0 and 1, not {target_error:g}")
    kept = [row for row in rows if row.bound <= target_error]
    if not kept:
        best = min((row.bound for row in rows), default=1.0)
        raise InputError(
            f"--target-error {target_error:g} cannot be promised: the run's validation pictures show no less than "
            f"{_rounded_up(best):g}; ask for that, validate on more pictures, or give --min-probability"
        )
    return max(kept, key=lambda row: row.coverage)


def _rounded_up(share: float) -> float:
    """To two digits, upwards, so that what is told can be asked for."""
    step = 10.0 ** (math.floor(math.log10(share)) - 1)
    return round(math.ceil(share / step) * step, 12)


def upper_bound(errors: int, n: int, confidence: float) -> float:
    """Under which the rate of errors lies at this one-sided confidence, `errors` of `n` seen (Clopper-Pearson)."""
    return 1.0 if errors >= n else float(betaincinv(errors + 1, n - errors, confidence))


def validation_answers(run: Path) -> tuple[list[float], list[bool]]:
    """Of each validation picture of the run: the probability of its prediction, and whether that was right.

    InputError where predictions.csv is missing or damaged.
    """
    path = run / PREDICTIONS_FILE
    try:
        table = read_csv(path, ("split", "label", "predicted", "probability"))
    except InputError as error:
        raise InputError(f"{error}; give --min-probability instead") from error
    rows = [row for row in table if row["split"] == "val"]
    try:
        probabilities = [float(row["probability"]) for row in rows]
        if not all(0 <= probability <= 1 for probability in probabilities):
            raise ValueError("a probability is not between 0 and 1")
    except ValueError as error:
        raise InputError(f"{path} is not as a run leaves it ({error}); give --min-probability instead") from error
    return probabilities, [row["label"] == row["predicted"] for row in rows]
