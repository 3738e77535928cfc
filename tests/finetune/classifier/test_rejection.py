from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.classifier.rejection import (
    COVERAGES,
    EACH,
    Rejection,
    pictures_needed,
    rejection_for,
    rejections,
    upper_bound,
    validation_answers,
)
from finetune.errors import InputError


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=40))
def test_a_row_counts_the_answers_at_its_threshold(drawn: list[tuple[int, bool]]) -> None:
    probabilities, right = [tenth / 10 for tenth, _ in drawn], [each for _, each in drawn]
    rows = rejections(probabilities, right)
    assert len(rows) == len(COVERAGES)
    falling = sorted(probabilities, reverse=True)
    for row, coverage in zip(rows, COVERAGES, strict=True):
        lowest = 0.0 if coverage == 1 else falling[max(1, round(coverage * len(drawn))) - 1]
        # Probabilities in the table have six decimals: one that was rounded up to the threshold is answered.
        assert row.min_probability == pytest.approx(max(0.0, lowest - 5e-7), abs=1e-12)
        answered = [each for tenth, each in drawn if tenth / 10 >= lowest]
        wrong = answered.count(False)
        assert (row.answered, row.coverage, row.error) == (
            len(answered),
            len(answered) / len(drawn),
            wrong / len(answered),
        )
        assert row.bound == upper_bound(wrong, len(answered), EACH)


ROWS = [
    Rejection(0.0, 1.0, 0.1, 0.2, 100),
    Rejection(0.6, 0.8, 0.05, 0.1, 80),
    Rejection(0.9, 0.5, 0.01, 0.1, 50),
    Rejection(0.95, 0.2, 0.0, 0.08, 20),
]


@pytest.mark.parametrize(("target", "chosen"), [(0.08, 3), (0.0999, 3), (0.1, 1), (0.19, 1), (0.2, 0), (0.999, 0)])
def test_most_pictures_are_answered_whose_bound_is_within_the_target(target: float, chosen: int) -> None:
    for seed in range(3):
        assert rejection_for(random.Random(seed).sample(ROWS, 4), target) == ROWS[chosen]


@pytest.mark.parametrize("target", [0, 1, -0.5, 1.5, math.nan])
def test_a_target_that_is_no_share_names_its_option(target: float) -> None:
    with pytest.raises(InputError, match=f"--target-error must be .* not {target:g}"):
        rejection_for(ROWS, target)


@pytest.mark.parametrize(
    ("rows", "target", "expected"),
    [
        # Without an error the bound is 1 - 0.005 ** (1 / n): 104 pictures for 0.05, rounded up to two digits.
        ([Rejection(0.0, 1.0, 0.0, 0.3, 10)], 0.05, 110),
        ([Rejection(0.0, 1.0, 0.0, 0.3, 60)], 0.05, 110),
        ([Rejection(0.0, 1.0, 0.0, 0.3, 103)], 0.05, 110),
        ([Rejection(0.8, 0.5, 0.0, 0.3, 10)], 0.05, 210),
        ([Rejection(0.8, 0.75, 0.0, 0.3, 10)], 0.05, 140),
        ([Rejection(0.0, 1.0, 0.0, 0.3, 10)], 1.0001 - 0.005**0.01, 100),
        ([Rejection(0.0, 1.0, 0.0, 0.3, 10)], 1.0001 - 0.005 ** (1 / 53), 53),
        # The row with the fewest, and rows with too many errors count for none.
        ([Rejection(0.8, 0.5, 0.0, 0.3, 10), Rejection(0.9, 0.2, 0.0, 0.3, 5)], 0.05, 210),
        ([Rejection(0.0, 1.0, 0.05, 0.3, 40), Rejection(0.8, 0.5, 0.0, 0.3, 20)], 0.05, 210),
        ([Rejection(0.0, 1.0, 0.05, 0.3, 40), Rejection(0.8, 0.5, 0.06, 0.3, 20)], 0.05, None),
        # Out of reach.
        ([Rejection(0.0, 1.0, 0.0, 0.3, 10)], 1e-6, 5_300_000),
        ([Rejection(0.0, 1.0, 0.0, 0.3, 10)], 5.3e-7, 10_000_000),
        ([Rejection(0.0, 1.0, 0.0, 0.3, 10)], 5.2e-7, None),
        ([Rejection(0.9, 0.5, 0.0, 0.3, 10)], 1.1e-6, 9_700_000),
        ([Rejection(0.9, 0.5, 0.0, 0.3, 10)], 1e-6, None),
        ([Rejection(0.0, 1.0, 0.0, 0.3, 10), Rejection(0.0, 1.0, 0.0999999, 0.3, 10)], 0.1, 51),
        ([], 0.1, None),
    ],
)
def test_pictures_needed(rows: list[Rejection], target: float, expected: int | None) -> None:
    assert pictures_needed(rows, target) == expected


@pytest.mark.parametrize(("error", "answered", "target"), [(0.1, 40, 0.2), (0.02, 50, 0.05), (0.3, 10, 0.31)])
def test_pictures_needed_allow_for_one_error_more(error: float, answered: int, target: float) -> None:
    needed = pictures_needed([Rejection(0.0, 1.0, error, 1.0, answered)], target)
    assert needed is not None
    enough = next(n for n in range(answered, 10 * needed) if upper_bound(error * n + 1, n, EACH) <= target)
    digits = 10 ** (len(str(enough)) - 2)
    assert needed == -(-enough // digits) * digits


def table(*rows: str) -> str:
    return "\n".join(["path,split,label,predicted,probability", *rows]) + "\n"


def test_answers_are_those_of_validation_pictures(tmp_path: Path) -> None:
    rows = ("a,train,x,x,0.5", "b,val,x,y,0", "c,test,x,x,0.7", "d,val,y,y,1", "e,val,x,x,0.25", "f,,x,x,none")
    (tmp_path / "predictions.csv").write_text(table(*rows))
    assert validation_answers(tmp_path) == ([0.0, 1.0, 0.25], [False, True, True])


@pytest.mark.parametrize("probability", ["-0.001", "1.001", "inf", "nan", "", "high"])
def test_a_probability_that_is_none_names_the_file(probability: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text(table("a,val,x,x,0.5", f"b,val,x,x,{probability}"))
    with pytest.raises(InputError, match=r"predictions\.csv may be damaged .*--min-probability") as told:
        validation_answers(tmp_path)
    assert isinstance(told.value.__cause__, ValueError)
