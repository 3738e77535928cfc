"""What Ray's workers pass to each other, and the first and the last stage: pictures are listed, parts are written.

A row of the data set is one batch, in the column `BATCH`, and a block of Ray is one row. So a worker that is killed
costs one batch, and the same pictures are in a batch wherever and however often it is computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.collection.known import rows_of
from fewshot.collection.parts import Part, write_part
from finetune.data.collection.collection import Collection
from finetune.data.collection.shard import Shard
from finetune.data.collection.stored import StoredPicture

BATCH = "batch"
Row = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """The pictures that stand in parts already, as every worker has them.

    Attributes:
        hashes: `picture_hash` of each, sorted.
        unreadable: Key -> reason.
    """

    hashes: NDArray[np.bytes_]
    unreadable: Mapping[str, str]

    def holds(self, found: bytes) -> bool:
        return bool(rows_of(self.hashes, np.array([found], self.hashes.dtype))[0] >= 0)


@dataclass(frozen=True)
class Found:
    """The pictures of a batch that stand in parts already.

    Attributes:
        hashes: Of readable ones.
        unreadable: Keys of the others.
    """

    hashes: Sequence[bytes] = ()
    unreadable: Sequence[str] = ()


@dataclass(frozen=True)
class Listed:
    """The pictures of a batch. A class of its own: Ray would make columns of a list."""

    pictures: Sequence[StoredPicture]


@dataclass(frozen=True)
class Decoded:
    """A batch with the pixels of its n readable pictures, uint8 (n, ...); `part` has no vectors yet."""

    part: Part
    pixels: NDArray[np.uint8]
    found: Found


@dataclass(frozen=True)
class Embedded:
    """A batch with its vectors."""

    part: Part
    found: Found


@dataclass(frozen=True)
class Written:
    """What the driver gets of some batches, once their part is written.

    Attributes:
        embedded: Number of pictures in the part.
        unreadable: Pictures of them that cannot be read: key -> reason.
        found: Pictures that stood in earlier parts.
    """

    embedded: int
    unreadable: Mapping[str, str]
    found: Found

    @property
    def pictures(self) -> int:
        """Number of pictures of the batches."""
        return self.embedded + len(self.unreadable) + len(self.found.hashes) + len(self.found.unreadable)


def listed(_: Row, *, collection: Collection, shard: Shard, size: int) -> Iterator[Row]:
    """Batches of `size` pictures of a collection."""
    source = collection.pictures(shard)
    while batch := list(islice(source, size)):
        yield {BATCH: column([Listed(batch)])}


def written(rows: Row, *, folder: Path) -> Row:
    """Write some batches as one part. Its name depends on its pictures alone: written again, it replaces itself."""
    batches: list[Embedded] = list(rows[BATCH])
    unreadable = {key: reason for batch in batches for key, reason in batch.part.unreadable.items()}
    part = Part(
        [key for batch in batches for key in batch.part.keys],
        np.concatenate([batch.part.digests for batch in batches]),
        np.concatenate([batch.part.vectors for batch in batches]),
        unreadable,
    )
    if len(part) or unreadable:
        text = "\0".join([*part.keys, "", *unreadable]).encode(errors="surrogatepass")
        token = hashlib.sha256(part.digests.tobytes() + text).hexdigest()[:16]
        write_part(folder, part, name=f"part-{token}.safetensors")
    found = Found(
        [each for batch in batches for each in batch.found.hashes],
        [each for batch in batches for each in batch.found.unreadable],
    )
    return {BATCH: column([Written(len(part), unreadable, found)])}


def column(values: Sequence[Any]) -> NDArray[np.object_]:
    column = np.empty(len(values), object)
    for row, value in enumerate(values):
        column[row] = value
    return column
