"""Galleries that somebody has made to harm."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import JSON
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_recognizer import contents, drawn

from fewshot.embedding.embedder import Embedder
from fewshot.recognition.gallery_files import GALLERY_FILE
from fewshot.recognition.recognizer import Recognizer
from finetune.errors import InputError
from finetune.files.reading import read_tensors_and_metadata
from finetune.files.writing import write_tensors


@pytest.fixture
def saved(embedder: Embedder, tmp_path: Path) -> Recognizer:
    """A recogniser, saved in tmp_path."""
    recognizer = Recognizer(embedder, false_accept_rate=0.1)
    for number in range(4):
        recognizer.enrol(f"sign {number}", drawn(number))
    recognizer.add_background(drawn(9))
    recognizer.gallery.add_trials("sign 1", recognizer.embedder.embed([drawn(1, 2)]))
    recognizer.save(tmp_path)
    return recognizer


def refused(folder: Path, message: str, embedder: Embedder | None) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Recognizer.load(folder, embedder=embedder, device="cpu")
    assert "\n" not in str(caught.value)


def rewrite(folder: Path, header: dict[str, Any] | None = None, **tensors: torch.Tensor) -> None:
    found, metadata = read_tensors_and_metadata(folder / GALLERY_FILE)
    about = json.loads(metadata["gallery"]) | (header or {})
    write_tensors(
        folder / GALLERY_FILE,
        {name: tensor.clone() for name, tensor in (found | tensors).items()},
        {"gallery": json.dumps(about)},
    )


@pytest.mark.parametrize("name", ["examples", "background", "trials"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int32, torch.complex64, torch.float16])
def test_vectors_of_another_number_format_are_refused(
    name: str, dtype: torch.dtype, saved: Recognizer, tmp_path: Path
) -> None:
    tensors, _ = read_tensors_and_metadata(tmp_path / GALLERY_FILE)
    rewrite(tmp_path, **{name: tensors[name].to(dtype)})
    refused(tmp_path, f"is damaged: {name} must be float32, not {dtype}", saved.embedder)


@pytest.mark.parametrize("name", ["examples", "background", "trials"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 0.0, 1e38])
def test_vectors_that_are_not_of_length_1_are_refused(
    name: str, value: float, saved: Recognizer, tmp_path: Path
) -> None:
    tensors, _ = read_tensors_and_metadata(tmp_path / GALLERY_FILE)
    rewrite(tmp_path, **{name: torch.full_like(tensors[name], value)})
    refused(tmp_path, "is damaged: vector 0 has length", saved.embedder)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ('{"format": 2, "counts": ' + "[" * 100_000, "is not a gallery; it may be damaged"),
        ('{"format": 2, "false_accept_rate": 1e999}', "is not a gallery; it may be damaged"),
        ('{"format": 2, "counts": {"a": 1, "a": 3}}', "is not a gallery; it may be damaged"),
        ("[]", "has another format"),
    ],
)
def test_headers_that_are_no_galleries_are_refused(
    header: str, message: str, saved: Recognizer, tmp_path: Path
) -> None:
    tensors, _ = read_tensors_and_metadata(tmp_path / GALLERY_FILE)
    write_tensors(
        tmp_path / GALLERY_FILE, {name: tensor.clone() for name, tensor in tensors.items()}, {"gallery": header}
    )
    refused(tmp_path, message, saved.embedder)


@pytest.mark.parametrize(
    "change",
    [
        {"source": 5},
        {"weights": ["x"]},
        {"views": 10**9},
        {"views": "1"},
        {"tolerance": "1"},
        {"tolerance": 10**400},
    ],
)
def test_an_origin_with_invalid_fields_is_refused(change: dict[str, Any], saved: Recognizer, tmp_path: Path) -> None:
    rewrite(tmp_path, {"origin": {"source": "omniglot", "weights": None, "views": 1, "tolerance": 0.9} | change})
    refused(tmp_path, f"the record of its embedder may be damaged: {next(iter(change))}", None)


def test_trials_of_alternating_classes_load_in_linear_time(saved: Recognizer, tmp_path: Path) -> None:
    n = 40_000
    tensors, _ = read_tensors_and_metadata(tmp_path / GALLERY_FILE)
    rewrite(
        tmp_path,
        {"trials": ["sign 0", "sign 1"] * (n // 2)},
        trials=tensors["examples"][:1].repeat(n, 1),
    )
    start = time.process_time()
    labels, vectors = Recognizer.load(tmp_path, embedder=saved.embedder).gallery.trials
    assert time.process_time() - start < 5
    assert (len(labels), len(vectors), labels[:2]) == (n, n, ("sign 0", "sign 1"))


FIELDS = ("format", "fingerprint", "origin", "false_accept_rate", "counts", "trials")


@pytest.mark.slow
def test_any_header_is_refused_or_does_no_harm(saved: Recognizer, tmp_path: Path) -> None:
    tensors, metadata = read_tensors_and_metadata(tmp_path / GALLERY_FILE)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    about, expected = json.loads(metadata["gallery"]), contents(saved)

    @settings(max_examples=200, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
    def check(changes: dict[str, Any]) -> None:
        write_tensors(tmp_path / GALLERY_FILE, tensors, {"gallery": json.dumps(about | changes)})
        try:
            found = contents(Recognizer.load(tmp_path, embedder=saved.embedder))
        except InputError:
            return
        assert found[:3] == expected[:3]

    check()


@pytest.mark.slow
def test_any_change_of_the_file_is_refused_or_does_no_harm(saved: Recognizer, tmp_path: Path) -> None:
    path = tmp_path / GALLERY_FILE
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")

    @settings(max_examples=200, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: Any) -> None:
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, header))] = data.draw(st.integers(0, 255))
        path.write_bytes(changed[: len(changed) - data.draw(st.sampled_from([0, 0, 0, 1, 100]))])
        try:
            found = Recognizer.load(tmp_path, embedder=saved.embedder)
            assert len(found.gallery.examples) == 4
        except InputError:
            pass

    check()
