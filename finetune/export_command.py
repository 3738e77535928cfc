"""`finetune export`: a run as one file for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.options.command_line import Choice, as_json, display_for, existing, print_json


@click.command()
@click.argument("run", type=existing)
@click.option(
    "--format",
    type=Choice(["onnx", "torch-export"]),
    default="onnx",
    show_default=True,
    help="Format of the file.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="beside RUN, with its name",
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
def export(run: Path, format: str, out: Path | None, tolerance: float, pictures: Path | None, as_json: bool) -> None:
    """Export a classifier as one file for other programs.

    RUN is a folder that `finetune fit` wrote. The file maps pixels to probabilities; a JSON file of the same name
    describes its input and its classes. The export is checked: every validation picture must get the same label, and
    probabilities within --tolerance. Otherwise no file is left, and the exit code is 2.
    """
    from finetune.classifier.export import export as export_run

    about = export_run(run, out, format=format, tolerance=tolerance, pictures=pictures, display=display_for(as_json))
    if as_json:
        print_json(about)
