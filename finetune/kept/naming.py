"""Pictures of a run by what a user calls them: a path, a file, a folder, or a hash."""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from finetune.data.images import Content, read_content
from finetune.errors import UnreadablePicture


class NamedPictures:
    """Finds pictures, each in a time that does not grow with their number.

    Args:
        places: Their absolute paths, which may be gone.
        contents: Their hashes.
        paths: Their paths as the run lists them.
    """

    def __init__(self, places: Sequence[str], contents: Sequence[Content], paths: Sequence[str] = ()):
        self._named: dict[str, list[int]] = defaultdict(list)
        self._hashed: dict[str, list[int]] = defaultdict(list)
        self._contents = contents
        for names in (places, paths):
            for position, name in enumerate(names):
                self._named[name].append(position)
        for position, content in enumerate(contents):
            if content.sha256:
                self._hashed[content.sha256].append(position)
        # Pictures of a folder stand side by side.
        self._sorted = sorted((place, position) for position, place in enumerate(places))

    def find(self, picture: str) -> set[int]:
        """Positions of the pictures that `picture` names: a path in the run, a file, a folder, or a sha256 in hex.

        Copies of a picture, which have the same sha256, are found with it.
        """
        asked = os.path.realpath(picture)
        found = {*self._named.get(picture, ()), *self._named.get(asked, ()), *self._below(asked)}
        hashes = {self._contents[position].sha256 for position in found}
        if not found:
            hashes = {picture.lower()} | ({sha256_of(Path(picture))} if os.path.isfile(picture) else set())
        return found.union(*(self._hashed.get(sha256, ()) for sha256 in hashes))

    def _below(self, folder: str) -> list[int]:
        """Positions of the pictures below a folder."""
        prefix, found = os.path.join(folder, ""), list[int]()
        for row in range(bisect_left(self._sorted, (prefix, -1)), len(self._sorted)):
            place, position = self._sorted[row]
            if not place.startswith(prefix):
                break
            found.append(position)
        return found


def sha256_of(path: Path) -> str:
    """In hex; "" for a file that cannot be read."""
    try:
        return hashlib.sha256(read_content(path)).hexdigest()
    except UnreadablePicture:
        return ""
