"""Folders of pictures that tests make themselves, and where real ones are."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

MakeFolder = Callable[..., Path]

# The same examples on every machine, and as long as a busy machine takes for them.
hypothesis.settings.register_profile("fewtune", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fewtune")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """No search for garbage: modules and tests stay to the end, and the searches took a third of the collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Writes `classes` (name -> number of pictures) below tmp_path: coloured noise, one hue a class, easy to learn."""

    def make(
        name: str = "pictures", *, classes: dict[str, int], size: int = 40, seed: int = 0, noise: int = 15
    ) -> Path:
        folder = tmp_path / name
        random = np.random.default_rng(seed)
        for position, (label, count) in enumerate(classes.items()):
            (folder / label).mkdir(parents=True)
            base = np.array([40, 128, 216])[[(position + shift) % 3 for shift in range(3)]]
            for number in range(count):
                pixels = np.clip(base + random.normal(0, noise, (size, size, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / label / f"{number:03d}.png")
        return folder

    return make


def write_bars(folder: Path, count: int = 80) -> Path:
    """Three classes of noise with a bar, 2 to 4 pixels wide: hard for a head on a frozen stem, easier for training."""
    random = np.random.default_rng(0)
    for width in (2, 3, 4):
        (folder / str(width)).mkdir(parents=True)
        for number in range(count):
            pixels = random.normal(128, 60, (20, 20, 3))
            left = random.integers(0, 20 - width)
            pixels[:, left : left + width] += 60
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / str(width) / f"{number:03d}.png")
    return folder


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing that tests compute is kept among what their user computes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def interrupts_arrive() -> Iterator[None]:
    """A shell that starts the tests in the background makes them, and the commands that they start, ignore SIGINT."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pictures and weights that FEWTUNE_DATA names; tests that need it are skipped without."""
    where = os.environ.get("FEWTUNE_DATA")
    if not where or not Path(where).is_dir():
        pytest.skip("FEWTUNE_DATA names no folder of real pictures")
    return Path(where)
