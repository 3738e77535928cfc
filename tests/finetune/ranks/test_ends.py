from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import MakeFolder
from several import several

import finetune
from finetune.errors import InputError
from finetune.ranks.group import ProcessLost, Ranks
from finetune.ranks.start import joined

WORDS = ("--backbone", "fewtune_conv4", "--strategy", "full", "--device", "cpu", "--image-size", "32", "--workers", "0")


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@contextmanager
def training(folder: Path, run: Path) -> Iterator[subprocess.Popen[str]]:
    """A long training in two processes, which has finished an epoch."""
    words = ["fit", str(folder), "--out", str(run), *WORDS, "--epochs", "100000", "--patience", "100000"]
    command = [sys.executable, "-m", "finetune", *words, "--devices", "2", "--json"]
    pipe, lines = subprocess.PIPE, run / "history.jsonl"
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            while not lines.exists() or not lines.read_text():
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the other process in /proc")
def test_a_killed_process_ends_the_job_with_one_line(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, run = make_folder(classes={"blue": 12, "red": 12}, noise=90), tmp_path / "run"
    with training(folder, run) as process:
        (other,) = children(process.pid)
        os.kill(other, signal.SIGKILL)
        out, said = process.communicate(timeout=120)  # seconds where the machine is free
    assert (process.returncode, out) == (1, "")
    assert said == "finetune: another process of this job ended unexpectedly; --resume continues the run\n"
    assert (run / "state" / "checkpoint.safetensors").exists()
    finetune.load(run, device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals a group of processes")
def test_ctrl_c_keeps_the_best_weights_and_only_the_first_process_shows_them(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, run = make_folder(classes={"blue": 12, "red": 12}, noise=90), tmp_path / "run"
    with training(folder, run) as process:
        os.killpg(process.pid, signal.SIGINT)
        out, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, "")
    assert json.loads(out)["interrupted"] is True
    assert finetune.load(run, device="cpu").metrics["interrupted"] is True


def refuses(ranks: Ranks) -> None:
    if ranks.rank == 1:
        raise InputError("no such picture")


def dies(ranks: Ranks) -> None:
    if ranks.rank == 1:
        os._exit(3)


@pytest.mark.slow
@pytest.mark.parametrize(("function", "code"), [(refuses, 0), (dies, 3)])
def test_an_error_of_another_process_ends_what_the_first_does_alone(
    function: Callable[[Ranks], None], code: int, tmp_path: Path
) -> None:
    def job(rank: int) -> None:
        try:
            with joined("cpu") as ranks:
                assert ranks is not None
                if rank > 0:
                    ranks.serve()
                with ranks.asked(function):
                    pass
                end = time.monotonic() + 60
                while function is refuses and time.monotonic() < end:
                    time.sleep(0.01)
                ranks.gathered(None)
        except (InputError, ProcessLost) as error:
            print(error)

    first, *others = several(3, tmp_path, job)
    said = "another process of this job ended unexpectedly; --resume continues the run"
    assert first == (0, f"{'no such picture' if function is refuses else said}\n")
    assert others == [(code, ""), (0, "")]
