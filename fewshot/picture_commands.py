"""The commands on one's own pictures: embed, search, enrol, forget, recognize, verify, info; thin, no logic."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from finetune.commands import Choice, Command, as_json, display_for, existing, on_device, print_json
from finetune.errors import InputError

if TYPE_CHECKING:
    from fewshot.embedder import Embedder

folder_path = click.Path(path_type=Path)
in_batches = click.option(
    "--batch-size",
    type=click.IntRange(1),
    show_default="chosen for the device",
    help="Number of pictures computed at once.",
)
by_workers = click.option(
    "--workers",
    type=click.IntRange(0),
    show_default="one per CPU core",
    help="Number of processes or threads that decode pictures.",
)


def at_rate(default: str) -> Callable[[Command], Command]:
    """--false-accept-rate. default: what holds where it is not given, in words."""
    return click.option(
        "--false-accept-rate",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        show_default=default,
        help="Share of pictures of other things that may be accepted by mistake.",
    )


def by_model(default: str | None, otherwise: str = "") -> Callable[[Command], Command]:
    """--model, --weights and --tolerance. otherwise: what None as default means, in words."""

    def attached(command: Command) -> Command:
        options = (
            click.option(
                "--model",
                default=default,
                show_default=otherwise or True,
                help="Encoder: omniglot (ships with the package, for signs and characters), a run folder of "
                "`fewshot train` or `finetune fit`, or the name of a timm model (for photographs).",
            ),
            click.option(
                "--weights",
                type=existing,
                show_default="the published weights",
                help="File with the weights of a timm model: safetensors, or a torch file of plain tensors.",
            ),
            click.option(
                "--tolerance",
                type=click.FloatRange(0, 1, min_open=True),
                default=0.999,
                show_default=True,
                help="Smallest cosine between the vectors and those of plain float32. Lower values allow faster "
                "arithmetic; 1 computes in float32.",
            ),
        )
        for option in reversed(options):
            command = option(command)
        return command

    return attached


@click.command()
@click.argument("folder", type=existing)
@click.option("--out", required=True, type=folder_path, help="Index folder to create or update.")
@click.option(
    "--kind",
    type=Choice(["auto", "exact", "ivf", "hnsw"]),
    default="auto",
    show_default=True,
    help="Structure of the index. exact compares all vectors, ivf and hnsw are approximate. auto is exact until the "
    "collection is so large that an approximate structure gains much.",
)
@by_model("omniglot")
@in_batches
@by_workers
@on_device
@as_json
def embed(
    folder: Path,
    out: Path,
    kind: str,
    model: str,
    weights: Path | None,
    tolerance: float,
    batch_size: int | None,
    workers: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Create or update an index of a folder of pictures.

    Pictures of FOLDER and its sub-folders that are new or changed are embedded; those that are gone are removed from
    the index. Then: fewshot search INDEX PICTURE.
    """
    from fewshot.collection import keep_index

    display = display_for(as_json)
    embedder = _open(model, weights, tolerance, device, as_json)
    index, kept = keep_index(folder, out, embedder, kind=kind, batch_size=batch_size, workers=workers, display=display)
    _tell_unreadable(kept.unreadable)
    found = asdict(kept) | {"pictures": len(index), "structure": index.structure, "recall": index.recall}
    if as_json:
        print_json(found)
        return
    click.echo(
        f"{len(index):,} pictures in {out}: {kept.embedded:,} embedded, {kept.moved:,} moved, {kept.unchanged:,} "
        f"unchanged, {kept.removed:,} removed, {len(kept.unreadable):,} unreadable"
    )
    if index.recall < 1:
        click.echo(
            f"approximate ({index.structure}): {index.recall:.1%} of the 10 nearest are found, as measured on these"
        )
    click.echo(f"fewshot search {out} PICTURE…")


@click.command()
@click.argument("index", type=existing)
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
@click.option("--memory-mapped", is_flag=True, help="Read the vectors from disk, for an index larger than memory.")
@by_model(None, "the encoder of the index")
@on_device
@as_json
def search(
    index: Path,
    queries: Sequence[Path],
    k: int,
    at_least: float | None,
    sheet: Path | None,
    memory_mapped: bool,
    model: str | None,
    weights: Path | None,
    tolerance: float,
    device: str,
    as_json: bool,
) -> None:
    """Find the pictures of an index that are most alike.

    INDEX is a folder that `fewshot embed` wrote. Each QUERY is a picture or a folder of pictures.
    """
    from fewshot.picture_search import open_index, search_pictures, sheet_rows
    from fewshot.sheet import write_sheet

    given = _given(model, weights, tolerance, device, as_json)
    opened, embedder = open_index(index, given, memory_mapped=memory_mapped, device=device)
    found, unreadable = search_pictures(opened, embedder, queries, k=k, at_least=at_least)
    _tell_unreadable(unreadable)
    if sheet is not None:
        write_sheet(sheet, sheet_rows(opened, found))
    if as_json:
        print_json([{"query": str(query), "neighbours": [each._asdict() for each in near]} for query, near in found])
        return
    for query, near in found:
        click.echo(f"{query}")
        for neighbour in near:
            click.echo(f"  {neighbour.similarity:6.3f}  {neighbour.key}")
        if not near:
            click.echo("  nothing so similar")


@click.command()
@click.argument("gallery", type=folder_path)
@click.argument("label")
@click.argument("pictures", nargs=-1, required=True, type=existing)
@click.option(
    "--background", type=existing, show_default="none", help="Folder of pictures that show none of the classes."
)
@at_rate("that of the gallery; 0.05 for a new one")
@by_model(None, "the encoder of the gallery; omniglot for a new one")
@on_device
@as_json
def enrol(
    gallery: Path,
    label: str,
    pictures: Sequence[Path],
    background: Path | None,
    false_accept_rate: float | None,
    model: str | None,
    weights: Path | None,
    tolerance: float,
    device: str,
    as_json: bool,
) -> None:
    """Add a class to a gallery from one or a few pictures.

    GALLERY is a folder, created where it does not exist. LABEL is the name of the class.
    """
    from fewshot.gallery_folder import change_gallery
    from finetune.folder import list_unlabelled

    given = _given(model, weights, tolerance, device, as_json)
    with change_gallery(gallery, given, false_accept_rate=false_accept_rate, device=device) as recognizer:
        recognizer.enrol(label, list_unlabelled(pictures))
        if background is not None:
            recognizer.add_background(background)
    _tell_gallery(gallery, recognizer, as_json)


@click.command()
@click.argument("gallery", type=existing)
@click.argument("labels", metavar="LABEL...", nargs=-1, required=True)
@on_device
@as_json
def forget(gallery: Path, labels: Sequence[str], device: str, as_json: bool) -> None:
    """Remove classes from a gallery.

    GALLERY is a folder that `fewshot enrol` wrote.
    """
    from fewshot.gallery_folder import change_gallery

    with change_gallery(gallery, None, device=device) as recognizer:
        for label in labels:
            recognizer.forget(label)
    _tell_gallery(gallery, recognizer, as_json)


@click.command()
@click.argument("gallery", type=existing)
@click.argument("pictures", nargs=-1, required=True, type=existing)
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True, help="Number of classes shown for each picture."
)
@on_device
@as_json
def recognize(gallery: Path, pictures: Sequence[Path], top: int, device: str, as_json: bool) -> None:
    """Name the class that each picture shows, or answer unknown.

    GALLERY is a folder that `fewshot enrol` wrote.
    """
    from fewshot.recognizer import Recognizer
    from finetune.errors import UnreadablePicture
    from finetune.folder import list_unlabelled

    recognizer, paths = Recognizer.load(gallery, device=device), list_unlabelled(pictures)
    answers = recognizer.recognize_all(paths, display=display_for(True) if as_json else None)
    unreadable = {str(p): a.reason for p, a in zip(paths, answers, strict=True) if isinstance(a, UnreadablePicture)}
    _tell_unreadable(unreadable)
    known = [(str(p), a) for p, a in zip(paths, answers, strict=True) if not isinstance(a, UnreadablePicture)]
    if as_json:
        print_json([{"picture": path} | asdict(answer) for path, answer in known])
    else:
        for path, answer in known:
            near = ", ".join(f"{label} {similarity:.2f}" for label, similarity in [*answer.similarities.items()][:top])
            click.echo(f"{path}: {answer.label or 'unknown'}  ({near}; known from {recognizer.threshold:.2f} on)")
    if unreadable and not known:
        sys.exit(InputError.exit_code)


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

    The threshold is set so that a share of --false-accept-rate of different pairs is accepted by mistake. The encoder
    omniglot carries its own threshold; for another one give --calibrate.
    """
    from fewshot.verifier import Verifier

    verifier = Verifier(_open(model, weights, tolerance, device, as_json))
    if calibrate is not None:
        verifier.calibrate_on(calibrate, display=display_for(as_json))
    if false_accept_rate is not None:
        verifier.accept(false_accept_rate)
    found = verifier.verify(one, other)
    if as_json:
        print_json(asdict(found))
        return
    click.echo(
        f"{'same' if found.same else 'different'}: similarity {found.similarity:.3f}, the same from "
        f"{found.threshold:.3f} on"
    )
    click.echo(
        f"there, {found.false_accept_rate:.2%} of different pairs were accepted and {found.false_reject_rate:.2%} of "
        "same ones rejected"
    )


@click.command()
@click.argument("path", metavar="INDEX|GALLERY|MODEL")
@as_json
def info(path: str, as_json: bool) -> None:
    """Describe an index, a gallery or an encoder."""
    from fewshot.about import about

    found = about(path)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' ')}: {value if not isinstance(value, dict) else _listed(value)}")


def _open(model: str, weights: Path | None, tolerance: float, device: str, quiet: bool) -> Embedder:
    from fewshot.embedder import Embedder

    return Embedder.load(model, weights=weights, tolerance=tolerance, device=device, display=display_for(quiet))


def _given(model: str | None, weights: Path | None, tolerance: float, device: str, quiet: bool) -> Embedder | None:
    if model is None and weights is not None:
        raise InputError("--weights go with a --model, which names the network that they are of")
    return None if model is None else _open(model, weights, tolerance, device, quiet)


def _tell_unreadable(unreadable: Any) -> None:
    for path, reason in unreadable.items():
        click.echo(f"{path}: {reason}", err=True)


def _tell_gallery(gallery: Path, recognizer: Any, as_json: bool) -> None:
    threshold = recognizer.threshold if recognizer.labels else None
    if as_json:
        print_json({"classes": recognizer.gallery.counts, "threshold": threshold})
        return
    examples = sum(recognizer.gallery.counts.values())
    known = "" if threshold is None else f", known from a similarity of {threshold:.2f} on"
    click.echo(f"{gallery}: {len(recognizer.labels)} classes, {examples} examples{known}")


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
