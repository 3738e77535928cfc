"""The `fewshot` command: options in, calls of the API, results out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fewshot.cli.collection import embed, merge
from fewshot.cli.pictures import info, search, verify
from fewshot.cli.recognizer import calibrate, enrol, forget, recognize
from fewshot.cli.serve import serve, try_gallery
from fewshot.training.config import SiameseConfig
from finetune.entry.signals import stopped_exit_code
from finetune.errors import InputError
from finetune.options.command_line import (
    ChoiceOption,
    as_json,
    display_for,
    hyper_parameters,
    on_device,
    on_devices,
    print_json,
    run_command,
)
from finetune.options.help_text import HelpfulCommand, InOrderOfUse
from finetune.ranks.launched import first_process
from finetune.terminal import printable

at_seed = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the random episodes and pairs."
)
at_data = click.option(
    "--data",
    type=click.Path(path_type=Path),
    show_default="the folder in the environment variable FEWTUNE_DATA",
    help="Folder that holds Omniglot.",
)


@click.group(cls=InOrderOfUse, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="fewtune", prog_name="fewshot")
def cli() -> None:
    """Recognise, compare and search pictures from one or a few examples.

    No training is needed: start with fewshot enrol GALLERY LABEL PICTURE, then fewshot recognize GALLERY PICTURES.
    `fewshot train` trains an encoder, and `fewshot benchmark` measures one by the published protocols of Omniglot.
    `fewshot COMMAND --help` explains one command.
    """


@click.command(cls=HelpfulCommand)
@click.argument("source", metavar="omniglot|FOLDER")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Run folder to write: the encoder and its metrics."
)
@click.option(
    "--split",
    type=ChoiceOption(["lake", "lake-minimal", "vinyals", "koch"]),
    show_default="lake",
    help="Part of Omniglot to train on: the training split of this protocol.",
)
@click.option(
    "--all", "everything", is_flag=True, help="Also train on the validation classes, and keep the last weights."
)
@click.option(
    "--examples",
    type=click.IntRange(1, 20),
    show_default="all 20",
    help="Number of drawings of each Omniglot character to train on.",
)
@click.option("--self-supervised", is_flag=True, help="Use no labels: every picture is a separate class.")
@click.option("--resume", is_flag=True, help="Continue the run in --out where it stopped, with the same options.")
@at_data
@hyper_parameters(SiameseConfig)
@on_devices
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
    devices: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Train an encoder as a Siamese network.

    Give the word omniglot, or a folder with one sub-folder of pictures per class. --minutes limits the training steps
    alone. Reading the pictures, timing a step and measuring the result take additional time, which is shown.
    """
    from fewshot.training.train import metrics_of, train_folder, train_omniglot

    config, display = SiameseConfig(**options), display_for(as_json)
    if source == "omniglot":
        train_omniglot(
            out,
            split or "lake",
            config=config,
            everything=everything,
            examples=examples,
            self_supervised=self_supervised,
            data=data,
            resume=resume,
            display=display,
            devices=devices,
        )
    else:
        for name, given in (("--split", split), ("--examples", examples), ("--data", data)):
            if given:
                raise InputError(f"{name} is for omniglot, not for the folder {source}")
        train_folder(
            Path(source),
            out,
            config=config,
            everything=everything,
            self_supervised=self_supervised,
            resume=resume,
            display=display,
            devices=devices,
        )
    if not first_process():
        return
    metrics = metrics_of(out)
    if as_json:
        print_json(metrics)
    else:
        use = f"fewshot benchmark --model {out}" if source == "omniglot" else f'fewshot.Embedder.load("{out}")'
        click.echo(printable(f"in {out}: {use}"))
    if metrics["interrupted"]:
        sys.exit(stopped_exit_code())


@click.command(cls=HelpfulCommand)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    default=("all",),
    show_default=True,
    help="Protocol to measure by: lake, lake-minimal, within, koch, vinyals, vinyals-upright, all-way-423, all-way-659 "
    "or all-way-1692. Repeat the option for more. all uses every protocol that suits the model, all-way the last "
    "three.",
)
@click.option(
    "--model",
    default="omniglot",
    show_default=True,
    help="Model to measure: omniglot (the encoder that ships), a run folder of `fewshot train`, or a baseline: pixels, "
    "hausdorff or affine.",
)
@click.option(
    "--against",
    metavar="MODEL",
    show_default="none",
    help="Second model, compared on the same questions by a paired test.",
)
@click.option(
    "--views",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of distorted views of each drawing. Their vectors are averaged.",
)
@click.option(
    "--rerank", is_flag=True, help="Compare the few nearest drawings again by affine alignment (lake and koch only)."
)
@click.option("--allow-leaks", is_flag=True, help="Also test on characters that were trained on; the report says so.")
@at_seed
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
    """Measure an encoder by the published protocols of Omniglot.

    Each accuracy has a 95 % interval and is shown beside the published ones. The command first shows how long it will
    take.
    """
    from fewshot.cli.benchmark_table import print_report
    from fewshot.evaluation.benchmark import benchmark as measured

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


@click.command(cls=HelpfulCommand)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Folder to write the pictures to.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random numbers.")
@as_json
def demo(out: Path, seed: int, as_json: bool) -> None:
    """Recognise handwritten digits from one example of each.

    Uses the encoder that ships with the package. Nothing is downloaded.
    """
    from fewshot.cli.demo import run_demo

    rows = run_demo(out, seed=seed, display=display_for(as_json))
    if as_json:
        print_json(rows)


@click.command(cls=HelpfulCommand)
@click.argument("folder", type=click.Path(path_type=Path))
def download(folder: Path) -> None:
    """Download Omniglot into a folder.

    The official archives, 18 MB, are written to FOLDER, and their checksums are verified.
    """
    from fewshot.omniglot.download import download as download_archives

    download_archives(folder, display=display_for(False))


@click.command()
@click.argument("run", metavar="omniglot|RUN")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    show_default="report.html in RUN; omniglot.html for the encoder that ships",
    help="HTML file to write.",
)
@at_data
@at_seed
@on_device
@as_json
def report(run: str, out: Path | None, data: Path | None, seed: int, device: str, as_json: bool) -> None:
    """Write a page about an encoder: accuracy, errors and training.

    RUN is a folder that `fewshot train` wrote; the word omniglot stands for the encoder that ships. The page shows
    accuracies beside the published ones, typical errors, ROC curves and a map of the embedding. It is one file that
    opens offline. The command first shows how long it will take.
    """
    from fewshot.report.report import write_report

    found = write_report(run, out, data=data, seed=seed, device=device, display=display_for(as_json))
    if as_json:
        print_json(found.to_dict())
    else:
        click.echo(printable(f"in {found.path}"))


# In the order of use.
for command in (
    enrol,
    recognize,
    try_gallery,
    serve,
    calibrate,
    forget,
    verify,
    embed,
    merge,
    search,
    info,
    download,
    train,
    benchmark,
    report,
    demo,
):
    cli.add_command(command)


def main() -> None:
    """Entry point."""
    run_command(cli, "fewshot")


if __name__ == "__main__":
    main()
