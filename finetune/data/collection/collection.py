"""A collection of pictures of any size: a folder, a table or tar archives, read as a stream."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

from finetune.data.collection.folders import pictures_below
from finetune.data.collection.shard import Shard
from finetune.data.collection.stored import StoredPicture
from finetune.data.collection.tars import pictures_in
from finetune.data.images import PICTURE_EXTENSIONS
from finetune.data.table import TABLES, read_paths
from finetune.errors import InputError

TAR = ".tar"
WHOLE = Shard()


@dataclass(frozen=True)
class Collection:
    """The pictures of a collection, of which no list is held.

    Attributes:
        kind: "folder", "table" or "tars".
        source: What was given.
        root: Folder that the keys are paths below: "cats/1.jpg", for a member of an archive "000.tar/1.jpg".
        tars: The archives, sorted by name; none for other kinds.
        notes: Decisions to show, one sentence each.
    """

    kind: Literal["folder", "table", "tars"]
    source: Path
    root: Path
    tars: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    def pictures(self, shard: Shard = WHOLE) -> Iterator[StoredPicture]:
        """The pictures of a shard, each key once, in the order of the collection.

        A picture's shard is decided by its key, not by its content: by content, each of n shards would have to read
        every picture, n times the work. Of tar archives, a shard has whole ones where there are at least as many as
        shards: the first, the one `shard.count` after it, and so on. Then it reads no others.

        Raises:
            InputError: If the collection cannot be read, or has no picture in any shard.
        """
        some = False
        for picture in self._every(shard):
            some = True
            if self._by_archive(shard) or shard.owns(picture.key):
                yield picture
        if not some:
            raise InputError(f"{self.source} holds no pictures")

    def _every(self, shard: Shard) -> Iterator[StoredPicture]:
        """The pictures, of which those of other shards are left out where they need not be read."""
        if self.kind == "folder":
            yield from pictures_below(self.root)
        elif self.kind == "table":
            yield from _in_table(self.source, self.root, shard)
        else:
            tars = self.tars[shard.number - 1 :: shard.count] if self._by_archive(shard) else self.tars
            for path in tars:
                yield from pictures_in(path, path.name)

    def _by_archive(self, shard: Shard) -> bool:
        return shard.count <= len(self.tars)


def open_collection(source: str | Path) -> Collection:
    """The collection at `source`; nothing but its kind is found out.

    Args:
        source: A folder, for the pictures below it; a CSV or TSV file with the column `path`, whose paths are relative
            to its folder; a tar archive, or a folder that holds such archives and neither pictures nor other folders.

    Raises:
        InputError: If there is no such source, or it is of another kind.

    Example:
        >>> from finetune.data.collection.collection import open_collection
        >>> [picture.key for picture in open_collection("signs").pictures()][:2]  # doctest: +SKIP
        ['class00/00.png', 'class00/01.png']
    """
    source = Path(source)
    if source.is_dir():
        return _of_folder(source)
    if not os.path.lexists(source):
        raise InputError(f"{source} does not exist")
    if not source.is_file():
        raise InputError(f"{source} is neither a folder nor a file")
    if source.suffix.lower() in TABLES:
        return Collection("table", source, source.parent)
    if source.suffix.lower() == TAR:
        return Collection("tars", source, source.parent, (source,))
    raise InputError(
        f"{source} is no collection: give a folder, a table that ends in {' or '.join(TABLES)}, or an archive that "
        f"ends in {TAR}, not compressed"
    )


def pictures_at(sources: Sequence[Path]) -> Iterator[StoredPicture]:
    """The pictures of several sources, one after the other: files, and collections as `open_collection` takes them.

    Keys are the whole paths, as given; of a member of an archive, the archive's path and the member's name. A row of a
    table counts each time.

    Raises:
        InputError: For a source that does not exist, before the first picture; and for one that is damaged or holds no
            pictures, when it is reached.
    """
    for source in sources:
        if not os.path.lexists(source):
            raise InputError(f"{source} does not exist")
    return chain.from_iterable(map(_pictures_of, sources))


def _pictures_of(source: Path) -> Iterator[StoredPicture]:
    suffix = source.suffix.lower()
    if suffix in TABLES and source.is_file():
        return (_file(source.parent / path) for path in read_paths(source))
    if source.is_dir() or (suffix == TAR and source.is_file()):
        collection = open_collection(source)
        pictures = collection.pictures()
        if collection.kind == "tars":
            return (replace(picture, key=os.path.join(collection.root, picture.key)) for picture in pictures)
        return (replace(picture, key=picture.path) for picture in pictures)
    return iter([_file(source)])


def _file(path: Path) -> StoredPicture:
    return StoredPicture(str(path), str(path))


def _of_folder(folder: Path) -> Collection:
    tars, others = [], False
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if suffix == TAR and not entry.is_dir():
                    tars.append(folder / entry.name)
                others = others or entry.is_dir() or suffix in PICTURE_EXTENSIONS
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    if tars and not others:
        return Collection("tars", folder, folder, tuple(sorted(tars)))
    notes: tuple[str, ...] = ()
    if tars:
        notes = (
            f"Archives beside pictures or folders are ignored: {len(tars)} in {folder}. To read them, move them into a "
            "folder of their own.",
        )
    return Collection("folder", folder, folder, (), notes)


def _in_table(table: Path, root: Path, shard: Shard) -> Iterator[StoredPicture]:
    """The pictures that a table names, each once. Only names of the shard's own pictures are remembered."""
    seen: set[int] = set()
    for path in read_paths(table):
        key = Path(os.path.normpath(path)).as_posix()
        if shard.owns(key):
            if hash(key) in seen:
                continue
            seen.add(hash(key))
        yield StoredPicture(key, str(root / key))
