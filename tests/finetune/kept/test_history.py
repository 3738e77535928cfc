"""The history of a run: what comes back, and damaged files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeFolder

import finetune
from finetune.classifier.run_config import CONFIG_FILE
from finetune.errors import InputError
from finetune.files.reading import read_tensors
from finetune.files.writing import write_json, write_tensors
from finetune.kept.history import CHANGES_FILE, HEAD_FILE, Change, read_changes, write_changes

CHANGE = Change(
    number=1,
    kind="extend",
    when="2026-11-29T12:00Z",
    seconds=1.5,
    added=1,
    classes_added=2,
    pictures=9,
    accuracy=0.5,
)


def test_changes_come_back_as_they_were_written(tmp_path: Path) -> None:
    assert read_changes(tmp_path) == ()
    write_changes(tmp_path, (CHANGE,))
    assert read_changes(tmp_path) == (CHANGE,)
    assert CHANGE.sentence == "1 picture and 2 classes added"
    assert replace(CHANGE, background=3).sentence == "1 picture, 2 classes and 3 background pictures added"
    assert replace(CHANGE, kind="forget", background=1).sentence == "1 background picture forgotten"


@pytest.mark.parametrize(
    "change", [{"number": 0}, {"kind": "sideways"}, {"seconds": "long"}, {"accuracy": 2}, {"added": -1}, {"when": 5}]
)
def test_damaged_changes_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    write_changes(tmp_path, (CHANGE,))
    values = json.loads((tmp_path / CHANGES_FILE).read_text())
    values["changes"][0] |= change
    write_json(tmp_path / CHANGES_FILE, values)
    with pytest.raises(InputError, match=r"changes\.json may be damaged"):
        read_changes(tmp_path)


@pytest.mark.slow
def test_a_damaged_earlier_state_does_not_replace_the_run(make_folder: MakeFolder, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options: dict[str, Any] = {"strategy": "head", "backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
    finetune.fit(make_folder(classes={"a": 5, "b": 5}), run, **options)
    finetune.forget(run, pictures=["a/000.png"], device="cpu")
    before = (run / CONFIG_FILE).read_bytes()
    head = run / "earlier" / "1" / HEAD_FILE
    tensors = {name: tensor.clone() for name, tensor in read_tensors(head).items()}
    for damaged in (tensors | {"head.bias": torch.full((2,), torch.nan)}, {"head.bias": tensors["head.bias"]}):
        write_tensors(head, damaged)
        with pytest.raises(InputError, match=r"model\.safetensors does not fit"):
            finetune.undo(run, device="cpu")
        assert (run / CONFIG_FILE).read_bytes() == before
    write_tensors(head, tensors)
    assert finetune.undo(run, device="cpu").metrics["pictures"]["train"] > 0
