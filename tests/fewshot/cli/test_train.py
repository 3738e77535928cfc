from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawings import folder_of
from killing import assert_same_weights, interrupted

from fewshot.embedding.embedder import Embedder

COMMAND = [sys.executable, "-c", "from fewshot.cli.main import main; main()"]
# fmt: off
FAST = (
    "--network", "fewtune_conv4", "--side", "16", "--alphabets", "1", "--ways", "2", "--shots", "2",
    "--device", "cpu", "--precision", "float32",
)
# fmt: on


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pictures", classes=3, each=4)


def test_train_prints_one_json_object_and_nothing_else(call, pictures: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    answer = call("train", pictures, "--out", tmp_path / "run", "--epochs", "2", "--json", *FAST)
    assert answer.code == 0, answer.err
    assert answer.err == ""
    assert len(answer.out.splitlines()) == 1
    metrics = json.loads(answer.out)
    assert {"steps", "seconds", "waiting", "validation", "kept_step", "interrupted"} <= metrics.keys()
    assert metrics["steps"] == 6
    assert Embedder.load(tmp_path / "run").embed([np.zeros((20, 20), np.uint8)]).shape == (1, 384)


def test_without_json_a_person_reads_how_it_went_and_what_to_do_next(  # type: ignore[no-untyped-def]
    call, pictures: Path, tmp_path: Path
) -> None:
    options = ("--self-supervised", "--epochs", "1", *FAST)
    answer = call("train", pictures, "--out", tmp_path / "run", *options)
    assert answer.code == 0, answer.err
    assert "12 pictures, 12 classes, 3 steps" in answer.err
    assert "3 steps in" in answer.err
    assert f'Embedder.load("{tmp_path / "run"}")' in answer.out
    again = call("train", pictures, "--out", tmp_path / "run", "--resume", *options)
    assert again.code == 0
    assert "has finished already" in again.err


@pytest.mark.slow
def test_minutes_are_the_time_that_training_takes(call, pictures: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    answer = call("train", pictures, "--out", tmp_path / "run", "--minutes", "0.01", "--json", *FAST)
    assert answer.code == 0, answer.err
    metrics = json.loads(answer.out)
    assert metrics["steps"] > 1
    assert 0.05 < metrics["seconds"] < 6


@pytest.mark.slow
def test_what_the_minutes_cover_is_said_before_training_and_the_parts_at_the_end(  # type: ignore[no-untyped-def]
    call, tmp_path: Path
) -> None:
    judged = folder_of(tmp_path / "judged", classes=10, each=4)
    answer = call("train", judged, "--out", tmp_path / "run", "--minutes", "0.01", *FAST)
    assert answer.code == 0, answer.err
    before, after = answer.err.split("training:")
    assert re.search(
        r"0\.01 minutes of training steps; \d+ validations? and the threshold come on top, about \d+ s", before
    )
    assert re.search(
        r"time: training steps \d+ s, validation \d+ s, reading \d+ s, timing a step \d+ s, threshold \d+ s; \d+ s",
        after,
    )


def test_a_training_that_nothing_judges_says_that_nothing_comes_on_top(  # type: ignore[no-untyped-def]
    call, pictures: Path, tmp_path: Path
) -> None:
    answer = call("train", pictures, "--out", tmp_path / "run", "--epochs", "1", *FAST)
    assert "1 epoch of training steps; nothing is held out, so no validation comes on top" in answer.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{pictures}", "--out", "{new}", "--minutes", "1", "--epochs", "1"], "--minutes and --epochs"),
        (["{pictures}", "--out", "{new}", "--split", "lake"], "--split is for omniglot"),
        (["{pictures}", "--out", "{new}", "--examples", "3"], "--examples is for omniglot"),
        (["{pictures}", "--out", "{new}", "--data", "{empty}"], "--data is for omniglot"),
        (["omniglot", "--out", "{new}", "--split", "santoro"], "--split"),
        (["omniglot", "--out", "{new}", "--examples", "21"], "--examples"),
        (["omniglot", "--out", "{new}", "--data", "{empty}"], "{empty} holds no Omniglot"),
        (["{missing}", "--out", "{new}"], "{missing}"),
        (["{empty}", "--out", "{new}"], "{empty}"),
        (["{pictures}", "--out", "{pictures}"], "--out"),
        (["{pictures}"], "--out"),
        (["{pictures}", "--out", "{new}", "--symmetries", "3"], "--symmetries must be 1, 4 or 8"),
        (["{pictures}", "--out", "{new}", "--loss", "contrastive", "--distance", "cosine"], "--distance cosine"),
        (["{pictures}", "--out", "{new}", "--miner", "batch-hard"], "--miner batch-hard"),
        (["{pictures}", "--out", "{new}", "--loss", "arcface", "--distance", "euclidean"], "--loss arcface"),
        (["{pictures}", "--out", "{new}", "--loss", "hinge"], "--loss"),
        (["{pictures}", "--out", "{new}", "--epocs", "3"], "--epocs"),
        (["{pictures}", "--out", "{new}", "--shots", "1"], "--shots"),
        (["{pictures}", "--out", "{new}", "--lr", "-1"], "--lr"),
        (["{pictures}", "--out", "{new}", "--network", "resnot"], "resnot"),
        (["{pictures}", "--out", "{new}", "--network", "fewtune_koch2015", "--side", "32"], "--side"),
    ],
)
def test_bad_input_is_one_line_that_names_it_and_exit_code_2(  # type: ignore[no-untyped-def]
    words: list[str], named: str, call, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    places = {name: str(tmp_path / name) for name in ("empty", "new", "missing", "pictures")}
    answer = call("train", *(word.format(**places) for word in words), "--device", "cpu")
    assert answer.code == 2
    assert answer.out == ""
    assert named.format(**places) in answer.err
    assert "Traceback" not in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_ctrl_c_keeps_the_weights_so_far_and_the_run_can_go_on(  # type: ignore[no-untyped-def]
    call, pictures: Path, tmp_path: Path
) -> None:
    run, options = tmp_path / "run", ("--epochs", "34", "--json", *FAST)  # 102 steps, kept at 51 and at the end
    words = ["train", pictures, "--out", run, *options]
    checkpoint = run / "state" / "checkpoint.safetensors"
    answer = interrupted("fewshot", words, checkpoint)
    assert answer.code == 130, answer.err
    assert "Traceback" not in answer.err
    metrics = json.loads(answer.out)
    assert metrics["interrupted"] is True
    assert 51 <= metrics["steps"] < 102
    assert Embedder.load(run, device="cpu").embed([np.zeros((20, 20), np.uint8)]).shape == (1, 384)
    assert checkpoint.exists()
    assert call(*words, "--resume").code == 0
    assert call("train", pictures, "--out", tmp_path / "whole", *options).code == 0
    assert_same_weights(run, tmp_path / "whole")
    assert not checkpoint.exists()


def test_help_comes_without_loading_torch() -> None:
    script = (
        "import sys; from fewshot.cli.main import cli\n"
        "try: cli(['train', '--help'], prog_name='fewshot')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert answer.stderr.split() == ["False"]
    for option in ("--split", "--self-supervised", "--resume", "--minutes", "--loss", "--ema", "--json"):
        assert option in answer.stdout


def test_help_lists_every_command() -> None:
    answer = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0
    assert "train" in answer.stdout
