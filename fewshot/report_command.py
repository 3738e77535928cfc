"""`fewshot report`: thin, no logic."""

from __future__ import annotations

from pathlib import Path

import click

from finetune.commands import as_json, display_for, on_device, print_json


@click.command()
@click.argument("run", metavar="omniglot|RUN")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="the page; default: report.html in RUN, omniglot.html here for the encoder that ships",
)
@click.option(
    "--data", type=click.Path(path_type=Path), help="folder that holds Omniglot; default: what FEWTUNE_DATA names"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of the questions and pairs")
@on_device
@as_json
def report(run: str, out: Path | None, data: Path | None, seed: int, device: str, as_json: bool) -> None:
    """Write a page that shows what the encoder of RUN learned: figures beside the published ones, what it mistakes for
    what, its curves and a map. One file, which opens offline."""
    from fewshot.report import report as written

    found = written(run, out, data=data, seed=seed, device=device, display=display_for(as_json))
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(f"in {found.path}")
