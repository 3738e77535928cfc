from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeFolder
from killing import forked

from finetune.__main__ import main

MAIN = "from finetune.__main__ import main; main()"
JOB = """
import click, sys
from pathlib import Path
from finetune.options.command_line import run_command
@click.command()
@click.argument("out", type=Path)
def job(out):
    for line in range(3):
        click.echo("größe 大", err=True)
    out.write_text("the work is done")
    for line in range(3):
        click.echo("größe 大")
run_command(job, "made")
"""


def answer(redirected: str, script: str, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """What a Python program answers, whose streams a shell redirects."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-c", script, *map(str, words)],
        env=os.environ | variables,
        capture_output=True,
        encoding=variables.get("PYTHONIOENCODING", "utf-8"),
        check=False,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_works_without_streams(closed: str) -> None:
    done = answer(closed, MAIN, "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("finetune" in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_what_pillow_logs_about_a_picture_is_not_printed(tmp_path: Path) -> None:
    """It logs and then raises an error, whose words the list of unreadable pictures has."""
    tags = {256: 4, 257: 4, 258: 8, 277: 259}  # width, height, bits of a sample, samples of a pixel
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    (tmp_path / "many.tif").write_bytes(b"II*\0" + struct.pack("<IH", 8, 4) + entries + bytes(4))
    job = """
import click
from finetune.data.images import read_image
from finetune.errors import UnreadablePicture
from finetune.options.command_line import run_command
@click.command()
@click.argument("picture")
def job(picture):
    try:
        read_image(picture)
    except UnreadablePicture as error:
        click.echo(error.reason)
run_command(job, "made")
"""
    done = answer("", job, tmp_path / "many.tif")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "not a picture\n"


def test_bad_input_has_its_exit_code_without_streams(tmp_path: Path) -> None:
    assert answer(">&- 2>&-", MAIN, "inspect", tmp_path / "missing").returncode == 2


@pytest.mark.slow
def test_a_run_is_whole_without_streams_and_no_file_takes_the_number_of_one(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, run = make_folder(classes={"blue": 12, "red": 12}), tmp_path / "run"
    words = ["fit", folder, "--out", run, "--backbone", "fewtune_conv4", "--strategy", "head", "--device", "cpu"]
    with forked(without_streams, *words) as process:
        process.join(120)
        assert process.exitcode == 0
    assert json.loads((run / "metrics.json").read_text())["strategy"] == "head"
    assert not [path for path in run.rglob("*") if path.is_file() and b"lost" in path.read_bytes()]


def without_streams(*words: object) -> None:
    """The command in a process without streams, which libraries write to until its end."""
    for number in range(3):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = None  # type: ignore[assignment, misc]
    sys.argv = ["finetune", *map(str, words)]
    try:
        main()
    finally:
        for number in (1, 2):
            os.write(number, b"lost")


@pytest.mark.parametrize(("stream", "lost"), [("1", "out"), ("2", "err")])
def test_a_lost_reader_is_no_error(stream: str, lost: str, tmp_path: Path) -> None:
    """As `| head` loses it: stdout ends the command, which has nothing more to do, and stderr does not."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", JOB, str(tmp_path / "result")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {f"std{lost}": writer}
    done = subprocess.run(command, env=os.environ | {"PYTHONUTF8": "1"}, encoding="utf-8", check=False, **streams)  # type: ignore[call-overload]
    os.close(writer)
    assert done.returncode == 0
    assert (tmp_path / "result").read_text() == "the work is done"
    assert (done.stderr if lost == "out" else done.stdout) == "größe 大\n" * 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_behind_stdout_is_one_line_and_behind_stderr_none(tmp_path: Path) -> None:
    full = answer(">/dev/full", JOB, tmp_path / "one")
    assert (full.returncode, full.stderr.splitlines()[3:]) == (2, ["made: stdout: No space left on device"])
    full = answer("2>/dev/full", JOB, tmp_path / "two")
    assert (full.returncode, len(full.stdout.splitlines())) == (0, 3)
    assert (tmp_path / "two").exists()


def test_what_a_stream_cannot_encode_is_escaped(tmp_path: Path) -> None:
    done = answer("", JOB, tmp_path / "result", PYTHONIOENCODING="latin-1", PYTHONUTF8="1")
    assert done.returncode == 0
    assert done.stdout == done.stderr == "größe \\u5927\n" * 3
