"""Commands on a finished run: explain, export, report, evaluate."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from finetune.errors import InputError
from finetune.extras import check_extra
from finetune.options.command_line import (
    ChoiceOption,
    any_run,
    as_json,
    display_for,
    existing,
    local_run,
    on_device,
    print_json,
)
from finetune.options.help_text import HelpfulCommand
from finetune.strategies import BASELINES, NOT_MEASURED
from finetune.terminal import in_markup, printable


@click.command()
@click.argument("run", type=any_run)
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
def explain(
    run: Path | str, pictures: tuple[Path, ...], out: Path, label: str | None, device: str, as_json: bool
) -> None:
    """Draw heat maps of the regions that decided each prediction.

    RUN is a folder that `finetune fit` wrote, or an address such as hf://user/name, with a convolutional backbone; the
    method is Grad-CAM. Unreadable files are named on stderr, and the exit code is then 2.
    """
    import finetune
    from finetune.classifier.explain import BATCH, HEAT_MAPS, heat_maps
    from finetune.data.folder import list_unlabelled
    from finetune.files.writing import replacing

    check_extra("explain", HEAT_MAPS)
    classifier = finetune.load(run, device=device)
    paths = list_unlabelled(pictures)
    _check_out(out, pictures)
    # In batches, so that memory does not grow with the folder.
    groups = (paths[start : start + BATCH] for start in range(0, len(paths), BATCH))
    answers = chain.from_iterable(
        heat_maps(classifier, group, None if label is None else [label] * len(group)) for group in groups
    )
    failed, taken = False, set[str]()
    for path, answer in zip(paths, answers, strict=True):
        if isinstance(answer, finetune.UnreadablePicture):
            failed = True
            click.echo(printable(f"finetune: {answer}"), err=True)
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
            click.echo(printable(f"{target}: {answer.label} {answer.probability:.1%}"))
    if failed:
        sys.exit(2)


def _check_out(out: Path, pictures: Sequence[Path]) -> None:
    """InputError where `out` cannot be written, or might replace a picture."""
    from finetune.files.folders import check_writable

    check_writable(out, "--out", is_folder=True, untouched=[given for given in pictures if given.is_dir()])
    if any(os.path.realpath(out) == os.path.realpath(given.parent) for given in pictures):
        raise InputError(f"{out} (--out) holds the pictures, where nothing is changed; choose another folder")


def _free_name(stem: str, taken: set[str]) -> str:
    """A file name that is not taken yet; pictures of different folders may share a name."""
    name, number = f"{stem}.png", 2
    while name.casefold() in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name.casefold())
    return name


@click.command()
@click.argument("run", type=any_run)
@click.option(
    "--format",
    type=ChoiceOption(["onnx", "torch-export"]),
    default="onnx",
    show_default=True,
    help="Format of the file.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="beside RUN, with its name; of an address, in this folder",
    help="File to write, with the ending .onnx or .pt2.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=1e-4,
    show_default=True,
    help="Largest allowed difference between a probability from the file and from the run.",
)
@click.option(
    "--pictures",
    type=existing,
    show_default="the run's validation pictures",
    help="Picture or folder of pictures to check the file on.",
)
@as_json
def export(
    run: Path | str, format: str, out: Path | None, tolerance: float, pictures: Path | None, as_json: bool
) -> None:
    """Export a classifier as one file for other programs.

    RUN is a folder that `finetune fit` wrote, or an address such as hf://user/name. The file maps pixels to
    probabilities; a JSON file of the same name describes its input and its classes. The export is checked: every
    validation picture must get the same label, and probabilities within --tolerance. Otherwise no file is left, and the
    exit code is 2.
    """
    from finetune.classifier.export import export as export_run

    about = export_run(run, out, format=format, tolerance=tolerance, pictures=pictures, display=display_for(as_json))
    if as_json:
        print_json(about)


@click.command()
@click.argument("run", type=local_run)
@as_json
def report(run: Path, as_json: bool) -> None:
    """Write the report of a run again.

    RUN is a folder that `finetune fit` or `finetune evaluate` wrote. report.html in it is replaced; it is one file that
    opens offline.
    """
    import finetune
    from finetune.classifier.stored import WEIGHTS_FILE
    from finetune.report.report import write_report

    # The folder of an evaluation holds no classifier.
    classifier = finetune.load(run) if (run / WEIGHTS_FILE).is_file() else None
    path = write_report(run, classifier=classifier)
    if as_json:
        print_json({"report": str(path), "bytes": path.stat().st_size})
    else:
        click.echo(printable(str(path)))


@click.command(cls=HelpfulCommand)
@click.argument("run", type=any_run)
@click.argument("folder", type=existing)
@click.option(
    "--split",
    type=ChoiceOption(["train", "val", "test"]),
    show_default="test, else val, else all pictures",
    help="Part of FOLDER to measure on: train, val or test, if it has such sub-folders.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="RUN/evaluations/NAME-OF-FOLDER; of an address, none",
    help="Folder to write metrics, predictions and report.html to.",
)
@on_device
@as_json
def evaluate(run: Path | str, folder: Path, split: str | None, out: Path | None, device: str, as_json: bool) -> None:
    """Measure a classifier on other labelled pictures.

    RUN is a folder that `finetune fit` wrote, or an address such as hf://user/name. FOLDER has one sub-folder of
    pictures per class, named as in training, or is a CSV table path,label[,split]. Pictures that the run was trained on
    are recognised by their content and left out.
    """
    import finetune
    from finetune.api.evaluate import place_for

    if out is None and isinstance(run, Path):
        out = place_for(run, folder)
    result = finetune.evaluate(run, folder, split=split, out=out, device=device, display=display_for(as_json))
    if as_json:
        print_json(result)
    else:
        _print_result(result, None)


def _print_result(metrics: dict[str, Any], kept_in: str | None) -> None:
    # No line breaks: a path over two lines could not be copied.
    out = Console(highlight=False, soft_wrap=True, emoji=False)
    if metrics["accuracy"] is None:
        out.print(NOT_MEASURED)
    else:
        low, high = metrics["interval"]
        where = "test pictures" if metrics["split"] == "test" else "validation pictures, which also served to choose"
        out.print(f"[bold]accuracy {metrics['accuracy']:.1%}[/bold]  ({low:.1%} to {high:.1%} with 95 % confidence)")
        out.print(f"         on {metrics['n']} {where}")
    for key, name in BASELINES.items():
        if baseline := metrics.get("baselines", {}).get(key):
            out.print(f"         {baseline['accuracy']:.1%}  {name}")
    if metrics.get("kept") not in (None, metrics["strategy"]):
        why = "did no better than the head on validation" if metrics["epochs"] else "finished no epoch"
        out.print(f"{in_markup(metrics['strategy'])} {why}: the {in_markup(metrics['kept'])} was kept")
    if metrics.get("interrupted"):
        done = f"after {metrics['epochs']} epochs" if metrics["epochs"] else "before the first epoch was done"
        out.print(f"interrupted: training was stopped {done}; --resume continues it")
    for key, why in (("left_out_trained_on", "trained"), ("left_out_chosen_on", "chosen")):
        if metrics.get(key):
            out.print(f"{metrics[key]} pictures were left out: the run was {why} on them")
    for entry in metrics["unreadable"] if kept_in is None else []:
        out.print(f"unreadable: {in_markup(entry['path'])} ({in_markup(entry['reason'])})")
    for entry in metrics.get("left_out", []) if kept_in is None else []:
        out.print(f"left out: {in_markup(entry['path'])} ({in_markup(entry['reason'])})")
    if "report" in metrics:
        out.print(f"report: {in_markup(metrics['report'])}")
    if kept_in is not None:
        took = "" if metrics["seconds"] is None else f"{metrics['seconds']:.0f} s, "
        out.print(f"{in_markup(metrics['strategy'])}, {took}in {in_markup(kept_in)}")
