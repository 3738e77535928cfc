"""Siamese training: pictures a second, and the share of time in which the device waits for a batch, by its events."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from fewshot.embedding.distortions import SYMMETRIES
from fewshot.embedding.encoder import EncoderSpec, create, embedding_width
from fewshot.embedding.framing import frame_drawings
from fewshot.training.config import SiameseConfig
from fewshot.training.losses import siamese
from fewshot.training.steps import SiameseSteps, SiameseTask
from fewshot.training.training_data import OmniglotSource, SiameseData
from finetune.models.device import open_engine, reproducible_numerics
from finetune.progress import Display
from gpu_rows.setting import Setting, finished, waits

NETWORK, SIDE = "fewtune_drawing", 40
SMALL = {"alphabets": 2, "ways": 4, "shots": 2}


def measure(setting: Setting) -> dict[str, Any]:
    device = setting.device()
    data, what = _data(setting)
    config = SiameseConfig(**({} if device.type == "cuda" else SMALL))  # type: ignore[arg-type]
    steps, warm_up = setting.of_size(600, 4), setting.of_size(100, 2)
    rates = {
        name: _rate(_task(data, config, device, "auto"), steps, warm_up, capture)
        for name, capture in (("captured", True), ("uncaptured", False))
    }
    agrees = _agreement(data, device, setting.of_size(20, 4))
    found = rates["captured"]
    measured = {"pictures": what, "network": NETWORK, "side": SIDE, "batch": found.pop("batch"), **rates}
    reached = found["waiting"] < 0.05 and found["graphs"] > 0 and agrees["largest_difference_of_loss"] < 1e-2
    return setting.row(
        "the device waits in less than 5 % of the time; losses as on the CPU within 0.01", reached, measured, agrees
    )


def _rate(task: SiameseTask, steps: int, warm_up: int, capture: bool) -> dict[str, Any]:
    device, seen, said = task.fabric.device, 0, list[str]()
    display = Display()

    def count(pictures: int, _: str) -> None:
        nonlocal seen
        seen += pictures

    with reproducible_numerics(device), closing(SiameseSteps(task, streamed=True, display=display)) as loop:
        loop.steps.capture = loop.steps.capture and capture
        loop.steps.say = said.append
        loop.train_until(warm_up, count)
        finished(device)
        loop.clock, seen, started = type(loop.clock)(device), 0, time.perf_counter()
        loop.train_until(warm_up + steps, count)
        finished(device)
        seconds = time.perf_counter() - started
        return {
            "pictures_per_second": round(seen / seconds),
            "milliseconds_per_step": 1000 * seconds / steps,
            "waiting": round(loop.clock.share("batch"), 4),
            "batch": seen / steps,
            "graphs": loop.steps.captured,
            "said": said,
            "waits_in_8_steps": waits(lambda: [loop.train_step() for _ in range(8)]),
        }


def _agreement(data: SiameseData, device: torch.device, steps: int) -> dict[str, Any]:
    """Losses on the device, in captured steps, and by the usual loop of a CPU, both in float32."""
    config = SiameseConfig(**SMALL, lr=1e-4)  # type: ignore[arg-type]
    cpu = SiameseSteps(_task(data, config, torch.device("cpu"), "float32"))
    with (
        reproducible_numerics(device),
        closing(SiameseSteps(_task(data, config, device, "float32"), streamed=True)) as loop,
    ):
        pairs = [(float(loop.train_step()), float(cpu.train_step())) for _ in range(steps)]
    return {
        "steps": steps,
        "largest_difference_of_loss": max(abs(one - other) for one, other in pairs),
        "first_loss": pairs[0],
        "last_loss": pairs[-1],
    }


def _task(data: SiameseData, config: SiameseConfig, device: torch.device, precision: str) -> SiameseTask:
    torch.manual_seed(0)
    spec = EncoderSpec(NETWORK, SIDE, "drawing")
    network = create(spec)
    model = siamese(network, embedding_width(network, spec), len(data.groups) * SYMMETRIES, config)
    return SiameseTask(open_engine(device.type, precision), model, data, config, SIDE, 10_000)


def _data(setting: Setting) -> tuple[SiameseData, str]:
    folder = setting.real("omniglot")
    if folder is not None and not setting.dry:
        data = OmniglotSource("vinyals", folder=folder).read(SIDE, Display())
        return replace(data, validation=None, held_out=None), f"Omniglot, {len(data.pictures)} drawings"
    classes = setting.of_size(964, 24)
    drawings = torch.from_numpy(np.stack([_drawing(label, drawer) for label in range(classes) for drawer in range(20)]))
    data = SiameseData(
        pictures=frame_drawings(drawings, SIDE),
        classes=torch.arange(classes).repeat_interleave(20),
        groups=torch.arange(classes) // 12,
        symmetries=8,
        distortion="drawing",
    )
    return data, f"made, {len(drawings)} drawings"


def _drawing(label: int, drawer: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(105, 105): a line through six points of the class, moved a little for each drawer."""
    points = np.random.default_rng(label).integers(15, 90, (6, 2)) + np.random.default_rng(drawer).normal(0, 3, (6, 2))
    page = Image.new("L", (105, 105))
    ImageDraw.Draw(page).line([(x, y) for x, y in points.tolist()], fill=255, width=3)
    return np.asarray(page)
