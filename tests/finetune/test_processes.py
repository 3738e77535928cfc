from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from finetune.processes import share_cores
from finetune.ranks.launched import Launched, first_process, launched


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0"}, None),
        ({"WORLD_SIZE": "4"}, None),
        ({"RANK": "1"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, None),  # a batch script that srun has not started
        ({"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launched(3, 4, 1, 2)),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "1"}, Launched(1, 2, 1, 2)),
        (
            {
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_STEP_NUM_NODES": "2",
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "1",
            },
            Launched(3, 4, 1, 2),
        ),
    ],
)
def test_a_launcher_is_known_by_its_variables(
    variables: dict[str, str], found: Launched | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched() == found
    assert first_process() == (found is None)


def test_the_age_of_a_process_counts_from_its_start_not_from_its_imports() -> None:
    program = "import time; time.sleep(0.3); from finetune.processes import process_age; print(process_age())"
    began = time.monotonic()
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 0.3 * (sys.platform == "linux") <= float(found.stdout) <= time.monotonic() - began + 0.05


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "9"}, {"GOMP_SPINCOUNT": "9"}),
    ],
)
def test_a_command_lets_waiting_threads_sleep_unless_its_user_decides(
    given: dict[str, str], left: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            monkeypatch.delenv(name)
    share_cores()
    found = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert found == left
