"""Files of weights that are damaged, of other numbers, or made to do harm: one line before any work."""

from __future__ import annotations

import collections
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from called import Answer, caller
from damage import FEW, header_of, other_bytes, other_json, refusal, replaced, with_header
from hypothesis import given
from hypothesis import strategies as st
from told import NothingSaid
from torch import Tensor

from finetune.cli.main import main
from finetune.errors import InputError
from finetune.files.writing import write_tensors
from finetune.models.backbone import Backbone
from finetune.models.conv4 import WEIGHTS
from finetune.models.pretrained import load_pretrained

NAME = "fewtune_conv4"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def good() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in Backbone(NAME).model.state_dict().items()}


def load(file: Path) -> None:
    backbone = Backbone(NAME)
    before = backbone.state_dict()["model.blocks.3.0.weight"].clone()
    try:
        load_pretrained(backbone, str(file), NothingSaid())
    except InputError:
        assert torch.equal(backbone.state_dict()["model.blocks.3.0.weight"], before)
        raise
    assert all(tensor.isfinite().all() for tensor in backbone.state_dict().values())


def of_weights(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: change(tensor) if tensor.is_floating_point() else tensor for name, tensor in good().items()}


def with_last(value: float) -> dict[str, Tensor]:
    tensors = good()
    tensors["blocks.3.0.weight"][-1, -1, -1, -1] = value
    return tensors


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: of_weights(lambda tensor: tensor * torch.nan), "blocks.0.0.weight has values that are not finite"),
        (lambda: with_last(torch.nan), "blocks.3.0.weight has values that are not finite"),
        (lambda: with_last(-torch.inf), "blocks.3.0.weight has values that are not finite"),
        (lambda: of_weights(lambda tensor: tensor.double() + 1e300), "not finite"),
        (lambda: of_weights(lambda tensor: tensor.int()), "blocks.0.0.weight holds int32, not floating-point"),
        (lambda: of_weights(lambda tensor: tensor > 0), "holds bool"),
        (lambda: of_weights(lambda tensor: tensor.to(torch.complex64)), "holds complex64"),
        (lambda: good() | {"blocks.0.0.weight": torch.zeros(0)}, "blocks.0.0.weight is 0, the model's is 96x3x3x3"),
        (lambda: good() | {"blocks.0.0.weight": torch.tensor(1.0)}, "blocks.0.0.weight is a number"),
        (lambda: {f"body.{name}": tensor.int() for name, tensor in good().items()}, "holds int32"),
    ],
)
def test_weights_of_other_numbers_are_refused(
    made: Callable[[], dict[str, Tensor]], why: str, suffix: str, tmp_path: Path
) -> None:
    file = tmp_path / f"w.{suffix}"
    (write_tensors(file, made()) if suffix == "safetensors" else torch.save(made(), file))
    with pytest.raises(InputError, match=rf"w\.{suffix} \(--weights\) .*{why}"):
        load(file)


def test_finite_weights_that_compute_no_numbers_are_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", good() | {"blocks.3.2.running_var": torch.full((96,), -1.0)})
    with pytest.raises(InputError, match=r"\(--weights\) .* the features of a grey picture are not finite"):
        load_pretrained(Backbone(NAME), str(tmp_path / "w.safetensors"), NothingSaid())


@pytest.mark.parametrize("number_format", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_accepted(number_format: torch.dtype, tmp_path: Path) -> None:
    write_tensors(tmp_path / "w.safetensors", of_weights(lambda tensor: tensor.to(number_format)))
    load(tmp_path / "w.safetensors")


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({1: torch.ones(1)}, "a key is 1"),
        ({"blocks.0.0.weight": torch.eye(3).to_sparse()}, "not a plain array"),
        ({"blocks.0.0.weight": torch.empty(2, device="meta")}, "has no values"),
        ({"blocks.0.0.weight": torch.zeros(1).expand(10**12)}, "claims 1000000000000 values"),
        ({"model": {"state_dict": []}}, "no dictionary of tensors"),
        ({}, "is missing"),
        ([torch.ones(1)], "no dictionary of tensors"),
        (torch.ones(1), "no dictionary of tensors"),
        ({"a": collections.Counter("a")}, "no dictionary of tensors"),
    ],
)
def test_a_torch_file_without_plain_tensors_is_refused(value: Any, why: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(InputError, match=rf"w\.pth \(--weights\) .*{why}"):
        load(tmp_path / "w.pth")


def test_a_torch_file_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    torch.save(of_weights(torch.zeros_like), tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in stored.infolist():
            packed.writestr(member.filename, stored.read(member))
    with pytest.raises(InputError, match=r"w\.pth \(--weights\) is neither safetensors nor a torch file"):
        load(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("w.safetensors", b"", "not a valid safetensors file"),
        ("w.safetensors", (2 << 30).to_bytes(8, "little") + b"{}", "its header claims 2,147,483,648"),
        ("w.pth", b"", "is empty"),
        ("w.pth", b"PK\3\4", "neither safetensors nor a torch file"),
        ("w.pth", b"\x80\x02" + b"(" * 100_000, "neither safetensors nor a torch file"),
    ],
)
def test_fit_refuses_damaged_weights_before_pictures_are_read(
    name: str, content: bytes, why: str, run: Callable[..., Answer], tmp_path: Path
) -> None:
    for label in ("a", "b"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        (tmp_path / "pictures" / label / "unread.png").write_bytes(b"no picture")
    (tmp_path / name).write_bytes(content)
    words = ["fit", tmp_path / "pictures", "--backbone", NAME, "--device", "cpu"]
    answer = run(*words, "--out", tmp_path / "run", "--weights", tmp_path / name)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert why in answer.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_weights_is_an_input_error(data: st.DataObject, tmp_path: Path) -> None:
    content, path = WEIGHTS.read_bytes(), tmp_path / "w.safetensors"
    header = header_of(content)
    whole = other_json(header).map(lambda changed: with_header(content, changed))
    replaced(path, data.draw(whole | other_bytes(content, 400)))
    refusal(lambda: load(path))
