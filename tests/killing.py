"""A run killed in the middle of training, and what it must come to all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from finetune.files import read_tensors


def fit_until_killed(folder: Path, run: Path, options: dict[str, Any]) -> None:
    """Start a fit in a process of its own and kill it (SIGKILL) once the first epoch is saved."""
    script = f"import finetune; finetune.fit({str(folder)!r}, {str(run)!r}, **{options!r})"
    process = subprocess.Popen([sys.executable, "-c", script])
    checkpoint, deadline = run / "state" / "checkpoint.safetensors", time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"


def assert_same_weights(run: Path, other: Path) -> None:
    """Equal to the last bit."""
    ours, theirs = (read_tensors(folder / "model.safetensors") for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
