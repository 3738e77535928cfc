"""Embedding of pictures in files, against its network and decoding alone; what torch.compile costs and saves."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from fewshot.embedding.embedder import Embedder
from finetune.config import MAX_PIXELS
from finetune.data.loader import Pictures
from finetune.features.acceleration import GPU_BATCH, TOLERANCE, _half, filled
from finetune.features.forward import _streamed
from finetune.models.device import reproducible_numerics
from finetune.progress import Display
from gpu_rows.setting import Busy, Setting, finished, pictures, seconds_of, waits

ASKED = 0.9


def measure(setting: Setting, network: str) -> dict[str, Any]:
    device, batch = setting.device(), setting.of_size(GPU_BATCH, 2)
    with tempfile.TemporaryDirectory() as scratch:
        paths, what = pictures(setting, Path(scratch), setting.of_size(16_384, 4))
        weights, trained = weights_of(setting, network, Path(scratch))
        embedder = Embedder.load(network, weights=weights, device=device.type)
        source = Pictures(paths, embedder.spec.view(), embedder.spec.decoded_side, MAX_PIXELS)
        started = time.perf_counter()
        run = embedder.passes.of(source, batch, Display())
        choosing = time.perf_counter() - started
        way = embedder.passes.chosen.get(batch)
        busy = Busy(run, device)
        if way is not None:
            embedder.passes.chosen[batch] = replace(way, run=busy)
        workers = None if device.type == "cuda" else 0
        unit = partial(embedder._unit_vectors, run)
        alone, waiting = _network_alone(setting, unit, source, batch)
        rates = {
            "decoding": len(paths) / _timed(lambda: list(_without_pixels(device, source, batch, workers)), device),
            "network": alone,
            "embed": len(paths) / _timed(lambda: embedder.embed_all(paths, batch_size=batch, workers=workers), device),
        }
        compared = paths[:: max(1, len(paths) // 32)][: setting.of_size(32, 2)]
        exact = Embedder.load(network, weights=weights, device="cpu", tolerance=1)
        ours, theirs = (torch.from_numpy(one.embed(compared, workers=2)).double() for one in (embedder, exact))
        # On a CPU, `embed` takes another way than on a GPU: that of a GPU runs here as well.
        streamed = list(_streamed(device, unit, source, batch, 0)) if device.type == "cpu" else []
    least = float(cosine_similarity(ours, theirs).min())
    agrees = {"pictures": len(compared), "least_cosine_with_float32": least}
    bound = min(rates["decoding"], rates["network"])
    measured = {
        "network": network,
        "weights": trained,
        "pictures": f"{what}, {len(paths)} in all",
        "way": "plain float32" if way is None else way.name,
        "seconds_to_choose_it": round(choosing, 2),
        "pictures_per_second": {name: round(rate, 1) for name, rate in rates.items()},
        "embed_over_the_slower": round(rates["embed"] / bound, 3),
        "share_of_time_without_work": busy.waiting(),
        "batches_streamed_on_a_cpu": len(streamed),
        "waits_in_passes_of_the_network": waiting,
    }
    reached = rates["embed"] >= ASKED * bound and least >= TOLERANCE
    return setting.row("at least 0.9 of the slower of its network and its decoding", reached, measured, agrees)


def measure_compiling(setting: Setting) -> dict[str, Any]:
    """Seconds that torch.compile takes, and the time of a picture that it saves: the rule of `compiling_pays`."""
    asked, device = "what torch.compile costs and saves, for the rule by which it is used", setting.device()
    if device.type != "cuda":
        return setting.row(asked, False, {"compiled": "not in a dry run"}, {})
    network = timm.create_model("resnet50", pretrained=False).to(device).eval()
    network = network.to(memory_format=torch.channels_last)
    batch = torch.randn(GPU_BATCH, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    eager, compiled = _half(network, torch.float16), _half(torch.compile(network), torch.float16)
    with reproducible_numerics(device):
        before = seconds_of(lambda: eager(batch), device, 9)
        compiling = _timed(lambda: compiled(batch), device)
        after = seconds_of(lambda: compiled(batch), device, 9)
        agrees = {"least_cosine": float(cosine_similarity(eager(batch), compiled(batch)).min())}
    measured = {
        "seconds_to_compile": compiling,
        "pictures_per_second": {"eager": GPU_BATCH / before, "compiled": GPU_BATCH / after},
        "share_saved": 1 - after / before,
        "pays_from_pictures": round(compiling / (before - after) * GPU_BATCH) if after < before else None,
    }
    return setting.row(asked, after < before, measured, agrees)


def weights_of(setting: Setting, network: str, scratch: Path) -> tuple[Path, str]:
    """A file of weights: real ones where the data have them, else random ones; and which."""
    real = setting.real(f"weights/{network}.safetensors")
    if real is not None:
        return real, "pretrained"
    torch.manual_seed(0)
    scratch.mkdir(parents=True, exist_ok=True)
    made = scratch / f"{network}.safetensors"
    save_file(timm.create_model(network, pretrained=False).state_dict(), made)
    return made, "random: no file of weights was given"


def _without_pixels(device: torch.device, source: Pictures, batch: int, workers: int | None) -> Any:
    """Each batch's number of pictures, without keeping any."""
    return (len(found) for found, _ in _streamed(device, None, source, batch, workers))


def _network_alone(
    setting: Setting, unit: Callable[[torch.Tensor], torch.Tensor], source: Pictures, size: int
) -> tuple[float, dict[str, int] | str]:
    """Pictures a second over batches that lie on the device, and the lines at which the CPU waits for it."""
    device = setting.device()
    first = [found.pixels.to(device) for found, _ in islice(_streamed(device, None, source, size, 0), 2)]
    batches = [filled(pixels, size) for pixels in first]
    passes = setting.of_size(24, 1)

    def act() -> None:
        for number in range(passes):
            unit(batches[number % len(batches)])

    with reproducible_numerics(device):
        return passes * size / seconds_of(act, device, setting.of_size(3, 1)), waits(act)


def _timed(act: Callable[[], object], device: torch.device) -> float:
    finished(device)
    started = time.perf_counter()
    act()
    finished(device)
    return time.perf_counter() - started
