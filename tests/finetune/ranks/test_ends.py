from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import MakeFolder
from killing import Command, command
from several import several

import finetune
from finetune.errors import InputError
from finetune.ranks.group import ProcessLost, Ranks
from finetune.ranks.start import joined

WORDS = ("--backbone", "fewtune_conv4", "--strategy", "full", "--device", "cpu", "--image-size", "32", "--workers", "0")


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@contextmanager
def training(folder: Path, run: Path) -> Iterator[Command]:
    """A long training in two processes, which has finished an epoch."""
    words = ["fit", folder, "--out", run, *WORDS, "--epochs", "100000", "--patience", "100000"]
    lines = run / "history.jsonl"
    with command("finetune", [*words, "--devices", "2", "--json"]) as started:
        while not lines.exists() or not lines.read_text():
            assert started.process.is_alive(), started.answer()
            time.sleep(0.1)
        yield started


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the other process in /proc")
def test_a_killed_process_ends_the_job_with_one_line(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, run = make_folder(classes={"blue": 12, "red": 12}, noise=90), tmp_path / "run"
    with training(folder, run) as started:
        assert started.process.pid is not None
        (other,) = children(started.process.pid)
        os.kill(other, signal.SIGKILL)
        answer = started.answer()  # seconds where the machine is free
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "finetune: another process of this job ended unexpectedly; --resume continues the run\n"
    assert (run / "state" / "checkpoint.safetensors").exists()
    finetune.load(run, device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals a group of processes")
def test_ctrl_c_keeps_the_best_weights_and_only_the_first_process_shows_them(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, run = make_folder(classes={"blue": 12, "red": 12}, noise=90), tmp_path / "run"
    with training(folder, run) as started:
        answer = started.answer(signal.SIGINT)
    assert (answer.code, answer.err) == (130, "")
    assert json.loads(answer.out)["interrupted"] is True
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
