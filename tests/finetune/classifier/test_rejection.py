from __future__ import annotations

import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from finetune.classifier.answers.rejection import (
    CONFIDENCE,
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

SEEDS = st.integers(0, 2**32 - 1)


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


def answers(n: int, random: np.random.Generator, slope: float = 6.0) -> tuple[list[float], list[bool]]:
    """Probabilities, and answers that are right somewhat less often than they say."""
    claimed = 0.5 + 0.5 * random.beta(slope, 1.0, n)
    return claimed.tolist(), (random.random(n) < claimed - 0.02).tolist()


@given(SEEDS, st.integers(50, 2000), st.floats(0.001, 0.999), st.floats(0.001, 0.999))
@settings(max_examples=60)
def test_a_stricter_target_never_rejects_less(seed: int, n: int, one: float, other: float) -> None:
    rows = rejections(*answers(n, np.random.default_rng(seed)))
    strict, loose = sorted((one, other))
    if min(row.bound for row in rows) > strict:
        with pytest.raises(InputError, match="--target-error"):
            rejection_for(rows, strict)
        return
    chosen = rejection_for(rows, strict)
    assert chosen.min_probability >= rejection_for(rows, loose).min_probability
    assert chosen.error <= chosen.bound <= strict


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.08, 0.12])
def test_the_error_on_new_pictures_is_under_the_target_as_often_as_stated(target: float) -> None:
    random = np.random.default_rng(0)
    fresh, right = map(np.array, answers(200_000, random))
    broken = promised = 0
    for _ in range(400):
        try:
            threshold = rejection_for(rejections(*answers(600, random)), target).min_probability
        except InputError:
            continue
        promised += 1
        kept = fresh >= threshold
        broken += float(1 - right[kept].mean()) > target
    assert promised > 200
    assert broken / 400 <= 1 - CONFIDENCE


def test_nothing_is_rejected_where_the_error_is_below_the_target_anyway() -> None:
    assert rejection_for(rejections([0.5] * 1000, [True] * 1000), 0.1) == Rejection(
        0.0, 1.0, 0.0, upper_bound(0, 1000, 1 - 0.05 / len(COVERAGES)), 1000
    )


@pytest.mark.parametrize(
    ("probabilities", "right"), [([], []), ([0.9] * 20, [True] * 20), ([0.99] * 900, [False] * 900)]
)
def test_a_target_that_cannot_be_promised_is_one_clear_line(probabilities: list[float], right: list[bool]) -> None:
    with pytest.raises(InputError, match="cannot be promised") as told:
        rejection_for(rejections(probabilities, right), 0.001)
    assert "\n" not in str(told.value)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
@settings(max_examples=50)
def test_the_upper_bound_matches_the_binomial_tail(trial: tuple[int, int], confidence: float) -> None:
    errors, n = trial
    bound = upper_bound(errors, n, confidence)
    if errors == n:
        assert bound == 1
        return
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(bound)
        + (n - k) * math.log1p(-bound)
        for k in range(errors + 1)
    ]
    assert sum(map(math.exp, logs)) == pytest.approx(1 - confidence, rel=1e-5)


def test_probabilities_that_were_rounded_up_in_the_table_are_not_rejected() -> None:
    rows = rejections([1.0] * 500 + [0.6] * 500, [True] * 500 + [False, True] * 250)
    assert rejection_for(rows, 0.05).min_probability <= 0.9999996


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_offered_target_error_is_accepted(trial: tuple[int, int]) -> None:
    errors, n = trial
    rows = rejections([0.9] * n, [position >= errors for position in range(n)])
    with pytest.raises(InputError) as told:
        rejection_for(rows, 1e-5)
    offered = re.search(r"ask for --target-error (\S+) or more", str(told.value))
    if offered is None:
        assert min(row.bound for row in rows) > 0.99
    else:
        assert rejection_for(rows, float(offered[1])).bound <= float(offered[1])


@given(SEEDS, st.integers(5, 300), st.floats(0.005, 0.3))
@example(seed=129, n=129, target=0.0625)
@settings(max_examples=30)
def test_a_target_that_cannot_be_promised_says_how_many_pictures_it_takes(seed: int, n: int, target: float) -> None:
    probabilities, right = answers(n, np.random.default_rng(seed))
    rows = rejections(probabilities, right)
    if min(row.bound for row in rows) <= target:
        return
    with pytest.raises(InputError) as told:
        rejection_for(rows, target)
    needed = pictures_needed(rows, target)
    assert "--min-probability" in str(told.value)
    if needed is None:
        assert "more pictures would not help" in str(told.value)
        return
    assert f"about {needed:,} validation pictures" in str(told.value)
    assert needed > n
    copies = needed // n + 2
    # Every row as it is, that many times over: of repeated answers, other ones would be the surest half.
    repeated = [(round(row.error * row.answered) * copies, row.answered * copies) for row in rows]
    assert min(upper_bound(errors, answered, EACH) for errors, answered in repeated) <= target


def test_the_message_says_when_more_pictures_do_not_help() -> None:
    rows = rejections([0.9] * 50, [position >= 10 for position in range(50)])
    with pytest.raises(InputError, match=r"surest 50 of 50 validation pictures 20\.0% are predicted wrong"):
        rejection_for(rows, 0.1)


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
