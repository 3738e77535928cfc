"""The cheapest rows of benchmarks/gpu.py, as a dry run on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_a_row_is_measured_once_and_claims_nothing_without_a_card(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, PROGRAM, "--dry", "--out", out, "--rows", "episodes", "episodes", "compile"],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "FEWTUNE_DATA"},
    )
    assert done.returncode == 0, done.stderr
    assert "episodes: measured already" in done.stdout
    result = json.loads(out.read_text())
    assert result["dry"] is True
    row = result["rows"]["episodes"]
    assert row["agreement_with_cpu"]["share_of_equal_answers"] == 1.0
    assert row["measured"]["episodes_per_second"] > 0
    assert "no GPU" in row["why"]
    assert [result["rows"][name]["reached"] for name in ("episodes", "compile")] == [None, None]
    assert str(tmp_path) not in json.dumps(result)
