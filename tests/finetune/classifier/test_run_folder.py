from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeFolder
from killing import assert_same_weights

import finetune
from finetune.api.evaluate import place_for
from finetune.classifier.run_folder import RUN_FILES, RunFolder
from finetune.config import Config
from finetune.errors import InputError
from finetune.report.report import REPORT_FILE
from finetune.training.loggers import LINES_FILE, TRACKERS

pytestmark = pytest.mark.slow

COMMAND = (sys.executable, "-c", "from finetune.cli.main import main; main()")
SMALL: dict[str, Any] = {"backbone": "fewtune_conv4", "device": "cpu", "strategy": "head"}
ONE_AT_A_TIME = pytest.mark.skipif(sys.platform == "win32", reason="nobody waits there")


@ONE_AT_A_TIME
def test_a_run_is_for_one_process_which_may_be_killed_and_the_old_run_is_there_until_the_new_one_is_saved(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    first, folder = make_folder("one", classes={"blue": 8, "green": 8}), make_folder("two", classes={"a": 12, "b": 12})
    run, copy, options = tmp_path / "run", tmp_path / "copy", SMALL | {"strategy": "scratch", "epochs": 10}
    options |= {"patience": 10, "image_size": 20, "workers": 2}
    finetune.fit(first, run, **SMALL)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [*COMMAND, "fit", folder, "--out", run, "--overwrite", *words]
    # Its workers, which outlive it for seconds, must not hold what it held.
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        checkpoint, deadline = run / "state" / "checkpoint.safetensors", time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        try:
            process.send_signal(signal.SIGSTOP)
            assert process.poll() is None, "it ended before it could be stopped"
            with pytest.raises(InputError) as refused:
                finetune.fit(folder, run, resume=True, **options)
        finally:
            process.send_signal(signal.SIGKILL)
    busy = f"another process is at a run in {run} (--out); wait for its end or choose another folder"
    assert str(refused.value) == busy
    with pytest.raises(InputError, match=r"--resume, or use the run that it is to replace: .*\.replaced"):
        finetune.load(run)
    assert finetune.load(run / ".replaced").classes == ("blue", "green")

    shutil.copytree(run, copy)
    assert finetune.fit(first, copy, overwrite=True, **SMALL).classes == ("blue", "green")
    assert not (copy / ".replaced").exists()

    assert finetune.fit(folder, run, resume=True, **options).metrics["split"] == "test"
    assert not (run / "state").exists()
    assert not (run / ".replaced").exists()
    finetune.fit(folder, tmp_path / "whole", **options)
    assert_same_weights(tmp_path / "whole", run)


def test_run_files_names_the_files_of_rooms_that_it_cannot_import() -> None:
    run = Path("run")
    assert {REPORT_FILE, LINES_FILE, *TRACKERS, place_for(run, Path("pictures")).parent.name} <= set(RUN_FILES)


def test_a_failed_run_leaves_no_lock_and_no_folder(tmp_path: Path) -> None:
    path, config = tmp_path / "new" / "run", Config()
    for _ in range(2):
        with RunFolder(path) as failed:
            assert not failed.begin(tmp_path, config, resume=False)
            assert path.exists()
        assert not (tmp_path / "new").exists()


def test_a_refused_run_leaves_nothing_and_the_next_one_starts(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, out = make_folder(classes={"blue": 8, "green": 8}), tmp_path / "new" / "run"
    for label in ("blue", "green"):
        for number in range(2):
            (folder / label / f"bad{number}.png").write_text("no picture")
    with pytest.raises(InputError, match="--max-bad"):
        finetune.fit(folder, out, **SMALL)
    assert not (tmp_path / "new").exists()
    with pytest.raises(InputError, match="--unfreeze"):
        finetune.fit(
            folder, out, **SMALL | {"strategy": "partial"}, drop_above="blocks.1", unfreeze="blocks.3", max_bad=0.5
        )
    assert not (tmp_path / "new").exists()
    assert finetune.fit(folder, out, max_bad=0.5, **SMALL).metrics["n"]


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_overwrite_replaces_a_run_and_nothing_else(make_folder: MakeFolder, tmp_path: Path) -> None:
    first, second = make_folder("one", classes={"blue": 8, "green": 8}), make_folder("two", classes={"a": 8, "b": 8})
    out, foreign = tmp_path / "run", tmp_path / "foreign"
    finetune.fit(first, out, overwrite=True, **SMALL)
    (out / "notes.txt").write_text("mine")
    (out / "evaluations").mkdir()
    assert finetune.fit(second, out, overwrite=True, **SMALL).classes == ("a", "b")
    assert finetune.load(out).classes == ("a", "b")
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "evaluations").exists(), "they are of the run that was replaced"
    assert not (out / ".replaced").exists()
    foreign.mkdir()
    (foreign / "config.json").write_text('{"format": 1, "recipe": {}}')
    for place in (foreign, second):
        before = state_of(place)
        with pytest.raises(InputError, match="--out"):
            finetune.fit(first, place, overwrite=True, **SMALL)
        assert state_of(place) == before
    with pytest.raises(InputError, match="--overwrite"):
        finetune.fit(first, out, overwrite=True, resume=True, **SMALL)


def test_the_old_run_stays_where_the_new_one_is_refused_or_fails(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = make_folder(classes={"blue": 12, "green": 12}), tmp_path / "run"
    finetune.fit(folder, out, **SMALL)
    before = state_of(out)
    bad = make_folder("bad", classes={"blue": 2, "green": 2})
    (bad / "blue" / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="--max-bad"):
        finetune.fit(bad, out, overwrite=True, max_bad=0.0, **SMALL)
    assert state_of(out) == before

    class Stop(Exception):
        pass

    def fail(*args: object, **options: object) -> None:
        raise Stop

    monkeypatch.setattr("finetune.api.fit.train", fail)
    with pytest.raises(Stop):
        finetune.fit(folder, out, overwrite=True, **SMALL | {"strategy": "scratch"})
    assert state_of(out) == before

    unfinished = tmp_path / "unfinished"
    with pytest.raises(Stop):
        finetune.fit(folder, unfinished, **SMALL | {"strategy": "full"})
    assert (unfinished / "state" / "features.safetensors").exists(), "what --resume needs"
    other = make_folder("other", classes={"a": 8, "b": 8})
    assert finetune.fit(other, unfinished, overwrite=True, **SMALL).classes == ("a", "b")


def test_an_old_run_that_was_being_set_aside_when_the_process_was_killed_is_put_back(
    make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder, out = make_folder(classes={"blue": 8, "green": 8}), tmp_path / "run"
    finetune.fit(folder, out, **SMALL)
    before = state_of(out)
    (out / ".replaced").mkdir()
    for name in ("config.json", "model.safetensors"):
        (out / name).rename(out / ".replaced" / name)
    with pytest.raises(InputError, match="already holds a run"):
        finetune.fit(folder, out, **SMALL)
    assert state_of(out) == before
