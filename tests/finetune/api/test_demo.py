from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from finetune import load
from finetune.api.demo import run_demo
from finetune.progress import Display
from finetune.strategies import STRATEGIES

pytestmark = pytest.mark.slow

TRAINED, TESTED = 3, 30  # pictures of each digit: with fewer, training from scratch is further behind


def first_of_each(count: int) -> Callable[[], SimpleNamespace]:
    """scikit-learn's digits, the first `count` of each."""
    digits = load_digits()
    rows = np.sort(np.concatenate([np.flatnonzero(digits.target == label)[:count] for label in range(10)]))
    return lambda: SimpleNamespace(images=digits.images[rows], target=digits.target[rows])


def test_demo_compares_every_strategy_with_scratch_and_pretraining_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.api.demo.PER_CLASS", TRAINED)
    monkeypatch.setattr("finetune.data.digits.load_digits", first_of_each(2 * TRAINED + TESTED))
    rows = run_demo(tmp_path, seed=0, display=Display())
    assert [row["strategy"] for row in rows] == list(STRATEGIES)
    assert all(row["split"] == "test" and row["n"] == 10 * TESTED for row in rows)
    by_name = {row["strategy"]: row for row in rows}
    for name in ("head", "partial", "full"):
        assert by_name[name]["interval"][0] > by_name["scratch"]["interval"][1], name
    three = sorted((tmp_path / "digits" / "test" / "3").iterdir())[:20]
    labels = [answer.label for answer in load(tmp_path / "head", device="cpu").predict_all(three)]
    assert labels.count("3") >= 15
    # Run again, it shows what is there.
    with (tmp_path / "console").open("w") as file:
        assert run_demo(tmp_path, seed=0, display=Display(Console(file=file))) == rows
