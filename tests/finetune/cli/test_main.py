from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from called import Answer, caller
from conftest import MakeFolder
from killing import interrupted

from finetune import load
from finetune.cli.main import main

pytestmark = pytest.mark.slow

FAST = ("--backbone", "fewtune_conv4", "--strategy", "head", "--device", "cpu")


def finetune(*words: object) -> subprocess.CompletedProcess[str]:
    """The command as a user's shell runs it."""
    command = [sys.executable, "-c", "from finetune.__main__ import main; main()", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def test_fit_evaluate_and_predict_print_json_and_nothing_else(run, make_folder: MakeFolder, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = make_folder(classes={"blue": 30, "größe red": 30})
    fitted = run("fit", folder, "--out", tmp_path / "run", "--json", *FAST)
    assert (fitted.code, fitted.err) == (0, "")
    result = json.loads(fitted.out)
    promised = {"accuracy", "interval", "split", "loss", "n", "strategy", "seconds"}
    assert promised <= result.keys()
    assert 0.9 < result["accuracy"] <= 1

    fresh = make_folder("fresh", classes={"blue": 4, "größe red": 4}, seed=9)
    measured = run("evaluate", tmp_path / "run", fresh, "--json")
    assert promised <= json.loads(measured.out).keys()
    assert json.loads(measured.out)["n"] == 8

    predicted = run("predict", tmp_path / "run", fresh / "größe red", fresh / "blue" / "000.png", "--json")
    rows = [json.loads(line) for line in predicted.out.splitlines()]
    assert [row["label"] for row in rows] == ["größe red"] * 4 + ["blue"]
    assert rows[0]["path"] == str(fresh / "größe red" / "000.png")
    assert rows[0]["top"][0] == {"label": "größe red", "probability": rows[0]["probability"]}


def test_without_json_a_person_reads_accuracy_baselines_and_what_to_do_next(  # type: ignore[no-untyped-def]
    run, make_folder: MakeFolder, tmp_path: Path
) -> None:
    answer = run("fit", make_folder(classes={"blue": 20, "red": 20}), "--out", tmp_path / "run", *FAST)
    assert answer.code == 0
    for part in ("accuracy", "95 % confidence", "majority class", "nearest class mean", "finetune predict"):
        assert part in answer.out
    assert "head: as asked for" in answer.err
    predicted = run("predict", tmp_path / "run", tmp_path / "pictures" / "red" / "000.png")
    assert "000.png: red" in predicted.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["fit", "{empty}", "--out", "{new}"], "{empty}"),
        (["fit", "{pictures}", "--out", "{pictures}"], "--out"),
        (["fit", "{pictures}", "--out", "{new}", "--epochs", "0"], "--epochs"),
        (["fit", "{pictures}", "--out", "{new}", "--epocs", "3"], "--epocs"),
        (["fit", "{pictures}", "--out", "{new}", "--backbone", "resnot"], "--backbone"),
        (["fit", "{pictures}", "--out", "{new}", "--weights", "{empty}/none.safetensors"], "--weights"),
        (["fit", "{pictures}", "--out", "{new}", "--strategy", "partial", "--unfreeze", "x"], "no stage 'x'"),
        (["fit", "{pictures}", "--out", "{new}", "--resume", "--overwrite"], "--overwrite"),
        (["fit", "{pictures}"], "--out"),
        (["predict", "{pictures}", "{pictures}"], "config.json"),
        (["evaluate", "{empty}", "{pictures}"], "{empty}"),
        (["predict", "{missing}", "{pictures}"], "{missing}"),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_exit_code_2(  # type: ignore[no-untyped-def]
    words: list[str], named: str, run, make_folder: MakeFolder, tmp_path: Path
) -> None:
    places = {name: str(tmp_path / name) for name in ("empty", "new", "missing", "pictures")}
    make_folder(classes={"blue": 8, "red": 8})
    (tmp_path / "empty").mkdir()
    options = () if "--backbone" in words or words[0] != "fit" else ("--backbone", "fewtune_conv4")
    answer = run(*(word.format(**places) for word in words), *options)
    assert answer.code == 2
    assert answer.out == ""
    assert named.format(**places) in answer.err
    assert "Traceback" not in answer.err
    assert len(answer.err.splitlines()) == 1
    if words[0] == "fit":
        assert not (tmp_path / "new").exists()


def test_an_unreadable_picture_is_named_and_the_others_are_predicted(  # type: ignore[no-untyped-def]
    run, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"blue": 20, "red": 20})
    run("fit", folder, "--out", tmp_path / "run", *FAST)
    (tmp_path / "text.jpg").write_text("hello")
    answer = run("predict", tmp_path / "run", tmp_path / "text.jpg", folder / "red" / "000.png", "--json")
    assert answer.code == 2
    assert "text.jpg: not a picture" in answer.err
    bad, good = (json.loads(line) for line in answer.out.splitlines())
    assert bad == {"path": str(tmp_path / "text.jpg"), "error": "not a picture"}
    assert good["label"] == "red"


def test_a_signal_keeps_the_best_weights_so_far_and_the_run_can_go_on(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, run = make_folder(classes={"blue": 30, "red": 30}), tmp_path / "run"
    options = ("--backbone", "fewtune_conv4", "--strategy", "full", "--epochs", "200", "--patience", "200")
    words = ["fit", folder, "--out", run, *options, "--device", "cpu", "--workers", "1"]
    checkpoint = run / "state" / "checkpoint.safetensors"
    answer = interrupted("finetune", words, checkpoint, signal.SIGTERM)
    assert answer.code == 128 + signal.SIGTERM, answer.err
    assert "Traceback" not in answer.err
    assert "interrupted: training was stopped after" in answer.out
    assert "--resume continues it" in answer.out
    metrics = load(run).metrics
    assert metrics["interrupted"] is True
    assert 0 < metrics["epochs"] < 200
    assert load(run).predict(folder / "red" / "000.png").label == "red"
    assert checkpoint.exists()


def test_help_lists_every_command_and_option() -> None:
    top = finetune("--help")
    assert top.returncode == 0
    for command in ("fit", "evaluate", "predict", "demo"):
        assert command in top.stdout
    fit = finetune("fit", "--help").stdout
    for option in ("--strategy", "--weights", "--resume", "--no-flip", "--max-bad", "--seed", "--json"):
        assert option in fit
