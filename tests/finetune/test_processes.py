from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from called import caller
from conftest import MakeFolder

import finetune
from fewshot.cli.main import main as fewshot_main
from fewshot.training.train import train_folder
from finetune.cli.main import main
from finetune.errors import InputError
from finetune.processes import require_one_process, share_cores


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """This process is the first of two, as torchrun sets it up."""
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(("entry", "words"), [(main, "finetune fit"), (fewshot_main, "fewshot train")])
def test_the_first_process_says_so_and_every_process_stops(
    entry,  # type: ignore[no-untyped-def]
    words: str,
    launched: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    make_folder: MakeFolder,
    tmp_path: Path,
) -> None:
    folder, out = make_folder(classes={"blue": 2, "red": 2}), tmp_path / "new" / "run"
    name, command = words.split()
    call = caller(entry, name, launched, capfd)
    first = call(command, folder, "--out", out)
    assert (first.code, len(first.err.splitlines())) == (2, 1)
    assert f"run it as one process: {words}" in first.err
    launched.setenv("RANK", "1")
    other = call(command, folder, "--out", out)
    assert (other.code, other.out, other.err) == (2, "", "")
    assert not (tmp_path / "new").exists()


def test_the_api_raises_too(launched: pytest.MonkeyPatch, make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"blue": 2, "red": 2})
    with pytest.raises(InputError, match="one process"):
        finetune.fit(folder, tmp_path / "run")
    with pytest.raises(InputError, match="one process"):
        train_folder(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": "4"}, {"RANK": "1"}])
def test_one_process_goes_on(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    require_one_process("finetune fit")


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
