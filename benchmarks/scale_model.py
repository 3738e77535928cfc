"""Time, memory, storage and price of a collection of any size, from rates of one core and one card.

Laws: work is divided by all cores or cards; bytes that all machines read and write together are bounded by the storage
that they share. A stage takes the longest of the three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

HOUR = 3600.0
# An inverted file of n vectors has 4 sqrt(n) lists, as FAISS's guidelines advise; a query visits PROBES of them.
LISTS, PROBES = 4, 32
# FAISS's k-means: rounds, and vectors of the sample for each list.
ROUNDS, SAMPLE = 10, 64
# Candidates of a compressed search that are compared again with the whole vectors.
RERANKED = 200


@dataclass(frozen=True)
class Network:
    """Rates of one network, pictures per second.

    Attributes:
        width: Numbers in a vector.
        embed_core, train_core: Forward pass, and a step of training, of one core; measured.
        embed_card, train_card: The same of one card; measured or published, as `cards` says.
    """

    name: str
    width: int
    embed_core: float
    train_core: float
    embed_card: float
    train_card: float
    cards: str


@dataclass(frozen=True)
class Rates:
    """Rates of one core of this machine, in processor seconds.

    Attributes:
        decode: Pictures read, decoded and resized.
        picture_bytes: Mean size of a picture's file.
        list_files: Files found per second in a folder.
        key_bytes: Memory of a listed picture.
        products: Multiplications with addition, in a product of matrices.
        exact: The same in an exact search of the index, many queries at once.
        assign: The same where FAISS compares vectors with the lists of an inverted file.
        codes: Bytes of compressed vectors that a search visits.
        encode: Numbers of vectors that are compressed.
        read, write: Bytes per second of this machine's disk.
    """

    networks: tuple[Network, ...]
    decode: float
    picture_bytes: float
    list_files: float
    key_bytes: float
    products: float
    exact: float
    assign: float
    codes: float
    encode: float
    read: float
    write: float


@dataclass(frozen=True)
class Site:
    """Machines of one kind and the storage that they share.

    Attributes:
        cores, cards, memory: Of one machine; memory in bytes.
        storage: Bytes per second that all machines together read and write.
        deadline: Hours in which a stage has to end.
        core_hour, card_hour: Prices.
    """

    cores: int = 16
    cards: int = 0
    memory: float = 64e9
    storage: float = 2e9
    deadline: float = 24.0
    core_hour: float = 0.05
    card_hour: float = 1.0


@dataclass(frozen=True)
class Stage:
    """Work of one kind: seconds of one core and of one card, and bytes from and to the shared storage."""

    name: str
    core_seconds: float
    card_seconds: float = 0.0
    shared_bytes: float = 0.0

    def hours(self, site: Site, machines: int) -> float:
        """Hours on so many machines."""
        card = self.card_seconds / (site.cards * machines) if self.card_seconds else 0.0
        return max(self.core_seconds / (site.cores * machines), card, self.shared_bytes / site.storage) / HOUR

    def machines(self, site: Site) -> int | None:
        """Least number of machines that end by the deadline; None where the shared storage is too slow for any."""
        if self.shared_bytes / site.storage > site.deadline * HOUR:
            return None
        card = self.card_seconds / site.cards if self.card_seconds else 0.0
        needed = max(self.core_seconds / site.cores, card) / (site.deadline * HOUR)
        return max(1, math.ceil(needed))

    def price(self, site: Site, machines: int) -> float:
        """Price of all cores and cards of the machines for the hours of the stage."""
        of_machine = site.cores * site.core_hour + site.cards * site.card_hour
        return self.hours(site, machines) * machines * of_machine


@dataclass(frozen=True)
class Limit:
    """Something that ends before the collection does. over: how many times over its bound it is."""

    name: str
    needs: str
    over: float
    remedy: str


Structure = Literal["exact", "compressed"]


@dataclass(frozen=True)
class Plan:
    """A collection of `pictures` through one network on machines of a site."""

    pictures: int
    network: Network
    rates: Rates
    site: Site
    epochs: int = 5

    @property
    def lists(self) -> int:
        return math.ceil(LISTS * math.sqrt(self.pictures))

    @property
    def vector_bytes(self) -> float:
        """All vectors in float32."""
        return 4.0 * self.network.width * self.pictures

    @property
    def code_bytes(self) -> float:
        """All vectors compressed to 4 bits for every 2 numbers."""
        return self.network.width / 4 * self.pictures

    @property
    def picture_bytes(self) -> float:
        return self.rates.picture_bytes * self.pictures

    @property
    def structure(self) -> Structure:
        """Exact while the vectors take at most half the memory of one machine and a core answers 5 queries a second."""
        small = self.vector_bytes <= self.site.memory / 2
        return "exact" if small and self.queries("exact") >= 5 else "compressed"

    def embed(self) -> Stage:
        """Decode and embed every picture once; decoding is on cores, the network on cards where there are any."""
        decoding = self.pictures / self.rates.decode
        moved = self.picture_bytes + self.vector_bytes
        if self.site.cards:
            return Stage("decode and embed", decoding, self.pictures / self.network.embed_card, moved)
        return Stage("decode and embed", decoding + self.pictures / self.network.embed_core, 0.0, moved)

    def index(self) -> Stage:
        """Build the index. The coarse quantiser compares every vector with every list."""
        if self.structure == "exact":
            return Stage("index", 0.0, 0.0, self.vector_bytes)
        width, lists = self.network.width, self.lists
        assigned = self.pictures + ROUNDS * min(self.pictures, SAMPLE * lists)
        seconds = assigned * lists * width / self.rates.assign + self.pictures * width / self.rates.encode
        return Stage("index", seconds, 0.0, 2 * self.vector_bytes + self.code_bytes)

    def queries(self, structure: Structure) -> float:
        """Queries per second of one core, many at once, the structure in memory."""
        width = self.network.width
        if structure == "exact":
            return self.rates.exact / (self.pictures * width)
        visited = PROBES * self.pictures / self.lists
        compared = (self.lists + RERANKED) * width / self.rates.assign
        return 1 / (compared + visited * width / 4 / self.rates.codes)

    def head(self) -> Stage:
        """Solve the head on vectors that are there already: products of every vector with itself."""
        return Stage("head", self.pictures * self.network.width**2 / self.rates.products, 0.0, self.vector_bytes)

    def full(self) -> Stage:
        """Train the whole network for `epochs` passes; every pass reads and decodes the pictures again."""
        shown = self.epochs * self.pictures
        decoding, moved = shown / self.rates.decode, self.epochs * self.picture_bytes
        if self.site.cards:
            return Stage("full fine-tuning", decoding, shown / self.network.train_card, moved)
        return Stage("full fine-tuning", decoding + shown / self.network.train_core, 0.0, moved)

    def stages(self) -> tuple[Stage, ...]:
        return self.embed(), self.index(), self.head(), self.full()

    def engines(self) -> tuple[str, str]:
        """What embeds, and what searches."""
        machines = self.embed().machines(self.site)
        if machines == 1:
            embed = "one process"
        elif self.site.cards or machines is None or machines > 64:
            embed = "Ray Data"
        else:
            embed = "shards by any launcher"
        if self.structure == "exact":
            return embed, "FAISS, exact"
        held = self.vector_bytes + self.code_bytes
        return embed, "FAISS, IVF PQ re-ranked" if held <= self.site.memory / 2 else "Lance, IVF PQ"

    def limits(self) -> list[Limit]:
        """What one machine, or the storage, does not hold, the worst first."""
        memory, site = self.site.memory, self.site
        sample = min(self.pictures, SAMPLE * self.lists) * 4.0 * self.network.width
        listing = self.pictures / self.rates.list_files
        moved = self.embed().shared_bytes / site.storage
        found = [
            Limit("vectors in memory", size(self.vector_bytes), self.vector_bytes / memory, "a Lance table"),
            Limit("compressed vectors in memory", size(self.code_bytes), self.code_bytes / memory, "a Lance table"),
            Limit(
                "list of pictures, where a program holds one",
                size(self.pictures * self.rates.key_bytes),
                self.pictures * self.rates.key_bytes / memory,
                "fewshot embed, which reads a stream; a sample for fit",
            ),
            Limit(
                "sample for the index's lists", size(sample), sample / memory, "workers of lance-ray, or fewer lists"
            ),
            Limit(
                "small files",
                f"{self.pictures:,} files, {duration(listing)} to list",
                self.pictures / 1e7,
                "tars of 1 GB",
            ),
            Limit(
                "shared storage",
                f"{duration(moved)} to read the pictures once",
                moved / (site.deadline * HOUR),
                "more storage bandwidth, or smaller pictures",
            ),
        ]
        return sorted((limit for limit in found if limit.over > 1), key=lambda limit: -limit.over)


def size(count: float) -> str:
    """Bytes in a few characters, decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, length in (("days", 24 * HOUR), ("h", HOUR), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}" if seconds >= 10 * length else f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
