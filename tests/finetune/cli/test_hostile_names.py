"""Every command over classes and files with hostile names: nothing of them reaches the terminal raw."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from called import Answer, caller
from conftest import MakeFolder
from hostile_names import NAMES, assert_nothing_raw
from PIL import Image

from finetune.cli.main import main

FAST = ("--backbone", "fewtune_conv4", "--strategy", "head", "--device", "cpu")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


@pytest.mark.slow
def test_commands_print_hostile_names_escaped(
    run: Callable[..., Answer], make_folder: MakeFolder, tmp_path: Path
) -> None:
    latin = os.fsdecode(b"gr\xf6\xdfe")  # bytes that are not UTF-8
    folder, out = make_folder(classes=dict.fromkeys((*NAMES[:4], latin), 4)), tmp_path / "run"
    for name in NAMES:
        (folder / NAMES[0] / f"{name} bad.png").write_text("no picture")
        Image.fromarray(np.zeros((9, 40, 3), np.uint8)).save(folder / NAMES[1] / f"{name} same.png")
    fitted = run("fit", folder, "--out", out, *FAST, "--max-bad", "0.9")
    assert fitted.code == 0, fitted.err
    refused = run("fit", folder, "--out", tmp_path / "refused", *FAST, "--max-bad", "0.01")
    assert refused.code == 2
    assert len(refused.err.splitlines()) > 2, "one line for each unreadable picture"
    calls = [
        fitted,
        refused,
        run("predict", out, folder, "--csv", tmp_path / "table.csv"),
        run("inspect", folder, "--backbone", "fewtune_conv4", "--device", "cpu"),
        run("evaluate", out, folder, "--out", tmp_path / "evaluation"),
        run("explain", out, folder / NAMES[1] / f"{NAMES[0]} same.png", "--out", tmp_path / "maps"),
        run("predict", out, tmp_path / NAMES[0]),
        run("predict", tmp_path / NAMES[0], folder),
        run("predict", "--" + NAMES[0], folder),
        run(NAMES[0]),
    ]
    for call in calls:
        assert "Traceback" not in call.err
        assert_nothing_raw(call.out)
        assert_nothing_raw(call.err)
    assert r"cat\x1b[2J\x1b[31mred" in calls[2].out
