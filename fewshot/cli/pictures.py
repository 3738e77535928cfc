"""The commands for your own pictures: embed, search, verify, info."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fewshot.cli.shared import (
    IndexPlace,
    at_rate,
    by_model,
    by_workers,
    folder_path,
    given_embedder,
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
    from fewshot.search.index import Index
    from fewshot.search.picture_index import embed_folder

    ray = _ray_engine(engine, address, device)
    if memory is not None and (shard is not None or ray is not None):
        raise InputError(
            "--memory goes with fewshot merge, which makes an index of what --shard or --engine ray embedded"
        )
    if shard is not None:
        _embed_shard(source, out, kind, shard, ray, model, weights, tolerance, batch_size, workers, device, as_json)
        return
    if ray is not None:
        _embed_with_ray(source, out, kind, ray, model, weights, tolerance, batch_size, workers, as_json)
        return
    display = display_for(as_json)
    embedder = open_embedder(model, weights, tolerance, device, as_json)
    index, kept = embed_folder(
        source, out, embedder, kind=kind, memory=memory, batch_size=batch_size, workers=workers, display=display
    )
    print_unreadable(kept.unreadable)
    found = asdict(kept) | {"pictures": len(index), "structure": index.structure, "recall": index.recall}
    if as_json:
        print_json(found)
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
    click.echo(f"fewshot search {printable(str(out))} PICTURE…")


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


def _embed_with_ray(
    source: Path,
    out: str | Path,
    kind: str,
    ray: RayEngine,
    model: str,
    weights: Path | None,
    tolerance: float,
    batch_size: int | None,
    workers: int | None,
    as_json: bool,
) -> None:
    from fewshot.collection.ray_index import embed_with_ray

    embedder = open_embedder(model, weights, tolerance, "cpu", as_json)
    index, found = embed_with_ray(
        source,
        out,
        embedder,
        engine=ray,
        kind=kind,
        batch_size=batch_size,
        workers=workers,
        display=display_for(as_json),
        tell=lambda key, reason: print_unreadable({key: reason}),
    )
    if as_json:
        print_json(asdict(found) | {"structure": index.structure, "recall": index.recall})
        return
    click.echo(
        f"{found.pictures:,} pictures in {printable(str(out))}: {found.embedded:,} embedded, {found.unchanged:,} "
        f"unchanged, {found.removed:,} removed, {found.unreadable:,} unreadable; parts in {printable(found.folder)}"
    )
    click.echo(f"fewshot search {printable(str(out))} PICTURE…")


def _embed_shard(
    source: Path,
    out: str | Path,
    kind: str,
    shard: str,
    ray: RayEngine | None,
    model: str,
    weights: Path | None,
    tolerance: float,
    batch_size: int | None,
    workers: int | None,
    device: str,
    as_json: bool,
) -> None:
    from fewshot.collection.shards import embed_shard
    from finetune.data.collection.shard import Shard

    chosen = Shard.parsed(shard)  # before the seconds that an encoder takes
    if isinstance(out, str):
        raise InputError("--out of shards must be a folder, not an address")
    if kind != "auto":
        raise InputError("--kind goes with fewshot merge, which makes the index of the shards")
    embedder = open_embedder(model, weights, tolerance, device if ray is None else "cpu", as_json)
    found = embed_shard(
        source,
        out,
        embedder,
        chosen,
        batch_size=batch_size,
        workers=workers,
        ray=ray,
        display=display_for(as_json),
        tell=lambda key, reason: print_unreadable({key: reason}),
    )
    if as_json:
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
    click.echo(f"fewshot search {printable(str(out))} PICTURE…")


@click.command()
@click.argument("index", type=IndexPlace(exists=True))
@click.argument("queries", metavar="QUERY...", nargs=-1, required=True, type=existing)
@click.option(
    "-k",
    "k",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Number of neighbours shown for each picture.",
)
@click.option(
    "--at-least",
    type=click.FloatRange(-1, 1),
    show_default="no limit",
    help="Show only neighbours of this similarity or more, from -1 to 1.",
)
@click.option(
    "--sheet",
    type=folder_path,
    show_default="no sheet",
    help="PNG file to draw the pictures and their neighbours to.",
)
@click.option(
    "--where",
    metavar="CONDITION",
    show_default="no condition",
    help="Show only neighbours that meet this condition of SQL on their key and metadata, such as \"label = 'oak'\". "
    "For Lance tables.",
)
@click.option(
    "--at-version",
    type=click.IntRange(1),
    show_default="the newest",
    help="Search an older version of a Lance table.",
)
@click.option("--memory-mapped", is_flag=True, help="Read the vectors from disk, for an index larger than memory.")
@by_model(None, "the encoder of the index")
@on_device
@as_json
def search(
    index: str | Path,
    queries: Sequence[Path],
    k: int,
    at_least: float | None,
    sheet: Path | None,
    where: str | None,
    at_version: int | None,
    memory_mapped: bool,
    model: str | None,
    weights: Path | None,
    tolerance: float,
    device: str,
    as_json: bool,
) -> None:
    """Find the most similar pictures of an index.

    INDEX is a folder or a Lance table that `fewshot embed` wrote. Each QUERY is a picture or a folder of pictures.
    """
    from fewshot.search.contact_sheet import write_sheet
    from fewshot.search.picture_index import open_index, search_pictures, sheet_rows

    given = given_embedder(model, weights, tolerance, device, as_json)
    opened, embedder = open_index(index, given, version=at_version, memory_mapped=memory_mapped or None, device=device)
    found, unreadable = search_pictures(opened, embedder, queries, k=k, at_least=at_least, where=where)
    print_unreadable(unreadable)
    if sheet is not None:
        write_sheet(sheet, sheet_rows(opened, found))
    if as_json:
        print_json([{"query": str(query), "neighbours": [each._asdict() for each in near]} for query, near in found])
        return
    for query, near in found:
        click.echo(printable(str(query)))
        for neighbour in near:
            click.echo(f"  {neighbour.similarity:6.3f}  {printable(neighbour.key)}")
        if not near:
            click.echo("  no picture is similar enough")


@click.command()
@click.argument("one", type=existing)
@click.argument("other", type=existing)
@click.option(
    "--calibrate",
    type=existing,
    show_default="the threshold that the encoder carries",
    help="Folder of labelled pictures, one sub-folder per class, to choose the threshold on.",
)
@at_rate("0.01")
@by_model("omniglot")
@on_device
@as_json
def verify(
    one: Path,
    other: Path,
    calibrate: Path | None,
    false_accept_rate: float | None,
    model: str,
    weights: Path | None,
    tolerance: float,
    device: str,
    as_json: bool,
) -> None:
    """Decide whether two pictures show the same thing.

    The threshold accepts a share of --false-accept-rate of the different pairs by mistake. The encoder omniglot carries
    its own threshold; other encoders need --calibrate.
    """
    from fewshot.recognition.verifier import Verifier

    verifier = Verifier(open_embedder(model, weights, tolerance, device, as_json))
    if calibrate is not None:
        verifier.calibrate_on(calibrate, display=display_for(as_json))
    if false_accept_rate is not None:
        verifier.accept(false_accept_rate)
    found = verifier.verify(one, other)
    if as_json:
        print_json(asdict(found))
        return
    click.echo(
        f"{'same' if found.same else 'different'}: similarity {found.similarity:.3f}, threshold {found.threshold:.3f}"
    )
    click.echo(
        f"at this threshold, {found.false_accept_rate:.2%} of different pairs were accepted and "
        f"{found.false_reject_rate:.2%} of same pairs were rejected"
    )


@click.command()
@click.argument("path", metavar="INDEX|GALLERY|MODEL")
@as_json
def info(path: str, as_json: bool) -> None:
    """Describe an index, a gallery or an encoder."""
    from fewshot.cli.info import info as described

    found = described(path)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        shown = _listed(value) if isinstance(value, dict) else value
        click.echo(printable(f"{name.replace('_', ' ')}: {shown}"))


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
