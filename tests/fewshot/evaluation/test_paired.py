from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fewshot.evaluation.benchmark import compare
from fewshot.evaluation.protocols import ProtocolResult
from finetune.errors import InputError


def result(parts: list[float]) -> ProtocolResult:
    return ProtocolResult("lake", float(np.mean(parts)), (0.0, 1.0), 20, 1, 400, 0, "20 runs", parts=tuple(parts))


def test_a_model_does_not_differ_from_itself() -> None:
    one = result([0.9, 1.0, 0.8, 0.95] * 5)
    found = compare(one, one)
    assert (found.difference, found.interval, found.p) == (0, (0, 0), 1)


def test_a_model_that_is_better_in_every_run_is_significantly_better() -> None:
    runs = np.random.default_rng(0).uniform(0.7, 0.9, 20)
    better, worse = result((runs + 0.05).tolist()), result(runs.tolist())
    found, reverse = compare(better, worse), compare(worse, better)
    assert found.difference == pytest.approx(0.05)
    assert found.interval == pytest.approx((0.05, 0.05))
    assert found.p < 0.001
    assert reverse.difference == pytest.approx(-0.05)
    assert reverse.p == found.p


def test_p_is_uniform_for_equal_models() -> None:
    random = np.random.default_rng(1)
    significant = 0
    for _ in range(60):
        one, other = (result(random.normal(0.9, 0.05, 20).tolist()) for _ in range(2))
        significant += compare(one, other).p < 0.2
    assert 3 <= significant <= 24


def test_different_questions_are_not_compared() -> None:
    one = result([0.9] * 20)
    for other in (replace(one, seed=1), replace(one, way=5), replace(one, protocol="within"), result([0.9] * 19)):
        with pytest.raises(InputError, match="asked different questions"):
            compare(one, other)
