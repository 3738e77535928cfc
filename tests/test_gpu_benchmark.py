"""The cheapest rows of benchmarks/gpu.py, as a dry run on the CPU."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
from several import several

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_a_row_is_measured_once_and_claims_nothing_without_a_card(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"

    def job(rank: int) -> None:
        os.environ.pop("FEWTUNE_DATA", None)
        sys.argv = [str(PROGRAM), "--dry", "--out", str(out), "--rows", "episodes", "episodes", "compile"]
        sys.path.insert(0, str(PROGRAM.parent))
        runpy.run_path(str(PROGRAM), run_name="__main__")

    ((code, said),) = several(1, tmp_path / "said", job)
    assert code == 0, said
    assert "episodes: measured already" in said
    result = json.loads(out.read_text())
    assert result["dry"] is True
    row = result["rows"]["episodes"]
    assert row["agreement_with_cpu"]["share_of_equal_answers"] == 1.0
    assert row["measured"]["episodes_per_second"] > 0
    assert "no GPU" in row["why"]
    assert [result["rows"][name]["reached"] for name in ("episodes", "compile")] == [None, None]
    assert str(tmp_path) not in json.dumps(result)
