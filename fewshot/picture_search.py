"""An index of pictures opened with its embedder, and searched by pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewshot.embedding.embedder import Embedder
from fewshot.index import Index, Neighbour
from fewshot.sheet import Row, Tile
from finetune.data.folder import list_unlabelled
from finetune.errors import InputError


def open_index(
    folder: Path, embedder: Embedder | None = None, *, memory_mapped: bool = False, device: str = "auto"
) -> tuple[Index, Embedder]:
    """The index in `folder`, and the embedder that it was made with, or `embedder`. InputError when that is another."""
    fingerprint = None if embedder is None else embedder.fingerprint
    index = Index.load(folder, fingerprint=fingerprint, memory_mapped=memory_mapped, device=device)
    if embedder is None:
        embedder = Embedder.of_origin(index.about.get("embedder"), device=device)
        if embedder.fingerprint != index.fingerprint:
            raise InputError(
                f"{folder} was made with the embedder {index.fingerprint}; {embedder.source} is {embedder.fingerprint} "
                "now: embed again into another --out"
            )
    return index, embedder


def search_pictures(
    index: Index, embedder: Embedder, queries: Sequence[Path], *, k: int = 10, at_least: float | None = None
) -> tuple[list[tuple[Path, list[Neighbour]]], dict[str, str]]:
    """The neighbours of every picture at `queries`, files and folders, the most similar first; and the unreadable."""
    paths = list_unlabelled(queries)
    found = embedder.embed_all(paths)
    good = [row for row in range(len(paths)) if row not in found.unreadable]
    near = index.search(found.vectors[good], k, at_least=at_least)
    answers = [(paths[row], neighbours) for row, neighbours in zip(good, near, strict=True)]
    return answers, {str(paths[row]): reason for row, reason in found.unreadable.items()}


def sheet_rows(index: Index, found: Sequence[tuple[Path, list[Neighbour]]]) -> list[Row]:
    """A contact sheet's rows of what `search_pictures` found. InputError where the index does not know its folder."""
    folder = index.about.get("folder")
    if folder is None:
        raise InputError("this index does not say where its pictures are; a sheet of them cannot be drawn")
    return [
        Row(Tile(query, query.name), [Tile(Path(folder) / each.key, each.key, each.similarity) for each in near])
        for query, near in found
    ]
