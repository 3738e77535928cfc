"""OpenVINO reports no use over the network, and its one core leaves a process that signals do not end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from finetune.computing import openvino_module

# Prints every event that a report of use needs.
PROGRAM = """
import sys, threading
def listen(event, args):
    if event in ("socket.getaddrinfo", "socket.connect", "subprocess.Popen", "os.fork"):
        print(event, args, flush=True)
sys.addaudithook(listen)
from finetune.computing.openvino_module import openvino_core, openvino_module
assert openvino_module() is openvino_module()
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(5)
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry  # what else the process wants of it is there
assert openvino_core().available_devices == ["CPU"]
"""


# A network that another thread than its own drops, and then a signal.
SIGNALLED = """
import gc, os, signal, threading, torch
from finetune.features.acceleration import one_at_a_time
from finetune.progress import Display
picture = torch.ones(1, 3, 8, 8)
held = [one_at_a_time(torch.nn.Flatten(), picture, agree=torch.equal, display=Display())]
assert held[0] is not None
thread = threading.Thread(target=lambda: (held.clear(), gc.collect()))
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda number, frame: print("heard"))
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no signals of users")
def test_a_process_survives_a_signal_after_another_thread_has_dropped_a_network() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_threads_that_ask_at_once_get_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def slowly() -> object:
        made.append(object())
        time.sleep(0.05)
        return made[-1]

    monkeypatch.setattr(openvino_module, "_core", cache(slowly))
    with ThreadPoolExecutor(8) as pool:
        cores = list(pool.map(lambda _: openvino_module.openvino_core(), range(8)))
    assert len(made) == 1
    assert all(core is made[0] for core in cores)


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
