from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MakeFolder

import finetune

WORDS = ("--backbone", "fewtune_conv4", "--strategy", "full", "--device", "cpu", "--image-size", "32", "--workers", "0")


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the other process in /proc")
def test_a_killed_process_ends_the_job_with_one_line_and_the_run_continues(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, run = make_folder(classes={"blue": 12, "red": 12}, noise=90), tmp_path / "run"
    command = [sys.executable, "-m", "finetune", "fit", str(folder), "--out", str(run), *WORDS, "--json"]
    lines = run / "history.jsonl"
    with subprocess.Popen(
        [*command, "--epochs", "100000", "--patience", "100000", "--devices", "2"], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while not lines.exists() or not lines.read_text():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        (other,) = children(process.pid)
        os.kill(other, signal.SIGKILL)
        began = time.monotonic()
        said = process.stderr.read()
        assert process.wait() == 1
        assert time.monotonic() - began < 60  # on a busy machine; seconds elsewhere
    assert said == "finetune: another process of this job ended unexpectedly; --resume continues the run\n"
    assert (run / "state" / "checkpoint.safetensors").exists()
    finetune.load(run, device="cpu")
