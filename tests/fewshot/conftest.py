from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from called import Answer, caller
from drawings import character
from PIL import Image

from fewshot.cli.main import main
from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec, create, round_to_half


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "fewshot", monkeypatch, capfd)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained encoder without calibrations, in a run folder."""
    torch.manual_seed(0)
    spec = EncoderSpec("fewtune_drawing", 16, "drawing")
    network = create(spec)
    round_to_half(network)
    folder = tmp_path_factory.mktemp("model")
    Embedder(network, spec, device="cpu").save(folder, recipe={})
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """pictures/CLASS/DRAWER.png: four classes of three drawings."""
    for number in range(4):
        for drawer in range(3):
            path = tmp_path / "pictures" / f"sign {number}" / f"{drawer}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(255 - character(number, drawer)).save(path)
    return tmp_path / "pictures"
