"""The commands that embed a collection of pictures: embed, merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fewshot.cli.shared import (
    IndexPlace,
    by_model,
    by_workers,
    check_search,
    in_batches,
    of_kind,
    on_engine,
    open_embedder,
    print_memory,
    print_unreadable,
    within_memory,
)
from finetune.errors import InputError
from finetune.options.command_line import as_json, display_for, existing, on_device, print_json
from finetune.terminal import printable

if TYPE_CHECKING:
    from fewshot.collection.ray_engine import RayEngine
    from fewshot.embedding.embedder import Embedder


@click.command()
@click.argument("source", metavar="SOURCE", type=existing)
@click.option(
    "--out",
    required=True,
    type=IndexPlace(exists=False),
    help="Index folder to create or update; with --shard, the folder for the parts of all shards. A name that ends in "
    ".lance, or an address such as s3://bucket/name.lance, is a Lance table: for more than memory holds, and for "
    "search --where.",
)
@of_kind
@within_memory
@click.option(
    "--shard",
    metavar="I/N",
    show_default="no shards, an index at once",
    help="Embed shard I of N alone, counted from 1: --shard 1/8 to --shard 8/8. Each may run at any time, on any "
    "machine that sees SOURCE and --out, and again after it was killed. fewshot merge then makes the index.",
)
@on_engine
@by_model("omniglot")
@in_batches
@by_workers
@on_device
@as_json
def embed(
    source: Path,
    out: str | Path,
    kind: str,
    memory: int | None,
    shard: str | None,
    engine: str,
    address: str | None,
    model: str,
    weights: Path | None,
    tolerance: float,
    batch_size: int | None,
    workers: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Create or update an index of a collection of pictures.

    SOURCE is a folder, for all pictures below it; a CSV file with a column `path`; or a tar archive, or a folder of
    them, such as a WebDataset. New and changed pictures are embedded; deleted ones are removed from the index. Then
    use: fewshot search INDEX PICTURE.
    """
    work = Embedding(model, weights, tolerance, batch_size, workers, device, as_json)
    ray = _ray_engine(engine, address, device)
    if memory is not None and (shard is not None or ray is not None):
        raise InputError(
            "--memory goes with fewshot merge, which makes an index of what --shard or --engine ray embedded"
        )
    if shard is None:
        check_search(out)  # the shards need it when they are merged
    if shard is not None:
        _embed_shard(source, out, kind, shard, ray, work)
    elif ray is not None:
        _embed_with_ray(source, out, kind, ray, work)
    else:
        _embed_here(source, out, kind, memory, work)


@dataclass(frozen=True)
class Embedding:
    """How the options say that pictures are embedded."""

    model: str
    weights: Path | None
    tolerance: float
    batch_size: int | None
    workers: int | None
    device: str
    as_json: bool

    def embedder(self, device: str | None = None) -> Embedder:
        """The embedder, on another device than the options name unless None."""
        return open_embedder(self.model, self.weights, self.tolerance, device or self.device, self.as_json)

    def as_asked(self) -> dict[str, Any]:
        """The arguments of every function that embeds a collection."""
        return {"batch_size": self.batch_size, "workers": self.workers, "display": display_for(self.as_json)}


def _embed_here(source: Path, out: str | Path, kind: str, memory: int | None, work: Embedding) -> None:
    from fewshot.search.index import Index
    from fewshot.search.picture_index import embed_folder

    index, kept = embed_folder(source, out, work.embedder(), kind=kind, memory=memory, **work.as_asked())
    print_unreadable(kept.unreadable)
    if work.as_json:
        print_json(asdict(kept) | {"pictures": len(index), "structure": index.structure, "recall": index.recall})
        return
    click.echo(
        f"{len(index):,} pictures in {printable(str(out))}: {kept.embedded:,} embedded, {kept.moved:,} moved, "
        f"{kept.unchanged:,} unchanged, {kept.removed:,} removed, {len(kept.unreadable):,} unreadable"
    )
    if index.recall < 1:
        click.echo(
            f"approximate ({index.structure}): a search finds {index.recall:.1%} of the 10 nearest, measured on these "
            "pictures"
        )
    if isinstance(index, Index):
        print_memory(index)
    _print_search(out)


def _ray_engine(engine: str, address: str | None, device: str) -> RayEngine | None:
    """The Ray cluster of --engine ray; None for this process."""
    if engine != "ray":
        if address is not None:
            raise InputError("--address goes with --engine ray")
        return None
    from fewshot.collection.ray_engine import RayEngine

    ray = RayEngine(address, device)
    ray.check()  # before the seconds that an encoder takes
    return ray


def _embed_with_ray(source: Path, out: str | Path, kind: str, ray: RayEngine, work: Embedding) -> None:
    from fewshot.collection.ray_index import embed_with_ray

    index, found = embed_with_ray(
        source, out, work.embedder("cpu"), engine=ray, kind=kind, tell=_print_one, **work.as_asked()
    )
    if work.as_json:
        print_json(asdict(found) | {"structure": index.structure, "recall": index.recall})
        return
    click.echo(
        f"{found.pictures:,} pictures in {printable(str(out))}: {found.embedded:,} embedded, {found.unchanged:,} "
        f"unchanged, {found.removed:,} removed, {found.unreadable:,} unreadable; parts in {printable(found.folder)}"
    )
    _print_search(out)


def _embed_shard(source: Path, out: str | Path, kind: str, shard: str, ray: RayEngine | None, work: Embedding) -> None:
    from fewshot.collection.shards import embed_shard
    from finetune.data.collection.shard import Shard

    chosen = Shard.parsed(shard)  # before the seconds that an encoder takes
    if isinstance(out, str):
        raise InputError("--out of shards must be a folder, not an address")
    if kind != "auto":
        raise InputError("--kind goes with fewshot merge, which makes the index of the shards")
    embedder = work.embedder(None if ray is None else "cpu")
    found = embed_shard(source, out, embedder, chosen, ray=ray, tell=_print_one, **work.as_asked())
    if work.as_json:
        print_json(asdict(found))
        return
    click.echo(
        f"shard {found.shard}: {found.pictures:,} pictures in {printable(found.folder)}: {found.embedded:,} embedded, "
        f"{found.unchanged:,} unchanged, {found.removed:,} removed, {found.unreadable:,} unreadable"
    )
    click.echo(f"when all {chosen.count} shards are done: fewshot merge INDEX {printable(str(out))}")


@click.command()
@click.argument("out", metavar="INDEX", type=IndexPlace(exists=False))
@click.argument("parts", metavar="PARTS...", nargs=-1, required=True, type=existing)
@of_kind
@within_memory
@click.option("--allow-missing", is_flag=True, help="Make the index although shards are missing or unfinished.")
@on_device
@as_json
def merge(
    out: str | Path,
    parts: Sequence[Path],
    kind: str,
    memory: int | None,
    allow_missing: bool,
    device: str,
    as_json: bool,
) -> None:
    """Make an index of the shards that `fewshot embed --shard` wrote.

    INDEX is the index folder to create, or one of the same collection, which is replaced; or a new Lance table, whose
    name ends in .lance. PARTS are the --out of the shards, one or several. The index is the one that `fewshot embed`
    makes in one process, which can also update it.
    """
    from fewshot.collection.merging import merge_parts
    from fewshot.search.index import Index
    from finetune.data.folder import some

    check_search(out)
    index, merged = merge_parts(
        out, parts, kind=kind, memory=memory, allow_missing=allow_missing, device=device, display=display_for(as_json)
    )
    if as_json:
        print_json(asdict(merged) | {"structure": index.structure, "recall": index.recall})
        return
    click.echo(
        f"{merged.pictures:,} pictures in {printable(str(out))}, of {merged.shards:,} shards; {merged.unreadable:,} "
        "unreadable"
    )
    for what, shards in (("missing", merged.missing), ("unfinished", merged.unfinished)):
        if shards:
            click.echo(f"{what} shards: {some(shards)}", err=True)
    if isinstance(index, Index):
        print_memory(index)
    _print_search(out)


def _print_one(key: str, reason: str) -> None:
    print_unreadable({key: reason})


def _print_search(out: str | Path) -> None:
    click.echo(f"fewshot search {printable(str(out))} PICTURE…")
