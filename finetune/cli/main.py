"""The `finetune` command: its group, `fit` and `demo`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from finetune.cli.cache import cache
from finetune.cli.changes import extend, forget, history, undo
from finetune.cli.finished_run import _print_result, evaluate, explain, export, report
from finetune.cli.inspect import inspect
from finetune.cli.predict import predict
from finetune.cli.preview import lr_find, probe
from finetune.cli.push import push
from finetune.cli.serve import serve, try_run
from finetune.config import Config
from finetune.entry.signals import stopped_exit_code
from finetune.options.command_line import (
    as_json,
    display_for,
    existing,
    hyper_parameters,
    on_devices,
    print_json,
    run_command,
)
from finetune.options.help_text import HelpfulCommand, InOrderOfUse


@click.group(cls=InOrderOfUse, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fewtune", prog_name="finetune")
def cli() -> None:
    """Train image classifiers from a folder of pictures with one sub-folder per class.

    Start with: finetune fit FOLDER --out RUN, then: finetune predict RUN PICTURES.
    `finetune COMMAND --help` explains one command.
    """


@click.command(cls=HelpfulCommand)
@click.argument("folder", type=existing)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Run folder to write: the classifier, its metrics and report.html.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped, with the same options.")
@click.option(
    "--overwrite", is_flag=True, help="Replace the run in --out. The old run stays until the new classifier is saved."
)
@hyper_parameters(Config)
@on_devices
@as_json
def fit(folder: Path, out: Path, resume: bool, overwrite: bool, devices: int, as_json: bool, **options: Any) -> None:
    """Train a classifier on a folder of pictures.

    FOLDER has one sub-folder of pictures per class. It may also have train/, val/ and test/ with these sub-folders
    inside; what is missing of val/ and test/ is split off the training pictures. Or it is a table: a CSV file with the
    header path,label or path,label,split, whose paths are relative to its own folder. FOLDER is never changed.
    """
    import finetune
    from finetune.processes import process_age
    from finetune.ranks.launched import first_process
    from finetune.report.report import REPORT_FILE

    classifier = finetune.fit(
        folder,
        out,
        config=Config(**options),
        resume=resume,
        overwrite=overwrite,
        display=display_for(as_json),
        started=time.monotonic() - process_age(),
        devices=devices,
    )
    if not first_process():
        return
    if as_json:
        print_json(classifier.metrics)
    else:
        metrics = classifier.metrics | {"report": str(out / REPORT_FILE)}
        _print_result(metrics, f"{out}: finetune predict {out} PICTURES…")
    if classifier.metrics["interrupted"]:
        sys.exit(stopped_exit_code())


@click.command(cls=HelpfulCommand)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder to write the pictures and the runs to.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random numbers.")
@as_json
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Compare all strategies on handwritten digits.

    Every strategy trains on ten pictures of each digit, with a small encoder that ships with the package. Nothing is
    downloaded.
    """
    from finetune.api.demo import run_demo

    rows = run_demo(out, seed=seed, display=display_for(as_json))
    if as_json:
        print_json(rows)


# In the order of use.
for command in (
    *(inspect, fit, evaluate, predict, try_run, serve, extend, forget, undo, history),
    *(push, explain, export, report, probe, lr_find, cache, demo),
):
    cli.add_command(command)


def main() -> None:
    """Entry point."""
    run_command(cli, "finetune")


if __name__ == "__main__":
    main()
