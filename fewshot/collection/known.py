"""Which pictures of a shard are embedded already, with the content that they now have."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewshot.collection.parts import Part, part_files, read_part, write_part

# Bytes of the common SHA-256 of a key and its content that stand for both.
_HASH_BYTES = 16
_HASH = np.dtype(f"S{_HASH_BYTES}")


class KnownPictures:
    """The pictures that are in the parts of a folder when this is made.

    They take 17 bytes each, however long their keys are; unreadable ones take some hundreds.

    Args:
        folder: Folder of the parts.
        width: Length of a vector.

    Attributes:
        unreadable: Key -> reason of the pictures that could not be read.

    Example:
        >>> known = KnownPictures(Path("photos.parts/shard-1-of-4"), 256)  # doctest: +SKIP
        >>> known.holds("cats/1.jpg", hashlib.sha256(content).digest())  # doctest: +SKIP
        True
    """

    def __init__(self, folder: Path, width: int):
        self._folder, self._width = folder, width
        self._files = part_files(folder)
        self.unreadable: dict[str, str] = {}
        found = [np.empty(0, _HASH)]
        for path in self._files:
            part = read_part(path, width)
            found.append(_hashes(part))
            self.unreadable |= part.unreadable
        every = np.concatenate(found)
        self._hashes: NDArray[np.bytes_] = np.unique(every)
        # A picture that two processes embedded at the same time is in two parts.
        self._repeated = len(every) - len(self._hashes)
        self._found = np.zeros(len(self._hashes), bool)
        self._still_unreadable: set[str] = set()

    def __len__(self) -> int:
        return len(self._hashes)

    def holds(self, key: str, digest: bytes) -> bool:
        """Whether the picture is in the parts with this content, given by its SHA-256; if so, it is marked as found."""
        (row,) = self._rows(np.array([picture_hash(key, digest)], _HASH))
        if row >= 0:
            self._found[row] = True
        return bool(row >= 0)

    def holds_unreadable(self, key: str, reason: str) -> bool:
        """As `holds`, for a picture that cannot be read."""
        known = self.unreadable.get(key) == reason
        if known:
            self._still_unreadable.add(key)
        return known

    def delete_repeated(self) -> None:
        """Delete second copies from the parts, of a process whose job was killed and which wrote all the same."""
        self._found[:] = True
        self._still_unreadable = set(self.unreadable)
        self.delete_others()

    @property
    def hashes(self) -> NDArray[np.bytes_]:
        """`picture_hash` of each, sorted."""
        return self._hashes

    def mark(self, hashes: Sequence[bytes], unreadable: Sequence[str]) -> None:
        """Mark pictures that another process has found: readable ones by `picture_hash`, others by their keys."""
        if hashes:
            self._found[self._rows(np.array(hashes, _HASH))] = True
        self._still_unreadable.update(unreadable)

    @property
    def found(self) -> int:
        """Number of pictures that were found again."""
        return int(self._found.sum())

    @property
    def found_unreadable(self) -> int:
        """Number of unreadable pictures that were found again."""
        return len(self._still_unreadable)

    def delete_others(self) -> None:
        """Delete from the parts the pictures that were not found again, and second copies of others.

        They are no longer in the collection, or have another content. A part is replaced in one step.
        """
        if not self._repeated and self.found == len(self) and self.found_unreadable == len(self.unreadable):
            return
        kept = np.zeros(len(self._hashes), bool)
        for path in self._files:
            part = read_part(path, self._width)
            rows = self._rows(_hashes(part))  # all known, and different within one part
            wanted = self._found[rows] & ~kept[rows]
            kept[rows] = True
            unreadable = {key: reason for key, reason in part.unreadable.items() if key in self._still_unreadable}
            if not wanted.any() and not unreadable:
                path.unlink()
            elif not wanted.all() or len(unreadable) < len(part.unreadable):
                write_part(self._folder, part.only(wanted, unreadable), name=path.name)

    def _rows(self, hashes: NDArray[np.bytes_]) -> NDArray[np.intp]:
        return rows_of(self._hashes, hashes)


def picture_hash(key: str, digest: bytes) -> bytes:
    """What stands for a key and its content, given by its SHA-256."""
    return hashlib.sha256(digest + key.encode(errors="surrogatepass")).digest()[:_HASH_BYTES]


def _hashes(part: Part) -> NDArray[np.bytes_]:
    return np.array([picture_hash(key, row.tobytes()) for key, row in zip(part.keys, part.digests, strict=True)], _HASH)


def rows_of(known: NDArray[np.bytes_], hashes: NDArray[np.bytes_]) -> NDArray[np.intp]:
    """The row of each hash in `known`, which is sorted; -1 for an unknown one."""
    if not len(known):
        return np.full(len(hashes), -1)
    rows = np.searchsorted(known, hashes).clip(max=len(known) - 1)
    return np.where(known[rows] == hashes, rows, -1)
