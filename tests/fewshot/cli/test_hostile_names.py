"""Every command over classes and files with hostile names: nothing of them reaches the terminal raw."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from called import Answer
from hostile_names import NAMES, assert_nothing_raw


@pytest.mark.slow
def test_commands_print_hostile_names_escaped(
    call: Callable[..., Answer], model: Path, pictures: Path, tmp_path: Path
) -> None:
    signs = [pictures / f"sign {number}" for number in range(4)]
    shown = tmp_path / "shown"
    shown.mkdir()
    for name in NAMES:
        shutil.copy(signs[0] / "0.png", shown / f"{name} good.png")
        (shown / f"{name} bad.png").write_text("no picture")
    gallery, index = tmp_path / "gallery", tmp_path / "index"
    calls = [
        call("enrol", gallery, NAMES[0], signs[0], "--model", model),
        call("enrol", gallery, NAMES[1], signs[1]),
        call("enrol", gallery, NAMES[2], signs[0]),
        call("enrol", gallery, NAMES[3], shown),
        call("recognize", gallery, shown),
        call("info", gallery),
        call("forget", gallery, NAMES[4]),
        call("embed", shown, "--out", index, "--model", model),
        call("search", index, shown),
        call("info", index),
        call("search", index, tmp_path / NAMES[0]),
    ]
    for each in calls:
        assert "Traceback" not in each.err
        assert_nothing_raw(each.out)
        assert_nothing_raw(each.err)
    assert r"cat\x1b[2J\x1b[31mred" in calls[4].out
    assert r"cat\x1b[2J\x1b[31mred good.png" in calls[8].out
