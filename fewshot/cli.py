"""The `fewshot` command: thin, no logic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fewshot.picture_commands import embed, enrol, forget, info, recognize, search, verify
from fewshot.recipe import Recipe
from fewshot.report_command import report
from finetune.commands import INTERRUPTED, as_json, display_for, hyper_parameters, on_device, print_json, run_command
from finetune.errors import InputError

at_data = click.option(
    "--data", type=click.Path(path_type=Path), help="folder that holds Omniglot; default: what FEWTUNE_DATA names"
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fewtune", prog_name="fewshot")
def cli() -> None:
    """One-shot learning: pictures found and recognised by their likeness, Siamese networks, the published protocols."""


@cli.command()
@click.argument("source", metavar="omniglot|FOLDER")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="run folder to leave the encoder in")
@click.option(
    "--split",
    type=click.Choice(["lake", "lake-minimal", "vinyals", "koch"]),
    help="what of Omniglot is learned from: what the protocol of that name allows; default: lake",
)
@click.option(
    "--all", "everything", is_flag=True, help="learn from what weights would be chosen by, too; keep the last"
)
@click.option("--examples", type=click.IntRange(1, 20), help="pictures of each of Omniglot's characters to learn from")
@click.option("--self-supervised", is_flag=True, help="use no labels: every picture is a class of its own")
@click.option("--resume", is_flag=True, help="continue the run in --out where it stopped")
@at_data
@hyper_parameters(Recipe)
@as_json
def train(
    source: str,
    out: Path,
    split: str | None,
    everything: bool,
    examples: int | None,
    self_supervised: bool,
    resume: bool,
    data: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a Siamese network on Omniglot, or on FOLDER: one sub-folder of pictures a class."""
    from fewshot.learning import learn_folder, learn_omniglot, metrics_of

    recipe, display = Recipe(**options), display_for(as_json)
    if source == "omniglot":
        learn_omniglot(
            out,
            split or "lake",
            recipe=recipe,
            everything=everything,
            examples=examples,
            self_supervised=self_supervised,
            data=data,
            resume=resume,
            display=display,
        )
    else:
        for name, given in (("--split", split), ("--examples", examples), ("--data", data)):
            if given:
                raise InputError(f"{name} goes with omniglot, not with the folder {source}")
        learn_folder(
            Path(source),
            out,
            recipe=recipe,
            everything=everything,
            self_supervised=self_supervised,
            resume=resume,
            display=display,
        )
    metrics = metrics_of(out)
    if as_json:
        print_json(metrics)
    else:
        use = f"fewshot benchmark --model {out}" if source == "omniglot" else f'fewshot.Embedder.load("{out}")'
        click.echo(f"in {out}: {use}")
    if metrics["interrupted"]:
        sys.exit(INTERRUPTED)


@cli.command()
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    default=("all",),
    show_default=True,
    help="by name, again for more; all, or all-way: those of them that may measure the model",
)
@click.option(
    "--model", default="omniglot", show_default=True, help="omniglot, pixels, hausdorff, affine or a run folder"
)
@click.option("--against", help="another model, asked the same questions, for a paired test")
@click.option(
    "--views", type=click.IntRange(1), default=1, show_default=True, help="distorted views averaged into a vector"
)
@click.option("--rerank", is_flag=True, help="compare the few nearest again by affine alignment (lake)")
@click.option("--allow-leaks", is_flag=True, help="measure even on characters that were trained on, and say so")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="of the episodes and pairs")
@at_data
@on_device
@as_json
def benchmark(
    protocols: tuple[str, ...],
    model: str,
    against: str | None,
    views: int,
    rerank: bool,
    allow_leaks: bool,
    seed: int,
    data: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure a model by the published protocols on Omniglot, each figure with its 95 % interval."""
    from fewshot.benchmarking import benchmark as measured
    from fewshot.benchmarking import print_report

    report = measured(
        model,
        protocols,
        against=against,
        views=views,
        rerank=rerank,
        allow_leaks=allow_leaks,
        seed=seed,
        data=data,
        device=device,
        display=display_for(as_json),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)


@cli.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="folder for pictures"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@as_json
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Handwritten digits told apart from one example of each, by the encoder that ships with the package."""
    from fewshot.demo import run_demo

    rows = run_demo(out, seed=seed, display=display_for(as_json))
    if as_json:
        print_json(rows)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def download(folder: Path) -> None:
    """Fetch Omniglot's official archives into FOLDER, checksums verified."""
    from fewshot.download import download as fetched

    fetched(folder, announce=click.echo)


for command in (embed, search, enrol, forget, recognize, verify, info, report):
    cli.add_command(command)


def main() -> None:
    """Entry point."""
    run_command(cli, "fewshot")


if __name__ == "__main__":
    main()
