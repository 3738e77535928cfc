"""Reads as many pictures of a listing as fit in a time: about the same share of every class."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from lightning_fabric import Fabric

from finetune.config import Config
from finetune.data.folder import Listing
from finetune.data.loader import Pictures
from finetune.features.extraction import FeatureExtractor, StageReader
from finetune.features.forward import Outputs
from finetune.models.pooled import PooledStages
from finetune.progress import Advance, Display

# Pictures of a class that are read first: enough for a training, a validation and a test picture. Of a given val/ or
# test/ one of each class is enough.
LEAST, LEAST_HELD_OUT = 4, 1
# Pictures after which the speed is known, and fewest and most in a chunk.
SAMPLE, _CHUNK, _MOST = 512, 32, 2048
# Pictures that are read first, as the network is.
_TRIAL = 32
# Share of the time until the end that a chunk may take.
_SHARE = 0.1


@dataclass(frozen=True)
class ReadingLimit:
    """How long to read.

    Attributes:
        ends: Time by `time.monotonic` at which reading ends.
        latest: The same, where some class still lacks its fewest pictures.
        most: Most pictures.
    """

    ends: float
    latest: float
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
    with display.bar("reading", len(order)) as advance:
        reading = _Reading(order, fewest, advance, first)
        reader = StageReader.of(fabric, stages, listing, config, display)
        with reader.extractor(display) as extractor:
            cached = extractor.is_cached(reader.pictures)
        if not cached:
            # Converting the network takes seconds, which must be worth it in the time that there is.
            reader = StageReader.of(fabric, stages, listing, config, display, expected=1)
            with reader.extractor(display) as extractor:
                reading.read_some(extractor, reader.pictures, _TRIAL)
            reader = StageReader.of(fabric, stages, listing, config, display, expected=reading.affordable() // 2)
        with reader.extractor(display) as extractor:
            while reading.goes_on:
                reading.read_some(extractor, reader.pictures, reading.chunk())
                if reading.count >= SAMPLE and not reading.known:
                    reading.known, reading.limit = True, limit(reading.outputs(), reading.seconds)
    return PartlyRead(reading.outputs(), reading.seconds, fewest)


@dataclass
class _Reading:
    """What has been read so far. seconds: that a picture takes. known: whether the limit comes from the speed."""

    order: Sequence[int]
    fewest: int
    advance: Advance
    limit: ReadingLimit
    parts: list[Outputs] = field(default_factory=list)
    count: int = 0
    seconds: float = 0.0
    known: bool = False

    @property
    def goes_on(self) -> bool:
        end = self.limit.latest if self.count < self.fewest else self.limit.ends
        return self.count < min(self.limit.most, len(self.order)) and time.monotonic() < end

    def read_some(self, extractor: FeatureExtractor, pictures: Pictures, count: int) -> None:
        """Read the next pictures."""
        if not self.goes_on:
            return
        chosen = sorted(self.order[self.count : self.count + count])
        began = time.monotonic()
        self.parts.append(extractor.extract(pictures, chosen, advance=self.advance).outputs())
        took = (time.monotonic() - began) / len(chosen)
        # The latest chunks count most: the first one prepares the network, and other programs come and go.
        self.seconds = took if len(self.parts) <= 2 else (self.seconds + took) / 2
        self.count += len(chosen)

    def affordable(self) -> int:
        """Number of pictures that can still be read at the present speed."""
        left = max(0.0, self.limit.ends - time.monotonic())
        return min(len(self.order) - self.count, int(left / max(self.seconds, 1e-6)))

    def chunk(self) -> int:
        """Number of pictures in the next chunk: few, so that reading ends in time."""
        count = max(_CHUNK, min(_MOST, int(_SHARE * self.affordable()) // _CHUNK * _CHUNK))
        return min(count, SAMPLE - self.count if self.count < SAMPLE else self.limit.most - self.count)

    def outputs(self) -> Outputs:
        """The outputs of all chunks, by ascending position."""
        if not self.parts:
            return Outputs(torch.empty(0, 1, 0), torch.empty(0, dtype=torch.int64), {})
        whole = Outputs.joined(self.parts)
        order = whole.index.argsort()
        return replace(whole, values=whole.values[order], index=whole.index[order])


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
