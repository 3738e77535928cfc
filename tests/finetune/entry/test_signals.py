from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from called import Answer, caller
from conftest import MakeFolder

from finetune.entry.signals import Stopped
from finetune.options.command_line import run_command
from finetune.options.help_text import InOrderOfUse

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
WAIT = 20  # seconds; a signal ends it at once
HEARD = "import _signal, sys\n_signal.signal(_signal.SIGINT, _signal.default_int_handler)\n"

Call = Callable[..., Answer]


def in_process(job: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Answer:
    """The answer of a command that does `job`."""
    group = InOrderOfUse()
    group.add_command(click.Command("job", callback=lambda: job() and None))
    return caller(lambda: run_command(group, "made"), "made", monkeypatch, capfd)("job")


def stopped_at(module: str, number: str, words: list[object]) -> subprocess.CompletedProcess[str]:
    """The answer of the `finetune` command to a signal at the moment when it begins to import `module`."""
    script = HEARD + (
        "class Signals:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}: _signal.raise_signal(_signal.{number})\n"
        f"sys.meta_path.insert(0, Signals()); sys.argv = {['finetune', *map(str, words)]!r}\n"
        "from finetune.__main__ import main; main()"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "number"),
    [("finetune.entry.start", "SIGINT"), ("click", "SIGINT"), ("click", "SIGTERM"), ("rich.console", "SIGHUP")],
)
def test_a_signal_while_the_command_is_imported_is_one_line_and_its_exit_code(module: str, number: str) -> None:
    answer = stopped_at(module, number, ["--version"])
    assert (answer.returncode, answer.stdout, answer.stderr) == (CODES[number], "", "finetune: stopped\n")


@pytest.mark.slow
def test_a_signal_while_a_command_imports_its_job_ends_it_at_once(make_folder: MakeFolder) -> None:
    answer = stopped_at("torch", "SIGTERM", ["inspect", make_folder(classes={"blue": 2, "red": 2})])
    assert (answer.returncode, answer.stdout, answer.stderr) == (143, "", "finetune: stopped\n")


@pytest.mark.parametrize("number", CODES)
def test_a_signal_cleans_up_as_ctrl_c_does_and_handlers_are_restored(
    number: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def job() -> None:
        try:
            os.kill(os.getpid(), getattr(signal, number))
            time.sleep(WAIT)
        except KeyboardInterrupt:
            cleaned.append(number)
            raise

    def handlers() -> list[object]:
        return [sys.unraisablehook, *(signal.getsignal(which) for which in signal.valid_signals())]

    before = handlers()
    answer = in_process(job, monkeypatch, capfd)
    assert (answer.code, answer.out, answer.err) == (CODES[number], "", "made: stopped\n")
    assert cleaned == [number]
    assert handlers() == before


def test_a_signal_in_the_import_of_a_job_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slowly_imported.py").write_text(
        "import signal, time\ntry:\n    signal.raise_signal(signal.SIGTERM); time.sleep(0.05)\n"
        "except BaseException: raise RuntimeError('a library makes another error of it')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    def job() -> None:
        __import__("slowly_imported")
        time.sleep(WAIT)

    answer = in_process(job, monkeypatch, capfd)
    assert (answer.code, answer.err) == (143, "made: stopped\n")


def test_a_signal_in_a_destructor_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Signals:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def job() -> None:
        Signals()
        time.sleep(WAIT)

    answer = in_process(job, monkeypatch, capfd)
    assert (answer.code, answer.err) == (130, "made: stopped\n")


def test_an_ignored_signal_stays_ignored(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        answer = in_process(lambda: signal.raise_signal(signal.SIGHUP), monkeypatch, capfd)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert answer == Answer(0, "", "")


def test_a_job_that_ends_well_after_a_signal_has_the_exit_code_of_the_signal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def job() -> None:
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)

    assert in_process(job, monkeypatch, capfd) == Answer(143, "", "")


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("atexit.register(signal.raise_signal, signal.SIGINT)", 0, ""),
        ("sys.late = Late()", 0, ""),
        ("try: signal.raise_signal(signal.SIGINT)\n"
         "    finally: time.sleep(0.6); signal.raise_signal(signal.SIGINT); time.sleep(20)", 130, "made: stopped\n"),
    ],
    ids=["after the work", "while the interpreter ends", "a second time"],
)  # fmt: skip
def test_a_signal_at_the_end(end: str, code: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "import atexit, click, os, signal, sys, time\nfrom finetune.options.command_line import run_command\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, process=os.getpid(), number=signal.SIGINT): kill(process, number)\n"
        f"@click.command()\ndef job():\n    {end}\n"
        "def main():\n    run_command(job, 'made')\n"
    )
    script = HEARD + "sys.argv = ['made']; from finetune.entry.start import start; start('made', 'made')"
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (answer.returncode, answer.stdout, answer.stderr) == (code, "", said)
