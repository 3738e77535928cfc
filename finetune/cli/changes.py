"""Commands that change a finished run: extend, forget, undo, history."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from finetune.errors import InputError
from finetune.options.command_line import as_json, display_for, existing, local_run, on_device, print_json
from finetune.options.help_text import HelpfulCommand
from finetune.terminal import printable

_out = click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="NEW",
    show_default="RUN itself is changed, and finetune undo takes that back",
    help="Folder to write the changed run to. RUN stays as it is.",
)


@click.command(cls=HelpfulCommand)
@click.argument("run", type=local_run)
@click.argument("pictures", type=existing, metavar="FOLDER_OR_TABLE", required=False)
@click.option(
    "--background",
    type=click.Path(path_type=Path),
    metavar="DIR",
    show_default="none",
    help="Folder of pictures of none of the classes, such as come in use, for --false-accept-rate of finetune predict. "
    "RUN keeps their features, beside those that it has. FOLDER_OR_TABLE can then be left out.",
)
@_out
@on_device
@as_json
def extend(
    run: Path, pictures: Path | None, background: Path | None, out: Path | None, device: str, as_json: bool
) -> None:
    """Add pictures, classes or background pictures to a finished run.

    RUN is a folder that `finetune fit` wrote. FOLDER_OR_TABLE has labelled pictures as `finetune fit` takes them, of
    the classes of RUN or of new ones; pictures that RUN has already are ignored. The head is solved again on all
    pictures, in seconds: RUN keeps the features of its own, which are not read. Nothing is forgotten, and the result is
    that of `finetune fit` on all pictures with the same splits. A trained backbone stays as it is.
    """
    import finetune

    if pictures is None and background is None:
        raise click.UsageError("give FOLDER_OR_TABLE with labelled pictures, or --background DIR, or both")
    display = display_for(as_json)
    classifier = finetune.extend(run, pictures, background=background, out=out, device=device, display=display)
    _print_changed(classifier, as_json)


@click.command(cls=HelpfulCommand)
@click.argument("run", type=local_run)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="NAME",
    show_default="no class",
    help="Class to forget, with its pictures. Repeatable.",
)
@click.option(
    "--pictures",
    multiple=True,
    metavar="PICTURE",
    show_default="no picture",
    help="Picture to forget, with its copies: a path as in pictures.csv, a file, a folder, or a sha256; background "
    "pictures too. Repeatable.",
)
@click.option(
    "--for-good",
    is_flag=True,
    help="Delete the earlier states of RUN too, so that no file of it holds anything of what is forgotten.",
)
@_out
@on_device
@as_json
def forget(
    run: Path,
    classes: tuple[str, ...],
    pictures: tuple[str, ...],
    for_good: bool,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Take pictures or classes out of a finished run.

    The head is solved again on the features of the other pictures, in seconds, and no picture is read. RUN keeps its
    earlier state for `finetune undo`; --for-good keeps none. What a trained backbone has learned stays in its weights.
    """
    import finetune

    classifier = finetune.forget(
        run,
        classes=classes,
        pictures=pictures,
        out=out,
        for_good=for_good,
        device=device,
        display=display_for(as_json),
    )
    _print_changed(classifier, as_json)


@click.command(cls=HelpfulCommand)
@click.argument("run", type=local_run)
@as_json
def undo(run: Path, as_json: bool) -> None:
    """Take back the last extend or forget of a run.

    All files of RUN become what they were before. Used again, it takes back the change before, as far as RUN keeps its
    earlier states: `finetune history` lists them.
    """
    import finetune

    classifier = finetune.undo(run, device="cpu", display=display_for(as_json))
    _print_changed(classifier, as_json, timed=False)


@click.command(cls=HelpfulCommand)
@click.argument("run", type=local_run)
@click.option(
    "--drop",
    is_flag=True,
    help="Delete the earlier states, with what they hold of forgotten pictures. Nothing can then be undone.",
)
@as_json
def history(run: Path, drop: bool, as_json: bool) -> None:
    """List what extend and forget changed in a run.

    RUN keeps its last states, at most 10 and about 1 GB, so that `finetune undo` can take back changes.
    """
    import finetune
    from finetune.kept.history import earlier_bytes, undoable

    freed = finetune.drop_history(run) if drop else 0
    changes, kept = finetune.history(run), undoable(run)
    if as_json:
        rows = [asdict(change) | {"undo": change.number in kept} for change in changes]
        print_json({"changes": rows, "bytes": earlier_bytes(run), "freed": freed})
        return
    for change in changes:
        measured = "" if change.accuracy is None else f", accuracy {change.accuracy:.1%} on {change.n:,} {change.split}"
        undo = "" if change.number in kept else "; cannot be undone"
        click.echo(f"{change.number}  {change.when}  {change.sentence}: {change.pictures:,} pictures{measured}{undo}")
    if not changes:
        click.echo(printable(f"{run} has no changes: it is as finetune fit left it"))
    if drop:
        click.echo(f"earlier states deleted: {freed / 1e6:,.1f} MB")
    elif kept:
        click.echo(f"earlier states: {len(kept)}, {earlier_bytes(run) / 1e6:,.1f} MB")


def _print_changed(classifier: Any, as_json: bool, *, timed: bool = True) -> None:
    """Print the figures of a run, and with `timed` how long its last change took."""
    import finetune
    from finetune.cli.finished_run import _print_result
    from finetune.report.report import REPORT_FILE

    folder = classifier.folder
    if folder is None:
        raise InputError("the classifier has no run folder")
    if as_json:
        print_json(classifier.metrics)
    else:
        seconds = finetune.history(folder)[-1].seconds if timed else None
        more = {"report": str(folder / REPORT_FILE), "seconds": seconds}
        _print_result(classifier.metrics | more, f"{folder}: finetune predict {folder} PICTURES…")
