"""What the rows share: the device, sizes, pictures and weights, clocks, and the words of a row."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.data.folder import list_unlabelled


@dataclass(frozen=True)
class Setting:
    """How the rows are measured. data: the folder of real pictures and weights; None without one."""

    dry: bool
    data: Path | None
    fastai: str | None

    @classmethod
    def of(cls, dry: bool, fastai: str | None) -> Setting:
        where = os.environ.get("FEWTUNE_DATA")
        return cls(dry, Path(where) if where else None, fastai)

    def device(self) -> torch.device:
        """The GPU; the CPU for a dry run and where there is no GPU. The first call may begin to use CUDA."""
        return torch.device("cuda" if not self.dry and torch.cuda.is_available() else "cpu")

    def of_size(self, whole: int, dry: int) -> int:
        """A number for a card, or for a dry run or a CPU."""
        return whole if self.device().type == "cuda" else dry

    def real(self, name: str) -> Path | None:
        """A file or folder of the data, where it is there."""
        found = None if self.data is None else self.data / name
        return found if found is not None and found.exists() else None

    def row(self, asked: str, reached: bool, measured: dict[str, Any], agrees: dict[str, Any]) -> dict[str, Any]:
        """A row. Away from a card nothing is reached, and the row says why."""
        row: dict[str, Any] = {"asked": asked, "measured": measured, "agreement_with_cpu": agrees}
        if self.device().type != "cuda":
            return row | {"reached": None, "why": "no GPU was used: a small size on a CPU, which shows that it runs"}
        return row | {"reached": bool(reached)}


def pictures(setting: Setting, scratch: Path, count: int) -> tuple[list[Path], str]:
    """`count` paths of JPEG files, repeated where there are fewer, and what they are."""
    real = setting.real("cats-dogs")
    if real is not None:
        found, what = list_unlabelled([real]), "cats-dogs"
    else:
        found, what = made_pictures(scratch / "made", {"all": min(count, 256)}), "made, 500 x 375"
    return [found[at % len(found)] for at in range(count)], what


def made_pictures(folder: Path, classes: dict[str, int], size: tuple[int, int] = (500, 375)) -> list[Path]:
    """JPEG files of smooth noise, below `folder`: class -> number of pictures, each class of another brightness."""
    random, paths = np.random.default_rng(0), []
    for position, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            coarse = random.normal(70 + 50 * position, 40, (24, 32, 3)).clip(0, 255).astype(np.uint8)
            paths.append(folder / name / f"{number:04d}.jpg")
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def finished(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def waits(act: Callable[[], object]) -> dict[str, int] | str:
    """Lines at which the CPU waits for the GPU during a call -> how often."""
    if not torch.cuda.is_available():
        return "no GPU was used"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            act()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = [warning for warning in caught if "synchronizing" in str(warning.message)]
    return dict(Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in found))


def seconds_of(act: Callable[[], object], device: torch.device, repeats: int = 3) -> float:
    """The median duration of a call, the device's work included, after one that is not timed."""
    act()
    found = []
    for _ in range(repeats):
        finished(device)
        started = time.perf_counter()
        act()
        finished(device)
        found.append(time.perf_counter() - started)
    return sorted(found)[repeats // 2]


class Busy:
    """Wraps a function on a GPU; the share of time between its first and last call in which it does not run.

    By events on the stream of the calls. None on a CPU.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], device: torch.device):
        self._function, self._on_gpu = function, device.type == "cuda"
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self._on_gpu:
            return self._function(tensor)
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        found = self._function(tensor)
        after.record()
        self._events.append((before, after))
        return found

    def waiting(self) -> float | None:
        if len(self._events) < 2:
            return None
        torch.cuda.synchronize()
        busy = float(sum(before.elapsed_time(after) for before, after in self._events))
        whole = float(self._events[0][0].elapsed_time(self._events[-1][1]))
        return round(1 - busy / whole, 4)
