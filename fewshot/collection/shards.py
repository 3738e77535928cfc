"""One shard of a collection, embedded in parts: restartable, and flat in memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewshot.collection.known import KnownPictures
from fewshot.collection.parts import (
    UNREADABLE_FILE,
    PartsHeader,
    open_parts,
    part_of,
    write_header,
    write_part,
)
from fewshot.collection.ray_engine import RayEngine, embedded_by_ray
from fewshot.collection.ray_stages import Written
from fewshot.collection.reading import Block, blocks_of
from fewshot.embedding.embedder import Embedder
from fewshot.search.index_files import ABOUT_FILE
from fewshot.search.picture_index import about_collection
from finetune.data.collection.collection import open_collection
from finetune.data.collection.shard import Shard
from finetune.errors import InputError
from finetune.files.locks import locked
from finetune.files.tables import write_csv
from finetune.progress import Advance, Display

# A part holds the pictures of a block, or fewer where the block takes longer than SAVE_EVERY seconds. A GPU starts
# processes that decode for every block.
CPU_BLOCK = 1024, 128 << 20  # pictures and bytes
GPU_BLOCK = 8192, 1 << 30
SAVE_EVERY = 60.0

Tell = Callable[[str, str], None]
_SHARD_FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class ShardUpdate:
    """What embedding a shard did.

    Attributes:
        shard: The shard, such as "3/8".
        pictures: Number of pictures that are in its parts.
        embedded: Number of them that were embedded now.
        unchanged: Number of them that were there with the same content.
        removed: Number of pictures removed, as they are gone or have another content.
        unreadable: Number of pictures that cannot be read.
        folder: Folder of the parts.
    """

    shard: str
    pictures: int
    embedded: int
    unchanged: int
    removed: int
    unreadable: int
    folder: str


def embed_shard(
    source: str | Path,
    out: str | Path,
    embedder: Embedder,
    shard: Shard | str,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    ray: RayEngine | None = None,
    display: Display | None = None,
    tell: Tell | None = None,
) -> ShardUpdate:
    """Embed one shard of a collection into parts, which `merge_parts` makes an index of.

    The shards of a collection need nothing of each other: each may run at any time, on any machine that sees the
    collection, once more or after it was killed. A shard that runs again reads its pictures, and embeds those that are
    new or have another content. Keys decide which pictures are in a shard; see `Collection.pictures`.

    Memory does not grow with the collection, except by 17 bytes for each picture that the parts hold already, and by
    the names of unreadable ones.

    Args:
        source: The collection, as `open_collection` takes it.
        out: Folder for the parts of all shards; created if missing. Each shard has a folder in it.
        embedder: Makes the vectors.
        shard: Which one, such as "3/8" for the third of eight.
        batch_size, workers: As for `Embedder.embed`; with `ray`, workers is the number of processes that embed.
        ray: The Ray cluster that embeds the pictures; None for this process.
        display: Shows a bar.
        tell: Called with the key of each unreadable picture and the reason, at once.

    Returns:
        The numbers of pictures that were embedded, kept and removed.

    Raises:
        InputError: If the collection cannot be read, `out` holds anything else, or another process is at this shard.

    Example:
        >>> from fewshot import Embedder, embed_shard
        >>> update = embed_shard("signs", "signs.parts", Embedder.load("omniglot", device="cpu"), "1/2")
        >>> update.shard, update.embedded == update.pictures
        ('1/2', True)
    """
    if ray is not None:
        ray.check()
    display, out = display or Display(), Path(out)
    shard = Shard.parsed(shard) if isinstance(shard, str) else shard
    collection = open_collection(source)
    for note in collection.notes:
        display.say(note)
    _check_out(out, shard)
    folder = shard_folder(out, shard)
    header = PartsHeader(
        width=embedder.width,
        fingerprint=embedder.fingerprint,
        about={"embedder": embedder.origin} | about_collection(collection),
        shard=shard.number,
        shards=shard.count,
    )
    with locked(folder, busy=f"another process is embedding shard {shard} in {out}; wait for its end"):
        stream = collection.pictures(shard)
        first = list(islice(stream, 1))  # before anything is written: the collection may hold no pictures
        open_parts(folder, header)
        known = KnownPictures(folder, embedder.width)
        job = _Job(folder, embedder, known, tell or _ignore)
        count, size = CPU_BLOCK if embedder.fabric.device.type == "cpu" else GPU_BLOCK
        with display.bar(f"embedding shard {shard}", None) as advance:
            if ray is not None:
                for written in embedded_by_ray(ray, collection, shard, folder, embedder, known, batch_size, workers):
                    job.add(written, advance)
            else:
                with blocks_of(chain(first, stream), known, count=count, size=size) as blocks:
                    for block in blocks:
                        job.run(block, batch_size, workers, advance)
        return _finished(header, job, other_writers=ray is not None)


def shard_folder(out: Path, shard: Shard) -> Path:
    """The folder of a shard's parts."""
    return out / f"shard-{shard.number}-of-{shard.count}"


def shard_folders(out: Path) -> list[tuple[Shard, Path]]:
    """The folders of parts in `out`, by shard."""
    found = []
    if out.is_dir():
        for path in out.iterdir():
            named = _SHARD_FOLDER.fullmatch(path.name)
            if named is not None and 1 <= int(named[1]) <= int(named[2]):
                found.append((Shard(int(named[1]), int(named[2])), path))
    return sorted(found, key=lambda each: (each[0].count, each[0].number))


def _check_out(out: Path, shard: Shard) -> None:
    if (out / ABOUT_FILE).exists():
        raise InputError(f"{out} is an index; give --shard another --out, and merge the parts into an index afterwards")
    other = next((path for found, path in shard_folders(out) if found.count != shard.count), None)
    if other is not None:
        raise InputError(
            f"{out} holds {other.name}, of another number of shards than {shard}; choose another --out, or delete it"
        )


def _finished(header: PartsHeader, job: _Job, other_writers: bool) -> ShardUpdate:
    """Delete what is out of date, and mark the shard as complete.

    other_writers: Whether workers of an earlier job, whose driver was killed, may have written beside this one.
    """
    known, ledger = job.known, job.folder / UNREADABLE_FILE
    known.delete_others()
    if other_writers:
        KnownPictures(job.folder, header.width).delete_repeated()
    if job.unreadable:
        write_csv(ledger, ("path", "reason"), sorted(job.unreadable.items()))
    else:
        ledger.unlink(missing_ok=True)
    pictures, unreadable = known.found + job.embedded, len(job.unreadable)
    write_header(job.folder, replace(header, complete=True, pictures=pictures, unreadable=unreadable))
    return ShardUpdate(
        shard=f"{header.shard}/{header.shards}",
        pictures=pictures,
        embedded=job.embedded,
        unchanged=known.found,
        removed=len(known) - known.found,
        unreadable=unreadable,
        folder=str(job.folder),
    )


@dataclass
class _Job:
    """Embeds blocks and writes parts.

    Attributes:
        embedded: Number of pictures in the parts that were written.
        unreadable: Key -> reason of all unreadable pictures.
    """

    folder: Path
    embedder: Embedder
    known: KnownPictures
    tell: Tell
    embedded: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    _rows: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)  # embedded, and in no part yet
    _saved: float = 0.0

    def run(self, block: Block, batch_size: int | None, workers: int | None, advance: Advance) -> None:
        """Embed a block, and write it as a part, or as several where it takes long."""
        self._saved = time.monotonic()

        def keep(positions: Sequence[int], vectors: NDArray[np.float32], _: Sequence[str]) -> None:
            self._rows += zip(positions, vectors, strict=True)
            if time.monotonic() - self._saved > SAVE_EVERY:
                self._save(block, {})

        try:
            bad = block.unreadable
            if block.contents:
                found = self.embedder.embed_all(
                    block.contents, batch_size=batch_size, workers=workers, advance=advance, keep=keep
                )
                bad = bad | {block.keys[at]: reason for at, reason in found.unreadable.items()}
            for key, reason in bad.items():
                self.tell(key, reason)
            self._save(block, {key: bad[key] for key in bad if not self.known.holds_unreadable(key, bad[key])})
            self.unreadable |= bad
        finally:
            self._save(block, {})  # also after Ctrl-C, which may have come within the block
        advance(block.seen - len(block.keys), "")

    def add(self, written: Written, advance: Advance) -> None:
        """Take over what a worker of Ray has written."""
        self.embedded += written.embedded
        self.known.mark(written.found.hashes, written.found.unreadable)
        bad = dict(written.unreadable) | {key: self.known.unreadable[key] for key in written.found.unreadable}
        for key, reason in bad.items():
            self.tell(key, reason)
        self.unreadable |= bad
        advance(written.pictures, "")

    def _save(self, block: Block, unreadable: Mapping[str, str]) -> None:
        if not self._rows and not unreadable:
            return
        rows = [row for row, _ in self._rows]
        keys, digests = [block.keys[row] for row in rows], [block.digests[row] for row in rows]
        vectors = np.array([vector for _, vector in self._rows], np.float32).reshape(len(rows), self.embedder.width)
        write_part(self.folder, part_of(keys, digests, vectors, unreadable))
        self.embedded += len(rows)
        self._rows.clear()
        self._saved = time.monotonic()


def _ignore(key: str, reason: str) -> None:
    pass
