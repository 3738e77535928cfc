from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from finetune import load
from finetune.api.demo import run_demo
from finetune.progress import Display
from finetune.strategies import STRATEGIES

pytestmark = pytest.mark.slow


def test_demo_compares_every_strategy_with_scratch_and_pretraining_wins(tmp_path: Path) -> None:
    rows = run_demo(tmp_path, seed=0, display=Display())
    assert [row["strategy"] for row in rows] == list(STRATEGIES)
    assert all(row["split"] == "test" and row["n"] == 1597 for row in rows)
    by_name = {row["strategy"]: row for row in rows}
    for name in ("head", "partial", "full"):
        assert by_name[name]["interval"][0] > by_name["scratch"]["interval"][1], name
    three = sorted((tmp_path / "digits" / "test" / "3").iterdir())[:20]
    labels = [answer.label for answer in load(tmp_path / "head", device="cpu").predict_all(three)]
    assert labels.count("3") >= 15
    # Run again, it shows what is there.
    with (tmp_path / "console").open("w") as file:
        assert run_demo(tmp_path, seed=0, display=Display(Console(file=file))) == rows
