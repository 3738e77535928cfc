"""The commands for your own pictures: search, verify, info."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fewshot.cli.shared import (
    IndexPlace,
    at_rate,
    by_model,
    check_search,
    folder_path,
    given_embedder,
    open_embedder,
    print_unreadable,
)
from finetune.options.command_line import as_json, display_for, existing, on_device, print_json
from finetune.terminal import printable


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

    check_search(index)
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
