"""OpenVINO is imported without its report of use: no connection, no process, no file in the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Prints every event that a report of use needs.
PROGRAM = """
import sys, threading
def listen(event, args):
    if event in ("socket.getaddrinfo", "socket.connect", "subprocess.Popen", "os.fork"):
        print(event, args, flush=True)
sys.addaudithook(listen)
from finetune.computing.openvino_module import openvino_module
assert openvino_module() is openvino_module()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(5)
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry  # what else the process wants of it is there
assert openvino_module().Core().available_devices == ["CPU"]
"""


@pytest.mark.slow
def test_the_import_reports_nothing(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry")
    # Where the process looks like one of a continuous integration, openvino reports nothing by itself.
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")}
    home = {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=kept | home, capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert not (tmp_path / "intel").exists()
