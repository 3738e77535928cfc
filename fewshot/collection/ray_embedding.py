"""What Ray's workers compute: pictures are read and decoded, and actors embed them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fewshot.collection.known import picture_hash
from fewshot.collection.parts import DIGEST_BYTES, Part
from fewshot.collection.ray_stages import BATCH, Decoded, Embedded, Found, Known, Row
from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec
from finetune.config import MAX_PIXELS
from finetune.data.loader import Pictures
from finetune.errors import UnreadablePicture
from finetune.models.device import reproducible_numerics


def decoded(row: Row, *, spec: EncoderSpec, known: Any) -> Row:
    """Read and decode a batch. known: `Known` in Ray's object store."""
    import ray

    there: Known = ray.get(known)
    keys, contents, digests, hashes, unreadable = [], [], [], [], {}
    for picture in row[BATCH].pictures:
        key = picture.key
        try:
            content = picture.read()
        except UnreadablePicture as error:
            unreadable[key] = error.reason
            continue
        digest = hashlib.sha256(content).digest()
        if there.holds(found := picture_hash(key, digest)):
            hashes.append(found)
            continue
        keys.append(key)
        contents.append(content)
        digests.append(digest)
    batch = Pictures(contents, spec.view(), spec.decoded_side, MAX_PIXELS).batch(range(len(contents)))
    for position, read in batch.contents.items():
        if read.reason is not None:
            unreadable[keys[position]] = read.reason
    still = [key for key, reason in unreadable.items() if there.unreadable.get(key) == reason]
    rows = batch.index.tolist()
    part = Part(
        [keys[row] for row in rows],
        np.frombuffer(b"".join(digests[row] for row in rows), np.uint8).reshape(len(rows), DIGEST_BYTES),
        np.empty((len(rows), 0), np.float32),
        {key: reason for key, reason in unreadable.items() if key not in still},
    )
    return {BATCH: Decoded(part, batch.pixels.numpy(), Found(hashes, still))}


@dataclass(frozen=True)
class EmbedderParts:
    """What an actor makes the embedder of.

    Attributes:
        network: With its weights, on the CPU.
        spec, views, tolerance: As for `Embedder`.
        examples: Contents of the first pictures of the collection, on which faster ways to run the network are checked.
        pictures: Least number of pictures of the collection.
        batch_size: Most pictures in a batch of the network.
        device: "cpu" or "cuda".
    """

    network: nn.Module
    spec: EncoderSpec
    views: int
    tolerance: float
    examples: Sequence[bytes]
    pictures: int
    batch_size: int
    device: str


class Embed:
    """An actor that embeds batches. given: `EmbedderParts` in Ray's object store."""

    def __init__(self, given: Any):
        import ray

        parts: EmbedderParts = ray.get(given)
        self._embedder = Embedder(
            parts.network, parts.spec, views=parts.views, tolerance=parts.tolerance, device=parts.device
        )
        self._at_once = parts.batch_size
        self._vectors = self._embedder.from_pixels(parts.examples, pictures=parts.pictures, batch_size=parts.batch_size)

    def __call__(self, row: Row) -> Row:
        batch: Decoded = row[BATCH]
        vectors = [np.empty((0, self._embedder.width), np.float32)]
        with reproducible_numerics(self._embedder.fabric.device):
            for start in range(0, len(batch.part), self._at_once):
                pixels = torch.tensor(batch.pixels[start : start + self._at_once])  # a copy: Ray's memory is read-only
                vectors.append(self._vectors(pixels).numpy())
        part = Part(batch.part.keys, batch.part.digests, np.concatenate(vectors), batch.part.unreadable)
        return {BATCH: Embedded(part, batch.found)}
