"""The `finetune` command: thin, no logic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from finetune.cache_command import cache
from finetune.commands import (
    INTERRUPTED,
    as_json,
    display_for,
    existing,
    hyper_parameters,
    on_device,
    print_json,
    run_command,
)
from finetune.config import Config

if TYPE_CHECKING:
    from finetune.probe import Curve

BASELINES = {
    "majority_class": "majority class",
    "nearest_class_mean": "nearest class mean",
    "head": "linear head, frozen features",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fewtune", prog_name="finetune")
def cli() -> None:
    """Image classifiers from a folder of pictures, one sub-folder for each class."""


@cli.command()
@click.argument("folder", type=existing)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="run folder to leave the classifier in")
@click.option("--resume", is_flag=True, help="continue the run in --out where it stopped")
@hyper_parameters(Config)
@as_json
def fit(folder: Path, out: Path, resume: bool, as_json: bool, **options: Any) -> None:
    """Train a classifier on FOLDER: one sub-folder of pictures per class, or the same below train/, val/, test/."""
    import finetune

    classifier = finetune.fit(folder, out, config=Config(**options), resume=resume, display=display_for(as_json))
    if as_json:
        print_json(classifier.metrics)
    else:
        _print_result(classifier.metrics, f"{out}: finetune predict {out} PICTURES…")
    if classifier.metrics["interrupted"]:
        sys.exit(INTERRUPTED)


@cli.command()
@click.argument("run", type=existing)
@click.argument("folder", type=existing)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="which part, where FOLDER has such; default: test, else val",
)
@on_device
@as_json
def evaluate(run: Path, folder: Path, split: str | None, device: str, as_json: bool) -> None:
    """Measure the classifier in RUN on the pictures in FOLDER; those it was trained on are left out."""
    import finetune

    result = finetune.evaluate(run, folder, split=split, device=device, display=display_for(as_json))
    if as_json:
        print_json(result)
    else:
        _print_result(result, None)


@cli.command()
@click.argument("run", type=existing)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PICTURES_OR_FOLDERS...")
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="classes shown for each picture")
@on_device
@as_json
def predict(run: Path, pictures: tuple[Path, ...], top: int, device: str, as_json: bool) -> None:
    """What each picture shows; with --json one object a line. Unreadable files are named on stderr (exit code 2)."""
    import finetune
    from finetune.folder import list_unlabelled

    classifier = finetune.load(run, device=device)
    answers = classifier.predict_all(list_unlabelled(pictures), top=top, display=display_for(as_json))
    failed = False
    for answer in answers:
        if isinstance(answer, finetune.UnreadablePicture):
            failed = True
            click.echo(f"finetune: {answer}", err=True)
            if as_json:
                click.echo(json.dumps({"path": answer.source, "error": answer.reason}))
        elif as_json:
            top_classes = [{"label": label, "probability": round(share, 6)} for label, share in answer.top]
            row = {
                "path": answer.path,
                "label": answer.label,
                "probability": round(answer.probability, 6),
                "top": top_classes,
            }
            click.echo(json.dumps(row))
        else:
            others = ", ".join(f"{label} {share:.1%}" for label, share in answer.top[1:])
            click.echo(f"{answer.path}: {answer.label} {answer.probability:.1%}" + (f"  ({others})" if others else ""))
    if failed:
        sys.exit(2)


@cli.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="folder for pictures and runs",
)
@click.option("--seed", type=int, default=0, show_default=True)
@as_json
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Every strategy on handwritten digits, ten per class, with an encoder that ships with the package."""
    from finetune.demo import run_demo

    rows = run_demo(out, seed=seed, display=display_for(as_json))
    if as_json:
        print_json(rows)


@cli.command()
@click.argument("folder", type=existing)
@hyper_parameters(Config)
@as_json
def probe(folder: Path, as_json: bool, **options: Any) -> None:
    """How near the pictures in FOLDER are to what the backbone knows: a linear probe at every depth of it."""
    from finetune.probing import probe_folder

    curve = probe_folder(folder, config=Config(**options), display=display_for(as_json))
    if as_json:
        print_json(curve.to_dict())
    else:
        _print_curve(curve)


cli.add_command(cache)


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
        ("", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    lowest = min(probe.accuracy for probe in (*curve.probes, curve.together))
    for probe in (*curve.probes, curve.together):
        low, high = probe.interval
        bar = "█" * round(1 + 29 * (probe.accuracy - lowest) / max(1e-9, 1 - lowest))
        clearly = "  better than the last" if probe.over_last_interval[0] > 0 else ""
        table.add_row(probe.depth, f"{probe.accuracy:.1%}", f"{low:.1%} to {high:.1%}", bar + clearly)
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
        out.print(f"{metrics['strategy']} did not beat the head on validation: the {metrics['kept']} was kept")
    if metrics.get("left_out_trained_on"):
        out.print(f"{metrics['left_out_trained_on']} pictures were left out: the run was trained on them")
    for entry in metrics["unreadable"] if kept_in is None else []:
        out.print(f"unreadable: {escape(entry['path'])} ({entry['reason']})")
    if kept_in is not None:
        out.print(f"{metrics['strategy']}, {metrics['seconds']:.0f} s, in {escape(kept_in)}")
