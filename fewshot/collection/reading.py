"""The pictures of a shard in blocks, each read while the one before it is embedded; known pictures are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from threading import Event

from fewshot.collection.known import KnownPictures
from finetune.data.collection.stored import StoredPicture
from finetune.errors import UnreadablePicture

# Files that are read at the same time, so that a disk in the network does not cost its delay for each.
READERS = 8


@dataclass
class Block:
    """Pictures to embed, with their contents.

    Attributes:
        keys, contents, digests: Of the pictures; digests are SHA-256 in hex.
        unreadable: Key -> why a picture cannot be read.
        seen: Number of pictures that were read for the block, with known and unreadable ones.
        size: Bytes of the contents.
    """

    keys: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    size: int = 0

    def put(self, key: str, content: bytes | UnreadablePicture, known: KnownPictures) -> None:
        self.seen += 1
        if isinstance(content, UnreadablePicture):
            self.unreadable[key] = content.reason
            return
        digest = hashlib.sha256(content)
        if not known.holds(key, digest.digest()):
            self.keys.append(key)
            self.contents.append(content)
            self.digests.append(digest.hexdigest())
            self.size += len(content)


@contextmanager
def blocks_of(
    pictures: Iterator[StoredPicture], known: KnownPictures, *, count: int, size: int
) -> Iterator[Iterator[Block]]:
    """Reads pictures in blocks, one ahead of the one in use, until the context ends.

    Args:
        pictures: The pictures of the shard.
        known: Those that are embedded already.
        count: Number of pictures in a block, exceeded by less than 2 * READERS.
        size: Bytes in a block, exceeded by less than 2 * READERS pictures.
    """
    stopped = Event()

    def next_block() -> Block:
        block = Block()
        while len(block.keys) < count and block.size < size and block.seen < 16 * count and not stopped.is_set():
            group = list(islice(pictures, 2 * READERS))
            if not group:
                break
            for picture, content in zip(group, readers.map(_content, group), strict=True):
                block.put(picture.key, content, known)
        return block

    def blocks() -> Iterator[Block]:
        following = ahead.submit(next_block)
        while (block := following.result()).seen:
            following = ahead.submit(next_block)
            yield block

    with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(1) as ahead:
        try:
            yield blocks()
        finally:
            stopped.set()


def _content(picture: StoredPicture) -> bytes | UnreadablePicture:
    try:
        return picture.read()
    except UnreadablePicture as error:
        return error
