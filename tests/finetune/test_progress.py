from __future__ import annotations

import time

import pytest

from finetune import progress
from finetune.progress import TimeLimit, with_estimate


def test_the_remaining_time_is_told_once_and_without_the_time_before_the_first_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(progress, "_ESTIMATED_SECONDS", 0.1)
    told: list[float] = []
    advance = with_estimate(lambda done, note: None, 1000, lambda seconds, cores: told.append(seconds))
    time.sleep(0.5)  # a network is prepared
    before_first = time.monotonic()
    advance(16, "")
    after_first = time.monotonic()
    time.sleep(0.15)
    least = time.monotonic() - after_first
    advance(160, "")
    most = time.monotonic() - before_first
    advance(160, "")
    (seconds,) = told
    assert least <= seconds / (1000 - 176) * 160 <= most


def test_a_job_that_is_done_at_once_tells_nothing() -> None:
    told: list[float] = []
    advance = with_estimate(lambda done, note: None, 100, lambda seconds, cores: told.append(seconds))
    advance(100, "")
    assert told == []


def test_a_time_limit_counts_what_earlier_parts_took() -> None:
    limit = TimeLimit(seconds=60, started=time.monotonic() - 10, spent=30)
    assert limit.used == pytest.approx(40, abs=1)
    assert limit.left == pytest.approx(20, abs=1)
