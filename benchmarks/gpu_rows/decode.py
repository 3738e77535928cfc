"""Decoding on the device by torchvision (nvJPEG): its speed beside the loader, and how far its pictures are apart."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from fewshot.embedding.embedder import Embedder
from finetune.config import MAX_PIXELS
from finetune.data.images import read_image
from finetune.data.loader import Pictures
from finetune.features.acceleration import GPU_BATCH, TOLERANCE
from finetune.features.forward import _streamed
from gpu_rows.embed import weights_of
from gpu_rows.setting import Setting, pictures, seconds_of

NETWORK = "tf_efficientnet_lite0"


def measure(setting: Setting) -> dict[str, Any]:
    device, batch = setting.device(), setting.of_size(GPU_BATCH, 4)
    with tempfile.TemporaryDirectory() as scratch:
        paths, what = pictures(setting, Path(scratch), setting.of_size(4096, 8))
        weights, trained = weights_of(setting, NETWORK, Path(scratch))
        embedder = Embedder.load(NETWORK, weights=weights, device=device.type, tolerance=1)
        source = Pictures(paths, embedder.spec.view(), embedder.spec.decoded_side, MAX_PIXELS)
        contents = [torch.from_numpy(np.fromfile(path, np.uint8)) for path in paths]
        parts = [contents[at : at + batch] for at in range(0, len(contents), batch)]
        workers = None if device.type == "cuda" else 0
        seconds = {
            "device": seconds_of(lambda: [_decoded(part, device) for part in parts], device, 1),
            "loader": seconds_of(
                lambda: sum(len(found) for found, _ in _streamed(device, None, source, batch, workers)), device, 1
            ),
        }
        compared = setting.of_size(64, 4)
        ours = [found.cpu() for found in _decoded(contents[:compared], device)]
        theirs = [np.asarray(read_image(path)) for path in paths[:compared]]
        pairs = [(found.permute(1, 2, 0).numpy(), other) for found, other in zip(ours, theirs, strict=True)]
        alike = [(found.astype(int), other) for found, other in pairs if found.shape == other.shape]
        apart = np.concatenate([np.abs(found - other).ravel() for found, other in alike])
        one, other = (torch.from_numpy(embedder.embed(given)) for given in (ours, theirs))
        least = float(torch.nn.functional.cosine_similarity(one, other).min())
    agrees = {
        "pictures": compared,
        "grey_levels_apart": {"mean": float(apart.mean()), "largest": int(apart.max())},
        "least_cosine_of_vectors": least,
    }
    measured = {
        "pictures": what,
        "network": NETWORK,
        "weights": trained,
        "pictures_per_second": {name: round(len(paths) / value, 1) for name, value in seconds.items()},
    }
    reached = seconds["device"] < seconds["loader"] and least >= TOLERANCE
    return setting.row(
        "whether decoding on the device is faster than the loader, with vectors within the tolerance",
        reached,
        measured,
        agrees,
    )


def _decoded(contents: list[Tensor], device: torch.device) -> list[Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision 0.29 calls its decoders deprecated
        found: list[Tensor] = decode_jpeg(contents, mode=ImageReadMode.RGB, device=device)
        return found
