"""Rejection: the probability below which a prediction is answered "unsure", chosen for an error rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import betaincinv

from finetune.classifier.run_folder import PREDICTIONS_FILE
from finetune.errors import InputError
from finetune.files.tables import read_csv

# Shares of the validation pictures that are answered. All bounds hold at once, so each further share widens the others.
COVERAGES = (1.0, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)

# Confidence that the error on new pictures is below its bound: of all rows together, and of each row alone.
CONFIDENCE = 0.95
EACH = 1 - (1 - CONFIDENCE) / len(COVERAGES)

# A target that needs more validation pictures counts as out of reach.
MOST_NEEDED = 10_000_000

# predictions.csv has six decimals: a probability that was rounded up to a threshold is not below it.
HALF_DIGIT = 5e-7


@dataclass(frozen=True)
class Rejection:
    """A threshold, and its figures on the validation pictures: the share and number of those that get an answer, the
    share of these answers that is wrong, and the upper bound of that on new pictures at CONFIDENCE."""

    min_probability: float
    coverage: float
    error: float
    bound: float
    answered: int


def rejections(probabilities: Sequence[float], right: Sequence[bool]) -> list[Rejection]:
    """One threshold for each of COVERAGES, with its error bound, most pictures answered first.

    Args:
        probabilities: Of the predicted class, shape (n,), of pictures that the network did not learn from.
        right: Whether the prediction is correct, shape (n,).

    Returns:
        A row for each coverage; none without a picture. Each bound is the upper end of a one-sided Clopper-Pearson
        interval (1934). The confidence is divided between all rows (Bonferroni), so that the bound of a row still
        holds when the row is chosen by these figures.

    Source: Geifman and El-Yaniv (2017), "selection with guaranteed risk".
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
        rows.append(Rejection(threshold, n / len(values), errors / n, upper_bound(errors, n, EACH), n))
    return rows


def rejection_for(rows: Sequence[Rejection], target_error: float) -> Rejection:
    """The row with the largest coverage among those whose bound is at most `target_error`.

    Raises:
        InputError: For a target outside (0, 1), and for one that no row guarantees. The message says which target can
            be guaranteed, and how many validation pictures `target_error` needs.
    """
    if not 0 < target_error < 1:
        raise InputError(f"--target-error must be between 0 and 1, not {target_error:g}")
    kept = [row for row in rows if row.bound <= target_error]
    if not kept:
        raise InputError(_cannot_be_promised(rows, target_error))
    return max(kept, key=lambda row: row.coverage)


def _cannot_be_promised(rows: Sequence[Rejection], target: float) -> str:
    refused = f"--target-error {target:g} cannot be promised"
    threshold = "set a threshold yourself with --min-probability"
    if not rows:
        return f"{refused}: the run kept no predictions of validation pictures; {threshold}"
    n = rows[0].answered
    lowest = _rounded_up(min(row.bound for row in rows))
    ways = [f"ask for --target-error {lowest:g} or more"] if lowest < 1 else []
    ways.append(threshold)
    needed = pictures_needed(rows, target)
    if needed is None:
        surest = min(rows, key=lambda row: row.error)
        why = (
            f"of the surest {surest.answered:,} of {n:,} validation pictures {surest.error:.1%} are predicted wrong, "
            "so more pictures would not help"
        )
    else:
        why = f"{n:,} validation pictures are too few for it"
        ways.append(f"train again with at least about {needed:,} validation pictures (in val/)")
    return f"{refused}: {why}; {', or '.join(ways)}"


def pictures_needed(rows: Sequence[Rejection], target_error: float) -> int | None:
    """How many validation pictures would guarantee `target_error`, if the share of wrong answers stays the same.

    Returns:
        The smallest number over all rows, rounded up to two digits; None where every row has a larger share of wrong
        answers, or where more than MOST_NEEDED pictures would be needed.
    """
    numbers = [_needed(row, target_error) for row in rows if row.error < target_error]
    fewest = min((number for number in numbers if number is not None), default=None)
    return None if fewest is None else int(_rounded_up(fewest))


def _needed(row: Rejection, target: float) -> int | None:
    """The number of validation pictures at which the bound of `row` falls to `target`; None beyond MOST_NEEDED."""

    def enough(answered: int) -> bool:
        # One error more than the share gives: rounding must not make a larger number worse than a smaller one.
        errors = row.error * answered + 1 if row.error else 0.0
        return upper_bound(errors, answered, EACH) <= target

    most = math.floor(MOST_NEEDED * row.coverage)
    low, high = row.answered, 2 * row.answered
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return math.ceil(high / row.coverage)


def _rounded_up(value: float) -> float:
    """A positive value rounded up to two digits."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / step - 1e-9) * step, 12)


def upper_bound(errors: float, n: int, confidence: float) -> float:
    """Upper bound of an error rate at this one-sided confidence, after `errors` of `n` (Clopper-Pearson)."""
    return 1.0 if errors >= n else float(betaincinv(errors + 1, n - errors, confidence))


def validation_answers(run: Path) -> tuple[list[float], list[bool]]:
    """The probability of each prediction of a validation picture, and whether it is correct.

    Raises:
        InputError: If predictions.csv is missing or damaged.
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
        raise InputError(f"{path} may be damaged ({error}); give --min-probability instead") from error
    return probabilities, [row["label"] == row["predicted"] for row in rows]
