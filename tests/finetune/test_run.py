from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import MakeFolder

import finetune
from finetune.config import Config
from finetune.run import RunFolder

COMMAND = (sys.executable, "-c", "from finetune.cli import main; main()")
ONE_AT_A_TIME = pytest.mark.skipif(sys.platform == "win32", reason="nobody waits there")


@ONE_AT_A_TIME
def test_a_run_is_for_one_process_which_may_be_killed(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, run = make_folder(classes={"blue": 12, "green": 12}), tmp_path / "run"
    options = {"strategy": "scratch", "epochs": 3, "backbone": "fewtune_conv4", "device": "cpu", "workers": 2}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [*COMMAND, "fit", folder, "--out", run, *words]
    # Its workers, which outlive it for seconds, must not hold what it held.
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        checkpoint, deadline = run / "state" / "checkpoint.safetensors", time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        assert first.poll() is None, "it ended before it could be stopped"
        second = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=120, check=False)
        first.send_signal(signal.SIGKILL)
    assert second.returncode == 2
    assert second.stderr.strip().splitlines() == [
        f"finetune: another process is at a run in {run} (--out); wait for its end or choose another folder"
    ]
    assert finetune.fit(folder, run, resume=True, **options).metrics["split"] == "test"
    assert not (run / "state").exists()


def test_a_run_that_failed_stands_in_no_ones_way_and_leaves_no_empty_folder(tmp_path: Path) -> None:
    path, config = tmp_path / "new" / "run", Config()
    for _ in range(2):
        with RunFolder(path) as failed:
            assert not failed.begin(tmp_path, config, resume=False)
            assert path.exists()
        assert not (tmp_path / "new").exists()
