from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["finetune", "finetune.cli", "fewshot", "fewshot.cli"])
def test_a_module_runs_its_command(module: str) -> None:
    command = module.split(".")[0]
    bare = python("-m", module)
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout.startswith(f"Usage: {command} ")
    assert bare.stdout == python("-m", module, "--help").stdout
    wrong = python("-m", module, "nonsense")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "nonsense" in wrong.stderr
