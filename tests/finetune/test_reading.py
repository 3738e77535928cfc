from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import FEW, header_of, other_bytes, other_json, refusal, replaced, with_header
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from finetune.errors import InputError
from finetune.files.reading import MOST_JSON_DEPTH, as_type, parse_json, read_json, read_tensors, read_tensors_header
from finetune.files.tensors import check_fits, check_tensor, unusable


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[" * 100_000 + b"]" * 100_000, "nested deeper than 50 levels"),
        (b'{"a": ' * 100_000, "nested deeper than 50 levels"),
        (b'{"a": 1, "a": 2}', "the key 'a' is there twice"),
        (b'{"\\u001b[31m": 1, "\\u001b[31m": 2}', r"the key '\\x1b\[31m' is there twice"),
        (b"[1e999]", "1e999 is out of range"),
        (b"[NaN]", "NaN is not a number"),
        (b"9" * 5000, "4300 digits"),
        (b'"\xff"', "can't decode byte 0xff"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_is_no_good_is_refused_in_one_line(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.json is not valid JSON \(.*{why}") as caught:
        read_json(tmp_path / "a.json")
    assert str(caught.value).isprintable()


def test_brackets_in_strings_are_not_nested(tmp_path: Path) -> None:
    content = json.dumps(["[" * 1000, '\\"[' * 1000, {"{" * 1000: 1}])
    (tmp_path / "a.json").write_text(content)
    assert read_json(tmp_path / "a.json") == json.loads(content)
    within = "[" * (MOST_JSON_DEPTH - 2) + content + "]" * (MOST_JSON_DEPTH - 2)
    assert parse_json(within, "a text") == json.loads(within)
    with pytest.raises(InputError, match=r"a text is not valid JSON .*nested deeper than 50 levels"):
        parse_json(f"[{within}]", "a text")


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)  # takes no space
    with pytest.raises(InputError, match=r"a\.json has 1,099,511,627,776 bytes, and at most 134,217,728 are read"):
        read_json(tmp_path / "a.json")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_what_is_no_file_is_refused_unopened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        for read in (read_json, read_tensors):
            with pytest.raises(InputError, match="it is not a file"):
                read(path)


def test_a_field_is_named_also_after_a_long_reason() -> None:
    @dataclass
    class Two:
        name: str
        share: float

    with pytest.raises(InputError, match=r"a\.json may be damaged: share: expected float, got str"):
        as_type({"name": "", "share": "x"}, Two, "a.json")
    for value in ({"\ud800": 1}, {"name": "", "share": 10**400}, [[]], None):
        with pytest.raises(InputError, match=r"a\.json may be damaged"):
            as_type(value, Two, "a.json")


def with_length(length: int, content: bytes = b"") -> bytes:
    return length.to_bytes(8, "little") + content


def entry(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "0 bytes"),
        (with_length(2 << 30, b"{}"), "its header claims 2,147,483,648"),
        (with_length(100_000, b"[" * 100_000), "nested deeper"),
        (with_length(0), "header is not valid JSON"),
        (with_header(bytes(8), []), "no JSON object"),
        (with_header(bytes(8) + bytes(8), entry([2], [0, 16])), "invalid"),
        (with_header(bytes(8) + bytes(8), entry([2], [8, 0])), "invalid"),
        (with_header(bytes(8) + bytes(8), entry([-2], [0, 8])), "expected int >= 0"),
        (with_header(bytes(8) + bytes(8), entry([2.5], [0, 8])), "expected int"),
        (with_header(bytes(8) + bytes(8), entry([2**61, 8], [0, 8])), "overflow"),
        (with_header(bytes(8) + bytes(8), entry([1], [0, 4])), "not fully covered"),
        (with_header(bytes(8) + bytes(8), entry([2], [0, 8], "F99")), "unknown variant"),
        (with_header(bytes(8) + bytes(8), {"__metadata__": {"a": {"b": 1}}, **entry([2], [0, 8])}), "expected str"),
    ],
)
def test_a_header_that_lies_is_refused_in_one_line(content: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.safetensors is not a valid safetensors file \(.*{why}"):
        read_tensors(tmp_path / "a.safetensors")


def test_a_large_header_is_refused_unread(tmp_path: Path) -> None:
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(with_length(100 << 20))
        file.truncate(200 << 20)
    with pytest.raises(InputError, match="its header has 104,857,600 bytes, and at most 33,554,432 are read"):
        read_tensors(tmp_path / "a.safetensors")


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_a_header_is_an_input_error(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7), "empty": torch.empty(0, 4)}
    content = save(tensors, {"note": "n"})
    whole = other_json(header_of(content)).map(lambda header: with_header(content, header))
    replaced(path, data.draw(whole | other_bytes(content)))
    message = refusal(lambda: read_tensors(path))
    if message is None:
        forms = read_tensors_header(path).tensors
        assert {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()} == {
            name: form.shape for name, form in forms.items()
        }
    else:
        assert message.startswith(f"{path} ")


@FEW
@given(data=st.data())
def test_any_damage_to_json_is_an_input_error(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    content = json.dumps({"format": 1, "names": ["a", "größe"], "share": 0.5, "more": {"n": [1, None, True]}}).encode()
    path.write_bytes(data.draw(other_bytes(content)))
    message = refusal(lambda: json.dumps(read_json(path), allow_nan=False))
    assert message is None or message.startswith(f"{path} ")


def test_a_tensor_is_checked_before_it_is_used() -> None:
    tensors = {"x": torch.ones(2, 3), "nan": torch.tensor([1.0, float("nan")]), "n": torch.arange(2)}
    assert check_tensor(tensors, "x", (None, 3), "f") is tensors["x"]
    for name, shape, why in (
        ("y", (1,), "y is missing"),
        ("x", (3, 3), "x is 2x3, not 3x3"),
        ("x", (None,), "x is 2x3, not n"),
        ("x", (), "x is 2x3, not a number"),
        ("n", (2,), "n holds int64, not float32 or"),
        ("nan", (2,), "nan has values that are not finite"),
    ):
        with pytest.raises(InputError, match=f"^f may be damaged: {why}"):
            check_tensor(tensors, name, shape, "f")


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.tensor([1.0, float("inf")], dtype=torch.bfloat16), "not finite"),
        (torch.tensor([1e300], dtype=torch.float64), "not finite"),
        (torch.zeros(2, dtype=torch.int32), "holds int32"),
        (torch.zeros(2, dtype=torch.bool), "holds bool"),
        (torch.zeros(2, dtype=torch.complex64), "holds complex64"),
        (torch.empty(2, device="meta"), "has no values"),
        (torch.zeros(1).expand(10**12), "claims 1000000000000 values"),
        (torch.eye(2).to_sparse(), "not a plain array"),
        (torch.zeros(2, dtype=torch.float16), None),
        (torch.zeros(0, 3), None),
        (torch.tensor(1.0), None),
    ],
)
def test_values_that_cannot_be_used_are_said(tensor: Tensor, why: str | None) -> None:
    found = unusable(tensor)
    assert found is None if why is None else found is not None and why in found


def test_tensors_that_do_not_fit_are_listed() -> None:
    expected = {"w": torch.zeros(2, 3), "b": torch.zeros(2), "n": torch.tensor(0)}
    check_fits({"w": torch.ones(2, 3).half(), "b": torch.ones(2), "n": torch.tensor(1)}, expected, "f")
    found = {"w": torch.ones(3), "n": torch.tensor(1), "\x1b[31m": torch.ones(1), "x": torch.ones(1)}
    with pytest.raises(InputError, match=r"^f: b is missing; w is 3, .* 2x3; \\x1b\[31m is not in .* and 1 more$"):
        check_fits(found, expected, "f")
    with pytest.raises(InputError, match=r"^f: n holds float32, not int64$"):
        check_fits({"w": torch.ones(2, 3), "b": torch.ones(2), "n": torch.tensor(1.0)}, expected, "f")
