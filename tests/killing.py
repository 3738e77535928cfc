"""A run killed or interrupted in the middle of training, and what it must come to all the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from called import Answer

import finetune
from finetune import EpochResult
from finetune.files.reading import read_tensors

# A shell starts jobs in the background with SIGINT ignored, and every process that they start inherits that.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"


@contextmanager
def started(script: str, *words: object) -> Iterator[subprocess.Popen[str]]:
    """A Python program in a session of its own. Whatever the test does, no process of it is left behind."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def forked(function: Callable[..., object], *words: object) -> Iterator[BaseProcess]:
    """`function` in a process forked from this one: torch is imported already. It and its own are killed in the end.

    It must not train: a fork of a process that has trained may refuse to.
    """
    process = multiprocessing.get_context("fork").Process(target=_one_thread, args=(function, words))
    process.start()
    assert process.pid is not None
    try:
        yield process
    finally:
        process.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


def _one_thread(function: Callable[..., object], words: Sequence[object]) -> None:
    os.setsid()  # with processes that decode pictures
    torch.set_num_threads(1)  # a forked process has none of its parent's threads
    function(*words)


def wait_for(file: Path, process: subprocess.Popen[str] | BaseProcess) -> None:
    """Until the file exists. The test fails where the process ends before."""
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        if isinstance(process, BaseProcess):
            assert process.is_alive()
        else:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def interrupted(
    program: str, words: Sequence[object], checkpoint: Path, number: signal.Signals = signal.SIGINT
) -> Answer:
    """What the command answers to Ctrl-C, or another signal, once its checkpoint is there."""
    script = f"{HEARS_CTRL_C}; from {program}.__main__ import main; main()"
    with started(script, *words) as process:
        wait_for(checkpoint, process)
        os.killpg(process.pid, number)  # as a terminal does: processes that decode pictures hear it too
        out, err = process.communicate(timeout=120)
        return Answer(process.returncode, out, err)


def fit_until_killed(folder: Path, run: Path, options: dict[str, Any]) -> None:
    """A fit in a process of its own, which is killed (SIGKILL) as soon as the first epoch is saved."""
    script = (
        "import os, signal, finetune; "
        f"finetune.fit({str(folder)!r}, {str(run)!r}, on_epoch=lambda _: os.kill(os.getpid(), signal.SIGKILL), "
        f"**{options!r})"
    )
    with started(script) as process:
        assert process.wait(timeout=120) == -signal.SIGKILL, process.communicate()


class Stopped(Exception):
    """What a test ends a training by."""


def fit_until_stopped(folder: Path, run: Path, options: dict[str, Any]) -> None:
    """A fit that ends after its first epoch is saved, in this process: a kill without the seconds of imports."""

    def stop(result: EpochResult) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        finetune.fit(folder, run, on_epoch=stop, **options)


def assert_same_weights(run: Path, other: Path) -> None:
    """Equal to the last bit."""
    ours, theirs = (read_tensors(folder / "model.safetensors") for folder in (run, other))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
