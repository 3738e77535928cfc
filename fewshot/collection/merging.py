"""The parts of all shards, merged into one index."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fewshot.collection.parts import (
    PARTS_FILE,
    Part,
    PartsHeader,
    check_same_collection,
    part_files,
    read_header,
    read_part,
)
from fewshot.collection.shards import shard_folders
from fewshot.search.index import Index
from fewshot.search.index_files import is_free
from fewshot.search.picture_index import check_source, picture_metadata, refuse_memory
from fewshot.search.table.lance_index import LanceIndex
from fewshot.search.table.location import is_free_for_table, is_table
from finetune.data.folder import some
from finetune.errors import InputError
from finetune.progress import Display


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        pictures: Number of pictures in the index.
        unreadable: Number of pictures that the shards could not read.
        shards: Number of shards of the collection.
        missing: Shards that are not in the index, such as "3/8".
        unfinished: Shards of which a part only is in the index.
    """

    pictures: int
    unreadable: int
    shards: int
    missing: tuple[str, ...]
    unfinished: tuple[str, ...]


def merge_parts(
    out: str | Path,
    parts: Sequence[str | Path],
    *,
    kind: str = "auto",
    memory: int | None = None,
    allow_missing: bool = False,
    device: str = "auto",
    display: Display | None = None,
) -> tuple[Index | LanceIndex, Merged]:
    """Make an index of the parts of all shards of a collection.

    The index is the one that `embed_folder` makes of the collection in one process, which can also update it later.
    Keys are in their alphabetical order.

    Args:
        out: Folder of the index: new, or one that was made of the same collection, which is replaced. A name that ends
            in .lance, or an address, is a new Lance table; the vectors are then not in memory, but in a temporary file.
        parts: Folders that `embed_shard` wrote to, or the folders of single shards in them.
        kind: As for `Index` or `LanceIndex`.
        memory: As for `Index`; not for a table.
        allow_missing: Accept that shards are missing or unfinished.
        device: As for `Index`.
        display: Shows a bar.

    Returns:
        The index, which is saved, and what is in it.

    Raises:
        InputError: If a shard is missing or unfinished, if the parts are of different embedders or collections, if two
            hold the same key, or if `out` holds anything else.

    Example:
        >>> from fewshot import Embedder, embed_shard, merge_parts
        >>> for shard in ("1/2", "2/2"):
        ...     _ = embed_shard("signs", "signs.parts", Embedder.load("omniglot", device="cpu"), shard)
        >>> index, merged = merge_parts("signs.index", ["signs.parts"])
        >>> len(index) == merged.pictures
        True
    """
    display = display or Display()
    folders = _found(parts)
    headers = {folder: read_header(folder) for folder in folders}
    first = headers[folders[0]]
    missing, unfinished = _check_shards(headers, allow_missing)
    of: dict[str, Any] = {"kind": kind, "fingerprint": first.fingerprint, "about": first.about}
    index: Index | LanceIndex
    if is_table(out):
        refuse_memory(out, memory)
        if not is_free_for_table(out):
            raise InputError(f"{out} is there already; give merge a new table, or delete it")
        with tempfile.TemporaryFile() as file:
            keys, vectors, metadata = _read(folders, headers, display, file)
            index = LanceIndex.build(out, keys, vectors, metadata, **of)
    else:
        index = Index(first.width, device=device, memory=memory, **of)
        _check_out(Path(out), index)
        index.add(*_read(folders, headers, display))
        index.save(out, check=lambda there: check_source(out, there, first.about))
    unreadable = sum(header.unreadable for header in headers.values())
    return index, Merged(len(index), unreadable, first.shards, missing, unfinished)


def _found(parts: Sequence[str | Path]) -> list[Path]:
    """The folders of the shards in or at `parts`, each once."""
    found: dict[Path, Path] = {}
    for path in map(Path, parts):
        inside = [path] if (path / PARTS_FILE).exists() else [folder for _, folder in shard_folders(path)]
        if not inside:
            why = "holds no parts of fewshot embed --shard" if path.exists() else "does not exist"
            raise InputError(f"{path} {why}")
        found |= {folder.resolve(): folder for folder in inside if (folder / PARTS_FILE).exists() or folder == path}
    if not found:
        raise InputError(f"{some([str(path) for path in parts])} holds no parts; run fewshot embed --shard first")
    return list(found.values())


def _check_shards(headers: Mapping[Path, PartsHeader], allow_missing: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The shards that are missing and those that are unfinished. InputError where they must not be, or do not fit."""
    first = next(iter(headers.values()))
    of: dict[int, Path] = {}
    for folder, header in headers.items():
        if header.shards != first.shards:
            raise InputError(
                f"{folder} is of {header.shards} shards, others are of {first.shards}; give those of one run"
            )
        check_same_collection(folder, header, first)
        if header.shard in of:
            raise InputError(
                f"shard {header.shard}/{header.shards} is in both {of[header.shard]} and {folder}; give one"
            )
        of[header.shard] = folder
    missing = tuple(f"{number}/{first.shards}" for number in range(1, first.shards + 1) if number not in of)
    unfinished = tuple(f"{each.shard}/{each.shards}" for each in headers.values() if not each.complete)
    problems = [
        f"{what}: {some(shards)}" for what, shards in (("missing", missing), ("unfinished", unfinished)) if shards
    ]
    if problems and not allow_missing:
        raise InputError(
            f"of {first.shards} shards, {' and '.join(problems)}; run fewshot embed --shard for each of them, or give "
            "--allow-missing"
        )
    return missing, unfinished


def _check_out(out: Path, index: Index) -> None:
    if not is_free(out):
        there = Index.load(out, fingerprint=index.fingerprint, memory_mapped=True)
        check_source(out, there.about, index.about)


def _read(
    folders: Sequence[Path], headers: Mapping[Path, PartsHeader], display: Display, file: IO[bytes] | None = None
) -> tuple[list[str], NDArray[np.float32], list[dict[str, str]]]:
    """Keys, in their order, with their vectors and metadata. file: Holds the vectors; None for memory."""
    width = headers[folders[0]].width
    files = [(folder, path) for folder in folders for path in part_files(folder)]
    shard_of, keys, digests = list[str](), list[str](), [np.empty((0, 32), np.uint8)]
    for folder, part in _parts(files, width):
        keys += part.keys
        shard_of += [f"{headers[folder].shard}/{headers[folder].shards}"] * len(part)
        digests.append(part.digests)
    contents = np.concatenate(digests)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    others = (_is_other(before, at, keys, contents, shard_of) for before, at in pairwise(order))
    kept = [at for at, other in zip(order, chain([True], others), strict=False) if other]
    row_of = np.full(len(keys), -1)
    row_of[kept] = np.arange(len(kept))
    vectors, start = _array(len(kept), width, file), 0
    with display.bar("merging", len(kept)) as advance:
        for _, part in _parts(files, width):
            rows = row_of[start : start + len(part)]
            vectors[rows[rows >= 0]] = part.vectors[rows >= 0]
            start += len(part)
            advance(int((rows >= 0).sum()), "")
    for folder, header in headers.items():
        if read_header(folder) != header:
            raise InputError(f"{folder} was written to by fewshot embed --shard meanwhile; wait for its end")
    named = [keys[at] for at in kept]
    return named, vectors, [picture_metadata(keys[at], contents[at].tobytes().hex()) for at in kept]


def _array(n: int, width: int, file: IO[bytes] | None) -> NDArray[np.float32]:
    if file is None or not n:  # no empty file can be mapped
        return np.empty((n, width), np.float32)
    return np.memmap(file, dtype=np.float32, mode="w+", shape=(n, width))


def _parts(files: Sequence[tuple[Path, Path]], width: int) -> Iterator[tuple[Path, Part]]:
    return ((folder, read_part(path, width)) for folder, path in files)


def _is_other(before: int, at: int, keys: Sequence[str], contents: NDArray[np.uint8], shard_of: Sequence[str]) -> bool:
    """Whether two neighbours in the order of keys have different ones. InputError for one key with two contents."""
    if keys[before] != keys[at]:
        return True
    if shard_of[before] != shard_of[at]:
        raise InputError(
            f"{keys[at]!r} is in the shards {shard_of[before]} and {shard_of[at]}, because the collection changed "
            "between their runs; run both again"
        )
    if not np.array_equal(contents[before], contents[at]):
        raise InputError(
            f"{keys[at]!r} has two contents in the shard {shard_of[at]}, which is unfinished; run it again"
        )
    return False
