"""`finetune explain`: heat maps of what in a picture speaks for a class."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import click

from finetune.errors import InputError
from finetune.options.command_line import as_json, existing, on_device


@click.command()
@click.argument("run", type=existing)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PICTURES_OR_FOLDERS...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write one PNG per picture to.")
@click.option(
    "--label",
    metavar="CLASS",
    show_default="the predicted class of each picture",
    help="Class that the heat map explains.",
)
@on_device
@as_json
def explain(run: Path, pictures: tuple[Path, ...], out: Path, label: str | None, device: str, as_json: bool) -> None:
    """Draw heat maps of what in each picture decided the prediction.

    RUN is a folder that `finetune fit` wrote, with a convolutional backbone; the method is Grad-CAM. Unreadable files
    are named on stderr, and the exit code is then 2.
    """
    import finetune
    from finetune.classifier.explain import BATCH, heat_maps
    from finetune.data.folder import list_unlabelled
    from finetune.files import replacing

    classifier = finetune.load(run, device=device)
    paths = list_unlabelled(pictures)
    _check_out(out, pictures)
    # Some at a time, so that a folder of any size goes through.
    groups = (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
    answers = chain.from_iterable(
        heat_maps(classifier, group, None if label is None else [label] * len(group)) for group in groups
    )
    failed, taken = False, set[str]()
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, finetune.UnreadablePicture):
            failed = True
            click.echo(f"finetune: {answer}", err=True)
            continue
        target = out / _free_name(Path(path).stem, taken)
        with replacing(target) as temporary:
            answer.overlay().save(temporary, format="png")
        if as_json:
            row = {
                "path": str(path),
                "label": answer.label,
                "probability": round(answer.probability, 6),
                "heat_map": str(target),
            }
            click.echo(json.dumps(row))
        else:
            click.echo(f"{target}: {answer.label} {answer.probability:.1%}")
    if failed:
        sys.exit(2)


def _check_out(out: Path, pictures: Sequence[Path]) -> None:
    """InputError where `out` is no folder to write to, or lies where the pictures do: it might replace one of them."""
    place = Path(os.path.realpath(out))
    nearest = next(above for above in (place, *place.parents) if above.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{out} (--out) cannot be written to; choose another folder")
    for given in pictures:
        folder = Path(os.path.realpath(given if given.is_dir() else given.parent))
        if place == folder or (given.is_dir() and place.is_relative_to(folder)):
            raise InputError(f"{out} (--out) holds the pictures, where nothing is changed; choose another folder")


def _free_name(stem: str, taken: set[str]) -> str:
    """A file name that no other picture of this call has, whatever folder it came from."""
    name, number = f"{stem}.png", 2
    while name.casefold() in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name.casefold())
    return name
