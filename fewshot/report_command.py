"""`fewshot report`: thin, no logic."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.options.command_line import as_json, display_for, on_device, print_json


@click.command()
@click.argument("run", metavar="omniglot|RUN")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="report.html in RUN; omniglot.html for the encoder that ships",
    help="HTML file to write.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    show_default="the folder in the environment variable FEWTUNE_DATA",
    help="Folder that holds Omniglot.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random episodes and pairs."
)
@on_device
@as_json
def report(run: str, out: Path | None, data: Path | None, seed: int, device: str, as_json: bool) -> None:
    """Write a page that shows what an encoder learned.

    RUN is a folder that `fewshot train` wrote; the word omniglot stands for the encoder that ships. The page shows
    accuracies beside the published ones, typical mistakes, ROC curves and a map of the embedding. It is one file that
    opens offline. The command says how long it will take before it begins.
    """
    from fewshot.report.report import report as written

    found = written(run, out, data=data, seed=seed, device=device, display=display_for(as_json))
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(f"in {found.path}")
