"""`finetune export`: a run as one file for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.commands import as_json, display_for, existing, print_json


@click.command()
@click.argument("run", type=existing)
@click.option("--format", type=click.Choice(["onnx", "torch-export"]), default="onnx", show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="file to write, .onnx or .pt2; default: beside the run, with its name",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, min_open=True),
    default=1e-4,
    show_default=True,
    help="largest difference of a probability from the run's own",
)
@click.option("--pictures", type=existing, help="pictures to check on, where the run's validation pictures are gone")
@as_json
def export(run: Path, format: str, out: Path | None, tolerance: float, pictures: Path | None, as_json: bool) -> None:
    """Write the classifier in RUN as one file, which takes pixels and gives probabilities, and FILE.json about it.

    Every validation picture of the run must get the same label from it, and probabilities within --tolerance;
    otherwise no file is left, and the exit code is 2.
    """
    from finetune.exporting import export as export_run

    about = export_run(run, out, format=format, tolerance=tolerance, pictures=pictures, display=display_for(as_json))
    if as_json:
        print_json(about)
