"""An index of the pictures of a collection, and search by pictures."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fewshot.search.arguments import parsed_metadata
from fewshot.search.contact_sheet import Row, Tile
from fewshot.search.index import Index
from fewshot.search.index_files import is_free
from fewshot.search.neighbours import Neighbour
from fewshot.search.table.lance_index import LanceIndex
from fewshot.search.table.location import is_free_for_table, is_table
from finetune.data.collection.collection import Collection, open_collection
from finetune.data.collection.stored import StoredPicture
from finetune.data.folder import list_unlabelled
from finetune.errors import InputError, UnreadablePicture
from finetune.progress import Display

if TYPE_CHECKING:
    from fewshot.embedding.embedder import Embedder

# The index is saved after a block of AT_ONCE pictures if SAVE_EVERY seconds have passed.
AT_ONCE = 2048
SAVE_EVERY = 60.0


@dataclass(frozen=True)
class IndexUpdate:
    """What an update of an index did.

    Attributes:
        embedded: Number of pictures embedded.
        moved: Number of pictures whose content was known under another name.
        unchanged: Number of unchanged pictures.
        removed: Number of pictures removed from the index, as their files are gone.
        unreadable: Path below the folder -> why the picture cannot be read.
    """

    embedded: int
    moved: int
    unchanged: int
    removed: int
    unreadable: Mapping[str, str]


def embed_folder(
    folder: Path,
    out: str | Path,
    embedder: Embedder,
    *,
    kind: str = "auto",
    memory: int | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    display: Display | None = None,
) -> tuple[Index | LanceIndex, IndexUpdate]:
    """Create or update the index in `out` so that it matches the pictures of a collection.

    Keys are paths below the folder, with "/"; of a table, paths as it gives them; of archives, "archive.tar/member".
    Content decides: a moved picture is not embedded again, a changed one is.
    Progress is saved from time to time and on interruption, so that the next call continues there.
    The metadata of a picture are the checksum of its file, "sha256", and the name of the folder that it is in, "label".

    Args:
        folder: The collection, as `open_collection` takes it: a folder, a table or tar archives.
        out: Folder of the index; created if missing. A name that ends in .lance, or an address such as
            s3://bucket/name.lance, is a Lance table.
        embedder: Makes the vectors.
        kind: As for `Index` or `LanceIndex`, for a new index.
        memory: As for `Index`; an index that is there takes a new limit.
        batch_size, workers: As for `Embedder.embed`.
        display: Shows bars.

    Raises:
        InputError: If `out` was made with another embedder or from another folder.

    Returns:
        The index, and the numbers of pictures that were added, changed and removed.

    Example:
        >>> from fewshot import Embedder, embed_folder
        >>> index, update = embed_folder(Path("signs"), Path("signs.index"), Embedder.load("omniglot", device="cpu"))
        >>> len(index)
        16
    """
    display = display or Display()
    collection = open_collection(folder)
    for note in collection.notes:
        display.say(note)
    pictures = {picture.key: picture for picture in collection.pictures()}
    about = about_collection(collection)
    index = _opened(about, out, embedder, kind, memory)
    if isinstance(index, Index):
        index.check_memory([key + json.dumps(picture_metadata(key, "0" * 64)) for key in pictures])
    check = partial(check_source, out, about=about)
    texts = index.metadata_texts(index.keys)
    known = {key: str(parsed_metadata(text, key).get("sha256")) for key, text in texts.items()}
    # A new index embeds everything, and embedding also computes the checksums. An update reads new pictures twice,
    # which takes a hundredth of the embedding time, rather than keep them in memory.
    contents, unreadable = _contents(pictures, display) if known else (dict.fromkeys(pictures, ""), {})
    gone = [key for key in known if key not in contents]
    moved = _moved(known, contents)
    wanted = [key for key, digest in contents.items() if known.get(key) != digest and key not in moved]
    _put(index, list(moved), [contents[key] for key in moved], index.vectors(list(moved.values())))
    index.remove(gone)
    pending = _Pending(index)
    try:
        saved = time.monotonic()
        with display.bar("embedding", len(wanted)) as advance:
            for at in range(0, len(wanted), AT_ONCE):
                pending.keys = wanted[at : at + AT_ONCE]
                found = embedder.embed_all(
                    [pictures[key] for key in pending.keys],
                    batch_size=batch_size,
                    workers=workers,
                    advance=advance,
                    keep=pending.keep,
                )
                unreadable |= {pending.keys[number]: reason for number, reason in found.unreadable.items()}
                pending.put()
                if time.monotonic() - saved > SAVE_EVERY:
                    index.save(out, check=check)
                    saved = time.monotonic()
    finally:
        # Also after Ctrl-C, which may have come within a block or while it was put into the index.
        if not pending.broken:
            pending.put()
            index.save(out, check=check)
    if isinstance(index, LanceIndex) and index.needs_compaction:
        index.compact()
    return index, IndexUpdate(
        pending.embedded,
        len(moved),
        len(contents) - len(wanted) - len(moved),
        len(gone),
        dict(sorted(unreadable.items())),
    )


def _opened(
    about: Mapping[str, Any], out: str | Path, embedder: Embedder, kind: str, memory: int | None
) -> Index | LanceIndex:
    recorded = {"embedder": embedder.origin} | dict(about)
    if is_table(out):
        refuse_memory(out, memory)
    if is_table(out) and is_free_for_table(out):
        return LanceIndex.create(out, embedder.width, kind=kind, fingerprint=embedder.fingerprint, about=recorded)
    if not is_table(out) and is_free(Path(out)):
        return Index(embedder.width, kind=kind, fingerprint=embedder.fingerprint, about=recorded, memory=memory)
    index = Index.open(out, fingerprint=embedder.fingerprint)
    check_source(out, index.about, about)
    if isinstance(index, Index) and memory is not None:
        index.memory = memory
    return index


def about_collection(collection: Collection) -> dict[str, Any]:
    """What an index says about its pictures: "folder", which keys are paths below, and "source", the table or the
    archive, where the pictures are not those of the whole folder."""
    about = {"folder": str(collection.root.absolute())}
    whole = collection.source == collection.root
    return about if whole else about | {"source": str(collection.source.absolute())}


def collection_of(about: Mapping[str, Any]) -> str | None:
    """The collection that an index says it is of; None where it does not say."""
    of = about.get("source") or about.get("folder")
    return None if of is None else str(of)


def check_source(out: str | Path, there: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """InputError where the index in `out`, which says `there`, is of another collection than `about` says. Another
    process may have made it meanwhile."""
    of, other = collection_of(there), collection_of(about)
    if of is not None and of != other:
        raise InputError(f"{out} is the index of {of}; choose another --out for {other}")


def refuse_memory(table: str | Path, memory: int | None) -> None:
    """InputError where a Lance table is given a limit of memory."""
    if memory is not None:
        raise InputError(f"{table} is a Lance table, which leaves its vectors on disk; leave out --memory")


class _Pending:
    """Embedded pictures of a block, until the index has them.

    Attributes:
        keys: Of the block.
        embedded: Number of pictures that were put into the index.
        broken: Whether putting them was interrupted, so that the index may not be saved.
    """

    def __init__(self, index: Index | LanceIndex):
        self.keys: Sequence[str] = ()
        self.embedded = 0
        self.broken = False
        self._index = index
        self._found: dict[int, tuple[str, NDArray[np.float32]]] = {}

    def keep(self, positions: Sequence[int], vectors: NDArray[np.float32], digests: Sequence[str]) -> None:
        self._found.update(zip(positions, zip(digests, vectors, strict=True), strict=True))

    def put(self) -> None:
        """Put them into the index, in the order of their keys."""
        order = sorted(self._found)
        if order:
            self.broken = True
            vectors = np.stack([self._found[number][1] for number in order])
            _put(self._index, [self.keys[n] for n in order], [self._found[n][0] for n in order], vectors)
            self.embedded += len(order)
            self._found.clear()
            self.broken = False


def _contents(pictures: Mapping[str, StoredPicture], display: Display) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 of every readable file, and why others cannot be read."""
    digests, unreadable = {}, {}
    with display.bar("reading", len(pictures)) as advance:
        for key, picture in pictures.items():
            try:
                digests[key] = hashlib.sha256(picture.read()).hexdigest()
            except UnreadablePicture as error:
                unreadable[key] = error.reason
            advance(1, "")
    return digests, unreadable


def _moved(known: Mapping[str, str], contents: Mapping[str, str]) -> dict[str, str]:
    """New key -> the key of a picture of the same content in the index."""
    holder = {digest: key for key, digest in known.items()}
    return {key: holder[digest] for key, digest in contents.items() if known.get(key) != digest and digest in holder}


def _put(index: Index | LanceIndex, keys: Sequence[str], digests: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Add new keys, replace the others."""
    about = [picture_metadata(key, digest) for key, digest in zip(keys, digests, strict=True)]
    there = index.which(keys)
    for put, wanted in ((index.replace, True), (index.add, False)):
        rows = [row for row, key in enumerate(keys) if (key in there) is wanted]
        if rows:
            put([keys[row] for row in rows], vectors[rows], [about[row] for row in rows])


def picture_metadata(key: str, digest: str) -> dict[str, str]:
    """Metadata of a picture in an index."""
    folder = key.rpartition("/")[0].rpartition("/")[2]
    return {"sha256": digest} | ({"label": folder} if folder else {})


def open_index(
    folder: str | Path,
    embedder: Embedder | None = None,
    *,
    version: int | None = None,
    memory_mapped: bool | None = None,
    device: str = "auto",
) -> tuple[Index | LanceIndex, Embedder]:
    """Open an index of pictures, with the embedder that made it.

    Args:
        folder: Folder of the index, as `embed_folder` wrote it; or path or address of a Lance table.
        embedder: The embedder; None loads the one that the index names.
        version: Of a Lance table; None opens the newest.
        memory_mapped: Read the vectors from disk, for an index larger than memory; None: where the index was made for
            less memory than its vectors take.
        device: "auto", "cpu" or "cuda".

    Returns:
        The index and its embedder.

    Raises:
        InputError: If the folder holds no index, or `embedder` did not make it.

    Example:
        >>> from fewshot import Embedder, embed_folder, open_index
        >>> _ = embed_folder(Path("signs"), Path("signs.index"), Embedder.load("omniglot", device="cpu"))
        >>> index, embedder = open_index(Path("signs.index"), device="cpu")
        >>> index.fingerprint == embedder.fingerprint
        True
    """
    fingerprint = None if embedder is None else embedder.fingerprint
    index = Index.open(folder, fingerprint=fingerprint, version=version, memory_mapped=memory_mapped, device=device)
    if embedder is None:
        # Not at the top: Ray's workers that list and write need neither it nor timm.
        from fewshot.embedding.embedder import Embedder

        embedder = Embedder.of_origin(index.about.get("embedder"), device=device)
        if embedder.fingerprint != index.fingerprint:
            raise InputError(
                f"{folder} was made with the embedder {index.fingerprint}; {embedder.source} now has the fingerprint "
                f"{embedder.fingerprint}: embed again into another --out"
            )
    return index, embedder


def search_pictures(
    index: Index | LanceIndex,
    embedder: Embedder,
    queries: Sequence[Path],
    *,
    k: int = 10,
    at_least: float | None = None,
    where: str | None = None,
) -> tuple[list[tuple[Path, list[Neighbour]]], dict[str, str]]:
    """Find the most similar pictures of an index for every query.

    Args:
        index: The index.
        embedder: The embedder that made it.
        queries: Pictures, or folders of pictures.
        k: Number of neighbours of each query.
        at_least: Smallest similarity, from -1 to 1; None for no limit.
        where: Condition on the metadata of neighbours, as for `LanceIndex.search`; for a Lance table alone.

    Raises:
        InputError: For a wrong condition, and for one on another index.

    Returns:
        Each query with its neighbours, the most similar first; and the reason for each unreadable query, by path.

    Example:
        >>> from fewshot import Embedder, embed_folder, search_pictures
        >>> embedder = Embedder.load("omniglot", device="cpu")
        >>> index, _ = embed_folder(Path("signs"), Path("signs.index"), embedder)
        >>> [(query, neighbours)], unreadable = search_pictures(index, embedder, [Path("sign.png")], k=1)
        >>> neighbours[0].key
        'class00/03.png'
    """
    if where is not None:
        _check_where(index, where)
    paths = list_unlabelled(queries)
    found = embedder.embed_all(paths)
    good = [row for row in range(len(paths)) if row not in found.unreadable]
    vectors = found.vectors[good]
    if isinstance(index, LanceIndex):
        near = index.search(vectors, k, at_least=at_least, where=where)
    else:
        near = index.search(vectors, k, at_least=at_least)
    answers = [(paths[row], neighbours) for row, neighbours in zip(good, near, strict=True)]
    return answers, {str(paths[row]): reason for row, reason in found.unreadable.items()}


def _check_where(index: Index | LanceIndex, where: str) -> None:
    """InputError before pictures are embedded, which takes long."""
    if not isinstance(index, LanceIndex):
        raise InputError("where needs a Lance table: fewshot embed FOLDER --out NAME.lance")
    index.check_where(where)


def sheet_rows(index: Index | LanceIndex, found: Sequence[tuple[Path, list[Neighbour]]]) -> list[Row]:
    """Rows of a contact sheet for the result of `search_pictures`. InputError if the index names no folder."""
    folder = index.about.get("folder")
    if folder is None:
        raise InputError("the index does not record where its pictures are, so a sheet cannot be drawn")
    return [
        Row(Tile(query, query.name), [Tile(Path(folder) / each.key, each.key, each.similarity) for each in near])
        for query, near in found
    ]
