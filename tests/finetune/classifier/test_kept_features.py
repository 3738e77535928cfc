"""What a run keeps for --resume, damaged: an InputError, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import FEW, header_of, other_bytes, other_json, refusal, replaced, with_header
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune.api.budget import Budget
from finetune.classifier.run_folder import RunFolder
from finetune.config import Config
from finetune.data.folder import Listing, Sample
from finetune.data.images import Content
from finetune.errors import InputError
from finetune.features.forward import Outputs
from finetune.files.reading import read_tensors_and_metadata
from finetune.files.writing import write_json, write_tensors

WIDTH = 5
CONTENTS = {0: Content("a" * 64, None, "ff"), 1: Content("b" * 64, "cut short"), 2: Content("c" * 64)}


def listing(place: Path) -> Listing:
    samples = tuple(Sample(f"{label}/{number}.png", label, None, 9) for number, label in enumerate("aab"))
    return Listing(place, samples, ())


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features.safetensors of a run that has read three pictures."""
    place = tmp_path_factory.mktemp("kept")
    with RunFolder(place / "run") as run:
        run.begin(place, Config(device="cpu"), resume=False)
        outputs = Outputs(torch.rand(2, 1, WIDTH), torch.tensor([0, 2]), CONTENTS)
        run.keep_features(listing(place), outputs)
        run.started()
    return place / "run" / "state" / "features.safetensors"


def read(file: Path) -> Outputs | None:
    return RunFolder(file.parent.parent).kept_features(listing(Path("pictures")), WIDTH)


def copied(kept: Path, tmp_path: Path) -> Path:
    file = tmp_path / "run" / "state" / kept.name
    file.parent.mkdir(parents=True, exist_ok=True)
    replaced(file, kept.read_bytes())
    return file


def test_kept_features_come_back(kept: Path, tmp_path: Path) -> None:
    outputs = read(copied(kept, tmp_path))
    assert outputs is not None
    assert (outputs.index.tolist(), outputs.contents) == ([0, 2], CONTENTS)


@pytest.mark.parametrize(
    ("tensors", "metadata", "why"),
    [
        ({"values": torch.rand(2, 1, WIDTH + 1)}, {}, "values is 2x1x6, not nxnx5"),
        ({"values": torch.rand(2, WIDTH)}, {}, "values is 2x5"),
        ({"values": torch.full((2, 1, WIDTH), torch.nan)}, {}, "values has values that are not finite"),
        ({"values": torch.ones(2, 1, WIDTH, dtype=torch.int32)}, {}, "values holds int32"),
        ({"values": torch.rand(2, 0, WIDTH)}, {}, "index is not of the readable pictures"),
        ({"index": torch.tensor([0, 99])}, {}, "index is not of the readable pictures"),
        ({"index": torch.tensor([0, 0])}, {}, "index is not of the readable pictures"),
        ({"index": torch.tensor(0)}, {}, "index is a number"),
        ({"index": torch.tensor([0.0, 2.0])}, {}, "index holds float32"),
        ({}, {"contents": "[]"}, "expected object"),
        ({}, {"contents": "[" * 100_000}, "nested deeper"),
        ({}, {"contents": '{"0": {"sha256": 5}}'}, "expected str"),
        ({}, {"contents": json.dumps({"-1": asdict(Content(""))})}, "contents are not of these pictures"),
        ({}, {"contents": json.dumps({"7": asdict(Content(""))})}, "contents are not of these pictures"),
        ({}, {"recorded": '{"a": "sideways"}'}, "recorded holds no splits"),
        ({}, {"recorded": "[]"}, "recorded holds no splits"),
        ({}, {"listing": "{}"}, "has changed since"),
    ],
)
def test_kept_features_that_are_damaged_are_refused(
    tensors: dict[str, Tensor], metadata: dict[str, str], why: str, kept: Path, tmp_path: Path
) -> None:
    file = copied(kept, tmp_path)
    before, about = read_tensors_and_metadata(kept)
    write_tensors(file, before | tensors, about | metadata)
    with pytest.raises(InputError, match=why):
        read(file)


@pytest.mark.parametrize("value", [[], {"spent": "long"}, {"spent": -1}, {"plan": []}, {"note": 5}])
def test_a_kept_budget_that_is_damaged_is_refused(value: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "state" / "budget.json", value)
    with pytest.raises(InputError, match=r"budget\.json may be damaged"):
        RunFolder(tmp_path).kept_budget()


@pytest.mark.parametrize(
    "change", [{"strategy": "sideways"}, {"epochs": -1}, {"views": 1.5}, {"seconds": 1e308 * 10}, {"seconds": "long"}]
)
def test_a_kept_plan_that_is_damaged_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    plan = json.dumps({"plan": {"strategy": "full", "seconds": 60.0} | change})
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "budget.json").write_text(plan)
    with pytest.raises(InputError, match=r"budget\.json (may be damaged|is not valid JSON)"):
        Budget(Config(minutes=1), 0.0, RunFolder(tmp_path))


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_kept_features_is_an_input_error(data: st.DataObject, kept: Path, tmp_path: Path) -> None:
    content = kept.read_bytes()
    header = header_of(content)
    about = header["__metadata__"]
    contents = other_json(json.loads(about["contents"])).map(json.dumps)
    parts = contents.map(lambda text: header | {"__metadata__": about | {"contents": text}})
    file = copied(kept, tmp_path)
    made = (parts | other_json(header)).map(lambda value: with_header(content, value))
    replaced(file, data.draw(made | other_bytes(content)))
    refusal(lambda: read(file))
