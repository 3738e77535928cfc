"""The `finetune` command: thin, no logic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.cache_command import cache
from finetune.config import Config
from finetune.explain_command import explain
from finetune.export_command import export
from finetune.inspect_command import inspect
from finetune.lr_find_command import lr_find
from finetune.metrics import BASELINES
from finetune.options.command_line import (
    INTERRUPTED,
    Choice,
    as_json,
    display_for,
    existing,
    hyper_parameters,
    on_device,
    print_json,
    run_command,
)
from finetune.options.help_text import HelpfulCommand, InOrderOfUse
from finetune.predict_command import predict
from finetune.report_command import report

if TYPE_CHECKING:
    from finetune.linear.probe import Curve

# Options that change nothing of a probe: it trains no network.
_NOT_PROBED = (
    "strategy", "epochs", "lr", "batch_size", "patience", "class_weights", "unfreeze", "drop_above", "optimizer",
    "weight_decay", "label_smoothing", "warmup", "stage_decay", "flip", "crop_scale", "trivial_augment", "mixup",
    "views", "test_time", "log",
)  # fmt: skip


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
@as_json
def fit(folder: Path, out: Path, resume: bool, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Train a classifier on a folder of pictures.

    FOLDER has one sub-folder of pictures per class. It may also have train/, val/ and test/ with these sub-folders
    inside; what is missing of val/ and test/ is split off the training pictures. Or it is a table: a CSV file with the
    header path,label or path,label,split, whose paths are relative to its own folder. FOLDER is never changed.
    """
    import finetune
    from finetune.report.report import REPORT_FILE

    classifier = finetune.fit(
        folder, out, config=Config(**options), resume=resume, overwrite=overwrite, display=display_for(as_json)
    )
    if as_json:
        print_json(classifier.metrics)
    else:
        metrics = classifier.metrics | {"report": str(out / REPORT_FILE)}
        _print_result(metrics, f"{out}: finetune predict {out} PICTURES…")
    if classifier.metrics["interrupted"]:
        sys.exit(INTERRUPTED)


@click.command(cls=HelpfulCommand)
@click.argument("run", type=existing)
@click.argument("folder", type=existing)
@click.option(
    "--split",
    type=Choice(["train", "val", "test"]),
    show_default="test, else val, else all pictures",
    help="Which part of FOLDER to measure on, where it has train/, val/ or test/.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="RUN/evaluations/NAME-OF-FOLDER",
    help="Folder to write metrics, predictions and report.html to.",
)
@on_device
@as_json
def evaluate(run: Path, folder: Path, split: str | None, out: Path | None, device: str, as_json: bool) -> None:
    """Measure a classifier on other labelled pictures.

    RUN is a folder that `finetune fit` wrote. FOLDER has one sub-folder of pictures per class, named as in training,
    or is a CSV table path,label[,split]. Pictures that the run was trained on are recognised by their content and left
    out.
    """
    import finetune
    from finetune.api.evaluate import place_for

    out = out or place_for(run, folder)
    result = finetune.evaluate(run, folder, split=split, out=out, device=device, display=display_for(as_json))
    if as_json:
        print_json(result)
    else:
        _print_result(result, None)


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

    Ten pictures of each digit are learned from, with a small encoder that ships with the package. Nothing is
    downloaded.
    """
    from finetune.api.demo import run_demo

    rows = run_demo(out, seed=seed, display=display_for(as_json))
    if as_json:
        print_json(rows)


@click.command(cls=HelpfulCommand)
@click.argument("folder", type=existing)
@hyper_parameters(Config, without=_NOT_PROBED)
@as_json
def probe(folder: Path, as_json: bool, **options: Any) -> None:
    """Measure how well each backbone depth separates the classes.

    A linear probe is fitted at every depth and cross-validated on the training pictures of FOLDER. The deeper the best
    probe, the more these pictures resemble those that the backbone was pretrained on.
    """
    from finetune.api.preview import probe_folder

    curve = probe_folder(folder, config=Config(**options), display=display_for(as_json))
    if as_json:
        print_json(curve.to_dict())
    else:
        _print_curve(curve)


# In the order in which they are used.
for command in (inspect, fit, evaluate, predict, explain, export, report, probe, lr_find, cache, demo):
    cli.add_command(command)


def main() -> None:
    """Entry point."""
    run_command(cli, "finetune")


def _print_curve(curve: Curve) -> None:
    table = Table(
        title=f"{curve.pictures:,} training pictures, {curve.classes} classes", title_justify="left", box=None
    )
    for heading, justify in (
        ("linear probe on", "left"),
        ("accuracy", "right"),
        ("95 % interval", "right"),
        ("squared error", "right"),
        ("", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    lowest = min(probe.accuracy for probe in (*curve.probes, curve.together))
    for probe in (*curve.probes, curve.together):
        low, high = probe.interval
        bar = "█" * round(1 + 29 * (probe.accuracy - lowest) / max(1e-9, 1 - lowest))
        clearly = "  clearly better than the last" if probe.clearly_better else ""
        table.add_row(
            probe.depth, f"{probe.accuracy:.1%}", f"{low:.1%} to {high:.1%}", f"{probe.error:.3f}", bar + clearly
        )
    console = Console()
    console.print(table)
    console.print("unlike the backbone's own pictures" if curve.different else "like the backbone's own pictures")


def _print_result(metrics: dict[str, Any], kept_in: str | None) -> None:
    # Lines as long as they are: a path that is broken in two cannot be copied.
    out = Console(highlight=False, soft_wrap=True)
    low, high = metrics["interval"]
    where = "test pictures" if metrics["split"] == "test" else "validation pictures, which also served to choose"
    out.print(f"[bold]accuracy {metrics['accuracy']:.1%}[/bold]  ({low:.1%} to {high:.1%} with 95 % confidence)")
    out.print(f"         on {metrics['n']} {where}")
    for key, name in BASELINES.items():
        if key in metrics.get("baselines", {}):
            baseline = metrics["baselines"][key]
            out.print(f"         {baseline['accuracy']:.1%}  {name}")
    if metrics.get("kept") not in (None, metrics["strategy"]):
        why = "did no better than the head on validation" if metrics["epochs"] else "finished no epoch"
        out.print(f"{metrics['strategy']} {why}: the {metrics['kept']} was kept")
    if metrics.get("interrupted"):
        done = f"after {metrics['epochs']} epochs" if metrics["epochs"] else "before the first epoch was done"
        out.print(f"interrupted: training was stopped {done}; --resume continues it")
    for key, why in (("left_out_trained_on", "trained"), ("left_out_chosen_on", "chosen")):
        if metrics.get(key):
            out.print(f"{metrics[key]} pictures were left out: the run was {why} on them")
    for entry in metrics["unreadable"] if kept_in is None else []:
        out.print(f"unreadable: {escape(entry['path'])} ({entry['reason']})")
    for entry in metrics.get("left_out", []) if kept_in is None else []:
        out.print(f"left out: {escape(entry['path'])} ({escape(entry['reason'])})")
    if "report" in metrics:
        out.print(f"report: {escape(metrics['report'])}")
    if kept_in is not None:
        out.print(f"{metrics['strategy']}, {metrics['seconds']:.0f} s, in {escape(kept_in)}")


if __name__ == "__main__":
    main()
