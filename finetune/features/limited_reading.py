"""Reads as many pictures of a listing as fit in a time: about the same share of every class."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric

from finetune.config import Config
from finetune.data.folder import Listing
from finetune.features.extraction import StageReader
from finetune.features.forward import Outputs
from finetune.models.pooled import PooledStages
from finetune.progress import Display

# Pictures of a class that are read first: enough for a training, a validation and a test picture. Of a given val/ or
# test/ one of each class is enough.
LEAST, LEAST_HELD_OUT = 4, 1
# Pictures after which the speed is known, and fewest and most in a chunk.
SAMPLE, _CHUNK, _MOST = 512, 64, 2048
# Share of the time until the end that a chunk may take.
_SHARE = 0.1


@dataclass(frozen=True)
class ReadingLimit:
    """How long to read.

    Attributes:
        ends: Time by `time.monotonic` at which reading ends, whatever is read.
        most: Most pictures.
    """

    ends: float
    most: int


# Called once SAMPLE pictures are read, with their outputs and the seconds that a picture takes.
Limit = Callable[[Outputs, float], ReadingLimit]


@dataclass(frozen=True)
class PartlyRead:
    """Outputs of some pictures of a listing.

    Attributes:
        outputs: By position in the listing.
        seconds: Seconds that a picture takes.
        fewest: Number of pictures that every class must have together, see `mixed_order`.
    """

    outputs: Outputs
    seconds: float
    fewest: int

    @property
    def enough(self) -> bool:
        """Whether every class has its fewest pictures."""
        return len(self.outputs.contents) >= self.fewest


def mixed_order(listing: Listing) -> tuple[list[int], int]:
    """Every position of a listing in an order whose beginning has about the same share of every class and split.

    Returns:
        The order, and the number of pictures at its beginning that give every class its fewest pictures.
    """
    names = [hashlib.sha256(sample.path.encode(errors="surrogateescape")).digest() for sample in listing.samples]
    groups = [(sample.split, sample.label) for sample in listing.samples]
    sizes, ranks = Counter(groups), Counter[tuple[str | None, str]]()
    keys: list[tuple[bool, float, bytes, int]] = []
    for position in sorted(range(len(groups)), key=lambda position: names[position]):
        group = groups[position]
        rank = ranks[group]
        ranks[group] += 1
        first = rank < (LEAST_HELD_OUT if group[0] in ("val", "test") else LEAST)
        keys.append((not first, rank if first else (rank + 0.5) / sizes[group], names[position], position))
    keys.sort()
    return [key[3] for key in keys], sum(not key[0] for key in keys)


def read_within(
    fabric: Fabric,
    stages: PooledStages,
    listing: Listing,
    config: Config,
    display: Display,
    *,
    first: ReadingLimit,
    limit: Limit,
) -> PartlyRead:
    """Pooled activations of the pictures of a listing that can be read in a time.

    Args:
        fabric: Device and precision.
        stages: The frozen backbone.
        listing: The pictures.
        config: The run's options.
        display: Shows progress.
        first: The limit until the speed is known.
        limit: The limit from then on.

    Returns:
        The outputs of what was read: all pictures, or the beginning of `mixed_order`.
    """
    order, fewest = mixed_order(listing)
    reader, now = StageReader.of(fabric, stages, listing, config, display), first
    parts: list[Outputs] = []
    read, started, seconds, known = 0, time.monotonic(), 0.0, False
    first_chunk = (0, started)
    with (
        display.bar("reading", len(order)) as advance,
        reader.extractor(display) as extractor,
    ):
        while read < min(now.most, len(order)) and time.monotonic() < now.ends:
            count = _chunk(now, read, seconds)
            chosen = sorted(order[read : read + count])
            parts.append(extractor.extract(reader.pictures, chosen, advance=advance).outputs())
            read += len(parts[-1].contents)
            if len(parts) == 1:  # the first chunk has prepared the network
                first_chunk = (read, time.monotonic())
            since = first_chunk if len(parts) > 1 else (0, started)
            seconds = (time.monotonic() - since[1]) / (read - since[0])
            if read >= SAMPLE and not known:
                known, now = True, limit(_together(parts), seconds)
    return PartlyRead(_together(parts), seconds, fewest)


def only(listing: Listing, outputs: Outputs) -> tuple[Listing, Outputs]:
    """The listing of the pictures that `outputs` has contents of, and the outputs by position in it."""
    chosen = sorted(outputs.contents)
    if len(chosen) == len(listing.samples):
        return listing, outputs
    position = {old: new for new, old in enumerate(chosen)}
    index = torch.tensor([position[old] for old in outputs.index.tolist()], dtype=torch.int64)
    contents = {position[old]: content for old, content in outputs.contents.items()}
    samples = tuple(listing.samples[old] for old in chosen)
    return replace(listing, samples=samples), Outputs(outputs.values, index, contents)


def _chunk(limit: ReadingLimit, read: int, seconds: float) -> int:
    """Number of pictures in the next chunk."""
    count = _CHUNK
    if seconds > 0:
        count = int(_SHARE * (limit.ends - time.monotonic()) / seconds) // _CHUNK * _CHUNK
    count = max(_CHUNK, min(_MOST, count))
    return min(count, SAMPLE - read if read < SAMPLE else limit.most - read)


def _together(parts: Sequence[Outputs]) -> Outputs:
    """The outputs of several chunks, by ascending position."""
    if not parts:
        return Outputs(torch.empty(0, 1, 0), torch.empty(0, dtype=torch.int64), {})
    index = torch.cat([part.index for part in parts])
    values = torch.cat([part.values for part in parts if len(part.index)] or [parts[0].values])
    order = index.argsort()
    contents = {position: content for part in parts for position, content in part.contents.items()}
    return Outputs(values[order], index[order], contents)
