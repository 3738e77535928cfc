"""Checkpoints that are damaged or made to do harm: an InputError says which field, and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import FEW, header_of, other_bytes, other_json, refusal, replaced, with_header
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from finetune.errors import InputError
from finetune.files.reading import read_tensors_and_metadata
from finetune.files.writing import write_tensors
from finetune.training.checkpoint import CheckpointFile, LoopState
from finetune.training.step import weights_on_cpu

ORIGIN = {"pictures": "p", "inputs": "i"}
ROW = {"epoch": 1, "train_loss": 0.5, "val_loss": 0.4, "val_accuracy": 0.9, "lr": 1e-3}
STATE: dict[str, Any] = {
    "history": [ROW],
    "best": {"accuracy": 0.9, "loss": 0.4},
    "best_epoch": 1,
    "lr": 1e-3,
    "sweep": None,
    "planned": 3,
    "out_of_time": False,
}


def network_and_optimizer(kind: type[Optimizer] = AdamW) -> tuple[nn.Module, Optimizer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    options = {"momentum": 0.9} if kind is SGD else {}
    return network, kind(network.parameters(), lr=0.1, **options)


def saved(path: Path, kind: type[Optimizer] = AdamW) -> nn.Module:
    network, optimizer = network_and_optimizer(kind)
    network(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    states = {"now": network.state_dict(), "best": weights_on_cpu(network)}
    CheckpointFile(path, ORIGIN).save(states, optimizer, STATE)
    return network


def restored(path: Path, kind: type[Optimizer] = AdamW) -> tuple[nn.Module, LoopState]:
    network, optimizer = network_and_optimizer(kind)
    found = CheckpointFile(path, ORIGIN).read()
    assert found is not None
    state = found.state_as(LoopState)
    found.restore("now", network)
    found.weights_for("best", network)
    found.restore_optimizer(optimizer)
    network(torch.randn(5, 3)).square().mean().backward()
    optimizer.step()
    return network, state


def changed(
    path: Path, tensors: dict[str, Tensor | None] | None = None, metadata: dict[str, str] | None = None
) -> None:
    before, about = read_tensors_and_metadata(path)
    now = {name: tensor for name, tensor in (before | (tensors or {})).items() if tensor is not None}
    write_tensors(path, now, about | (metadata or {}))


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_a_checkpoint_comes_back(kind: type[Optimizer], tmp_path: Path) -> None:
    saved(tmp_path / "c", kind)
    assert restored(tmp_path / "c", kind)[1].history[0].val_accuracy == 0.9


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"now.0.weight": torch.ones(4)}, "of now: 0.weight is 4, the model's is 4x3"),
        ({"now.0.weight": torch.full((4, 3), torch.nan)}, "of now: 0.weight has values that are not finite"),
        ({"now.0.bias": torch.ones(4, dtype=torch.int32)}, "of now: 0.bias holds int32"),
        ({"best.0.bias": None}, "of best: 0.bias is missing"),
        ({"optimizer.0.exp_avg": torch.ones(5)}, "the optimiser's state does not fit"),
        ({"optimizer.0.exp_avg": None}, "the optimiser's state does not fit"),
        ({"optimizer.0.exp_avg": torch.ones(4, 3, dtype=torch.bool)}, "exp_avg of the optimiser holds bool"),
        ({"optimizer.0.step": torch.tensor(-1e6)}, "step of the optimiser is negative"),
        ({"optimizer.0.exp_avg_sq": torch.full((4, 3), -1.0)}, "exp_avg_sq of the optimiser is negative"),
        ({"optimizer.0.exp_avg": torch.full((4, 3), torch.inf)}, "exp_avg of the optimiser has values that are not"),
        ({"optimizer.99.step": torch.tensor(1.0)}, "the optimiser's state does not fit"),
        ({"optimizer.x.step": torch.tensor(1.0)}, "it holds optimizer.x.step"),
        ({"optimizer.²": torch.tensor(1.0)}, "it holds optimizer"),
        ({"optimizer.": torch.tensor(1.0)}, "it holds optimizer"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tensors: dict[str, Tensor | None], why: str, tmp_path: Path) -> None:
    saved(tmp_path / "c")
    changed(tmp_path / "c", tensors, {})
    with pytest.raises(InputError, match=rf"/c may be damaged: {why}.*; remove it to train again from the start"):
        restored(tmp_path / "c")


@pytest.mark.parametrize(
    ("course", "why"),
    [
        ("[" * 100_000, "nested deeper"),
        ("", "Expecting value"),
        ("[]", "expected object"),
        (json.dumps(STATE | {"history": [ROW | {"val_loss": "low"}]}), r"history\[0\].val_loss"),
        (json.dumps(STATE | {"history": [ROW, ROW]}), "its epochs are not counted"),
        (json.dumps(STATE | {"history": [{}]}), "missing required field"),
        (json.dumps(STATE | {"best_epoch": 2}), "there is no such epoch"),
        (json.dumps(STATE | {"best": {"accuracy": 1}}), "best: "),
        (json.dumps(STATE | {"lr": 0}), "lr: "),
        (json.dumps(STATE | {"planned": -1}), "planned: "),
    ],
)
def test_a_state_that_is_no_good_is_refused(course: str, why: str, tmp_path: Path) -> None:
    saved(tmp_path / "c")
    changed(tmp_path / "c", {}, {"course": course})
    with pytest.raises(InputError, match=rf"{why}.*; remove it to train again from the start"):
        restored(tmp_path / "c")


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_a_checkpoint_is_an_input_error(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "c"
    saved(path)
    content = path.read_bytes()
    header = header_of(content)
    states = other_json(STATE).map(lambda state: header | {"__metadata__": ORIGIN | {"course": json.dumps(state)}})
    made = (states | other_json(header)).map(lambda value: with_header(content, value))
    replaced(path, data.draw(made | other_bytes(content)))
    refusal(lambda: restored(path))
