"""Batches on their way to a device and back, and the forward pass that uses them, on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.computing.device_stream import copied_ahead, fetched_behind, sent
from finetune.config import MAX_PIXELS
from finetune.data.loader import Pictures, by_threads
from finetune.data.transforms import Preprocessing, View, evaluation_view
from finetune.features import acceleration, forward
from finetune.features.acceleration import compiling_pays

CPU = torch.device("cpu")


def test_batches_keep_their_order_and_none_is_read_before_it_is_needed() -> None:
    read = []

    def batches() -> object:
        for number in range(3):
            read.append(number)
            yield number, torch.full((2,), number)

    found = copied_ahead(batches(), CPU)  # type: ignore[arg-type]
    assert next(found)[0] == 0
    assert read == [0]
    assert [(number, tensor.tolist()) for number, tensor in found] == [(1, [1, 1]), (2, [2, 2])]


def test_results_keep_their_order_and_their_gaps() -> None:
    given = [(0, torch.zeros(2)), (1, None), (2, torch.ones(1))]
    found = list(fetched_behind(iter(given), CPU))
    assert [about for about, _ in found] == [0, 1, 2]
    assert found[1][1] is None
    assert torch.equal(found[2][1], torch.ones(1))  # type: ignore[arg-type]


def test_the_streamed_pass_gives_the_outputs_of_the_pass_on_cores(tmp_path: Path) -> None:
    """The pass of a GPU is the same code on the CPU: unreadable pictures are left out of both."""
    random = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    preprocessing = Preprocessing(32, 1.0, "bilinear", (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    paths = sorted(tmp_path.iterdir(), key=os.fspath)
    pictures = Pictures(paths, evaluation_view(preprocessing), 32, MAX_PIXELS)

    def network(pixels: torch.Tensor) -> torch.Tensor:
        return preprocessing.normalize(pixels).flatten(1)[:, :9]

    streamed = list(forward._streamed(CPU, network, pictures, 2, 0))
    on_cores = list(forward._on_cores(network, pictures, 2, 1))
    assert len(streamed) == 4
    for (batch, outputs), (other, expected) in zip(streamed, on_cores, strict=True):
        assert torch.equal(batch.index, other.index)
        assert batch.contents == other.contents
        assert outputs is not None
        assert expected is not None
        assert torch.equal(outputs, expected)


def test_threads_decode_one_batch_ahead_of_the_one_that_is_taken() -> None:
    decoded = []

    def view(picture: Image.Image) -> torch.Tensor:
        decoded.append(picture.size)
        return torch.zeros(3, 2, 2, dtype=torch.uint8)

    pictures = Pictures([np.zeros((4, 5, 3), np.uint8)] * 20, View(view), 2, MAX_PIXELS)
    batches = by_threads(pictures, 3)
    assert next(batches).index.tolist() == [0, 1, 2]
    assert 3 <= len(decoded) <= 6
    assert [batch.index.tolist() for batch in batches][-1] == [18, 19]
    assert len(decoded) == 20
    assert list(by_threads(Pictures([], View(view), 2, MAX_PIXELS), 3)) == []


def test_compiling_pays_where_it_saves_more_time_than_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceleration, "COMPILING", 30.0)
    monkeypatch.setattr(acceleration, "COMPILING_SAVES", 0.5)
    assert not compiling_pays(59.0)
    assert compiling_pays(61.0)


def test_a_sent_tensor_has_its_values() -> None:
    given = torch.arange(6).reshape(2, 3)
    assert torch.equal(sent(given, CPU), given)
    assert sent(torch.empty(0, 3), CPU).shape == (0, 3)


def test_a_gpu_gets_every_batch_without_waiting_for_it() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    device = torch.device("cuda")
    preprocessing = Preprocessing(32, 1.0, "bilinear", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    batches = [torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8) for _ in range(6)]
    results = (
        (number, preprocessing.normalize(pixels).flatten(1))
        for number, pixels in copied_ahead(enumerate(batches), device)
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(fetched_behind(results, device))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [number for number, _ in found] == list(range(6))
    for (_, outputs), pixels in zip(found, batches, strict=True):
        assert outputs is not None
        torch.testing.assert_close(outputs, preprocessing.normalize(pixels).flatten(1))
