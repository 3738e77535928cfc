from __future__ import annotations

import time

import pytest

from finetune.progress import TimeLimit, with_estimate


def test_the_remaining_time_is_told_once_and_without_the_time_before_the_first_picture() -> None:
    told: list[float] = []
    advance = with_estimate(lambda done, note: None, 1000, lambda seconds, cores: told.append(seconds))
    time.sleep(0.5)  # a network is prepared
    advance(16, "")
    time.sleep(1.6)
    advance(160, "")
    advance(160, "")
    assert told == [pytest.approx(1.6 / 160 * (1000 - 176), rel=0.3)]


def test_a_job_that_is_done_at_once_tells_nothing() -> None:
    told: list[float] = []
    advance = with_estimate(lambda done, note: None, 100, lambda seconds, cores: told.append(seconds))
    advance(100, "")
    assert told == []


def test_a_time_limit_counts_what_earlier_parts_took() -> None:
    limit = TimeLimit(seconds=60, started=time.monotonic() - 10, spent=30)
    assert limit.used == pytest.approx(40, abs=1)
    assert limit.left == pytest.approx(20, abs=1)
