"""Activations that no network made, and the cache that they are kept in; its files aged and damaged."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from told import NothingSaid
from torch import Tensor

from finetune.features.cache import ActivationCache
from finetune.features.cache_files import shards_of
from finetune.features.cache_keys import FeatureKey
from finetune.progress import Display

KEY = FeatureKey(
    backbone="net",
    weights="0" * 64,
    preprocessing={"size": 32, "mean": (0.5, 0.5, 0.5)},
    cut="features",
    view=("CenterCrop(32)",),
    seed=None,
    at_least=32,
    max_pixels=1000,
    test_time="plain",
    computed={"device": "cpu", "precision": "32-true"},
    kept_as="float32",
    versions={"torch": "2.10"},
)


def keys_of(numbers: Sequence[int]) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def values_of(numbers: Sequence[int], width: int = 5) -> Tensor:
    """(n, width), different rows for different numbers."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None] * 7 + torch.arange(width) / 3


def opened(folder: Path, display: Display | None = None, **options: Any) -> ActivationCache:
    return ActivationCache(folder, display=display or NothingSaid(), **({"disk": 1 << 30} | options))


def filled(folder: Path, numbers: Sequence[int], key: FeatureKey = KEY, width: int = 5) -> None:
    with opened(folder) as cache:
        cache.put(key, keys_of(numbers), values_of(numbers, width))


def the_shard(folder: Path, key: FeatureKey = KEY) -> Path:
    (shard,) = shards_of(folder, key.name)
    return shard


def aged(folder: Path, key: FeatureKey, days: float) -> None:
    for shard in shards_of(folder, key.name):
        os.utime(shard, (time.time() - days * 86_400,) * 2)


def of(number: int) -> FeatureKey:
    return replace(KEY, backbone=f"net{number}")


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def data_of(content: bytes, tensor: str) -> int:
    """Where the values of a tensor begin in a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return 8 + length + int(json.loads(content[8 : 8 + length])[tensor]["data_offsets"][0])
