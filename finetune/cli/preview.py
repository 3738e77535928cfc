"""Commands before a run: `finetune lr-find` and `finetune probe`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from finetune.cli.comparison import print_comparison
from finetune.config import AUTO, Config
from finetune.options.command_line import (
    as_json,
    display_for,
    existing,
    hyper_parameters,
    print_json,
)
from finetune.options.help_text import HelpfulCommand
from finetune.terminal import in_markup

if TYPE_CHECKING:
    from finetune.linear.probe import ProbeCurve
    from finetune.training.lr_finder import Sweep


# Rows and columns of the drawn curve, in characters.
ROWS, WIDTH = 28, 40


@click.command("lr-find", cls=HelpfulCommand)
@click.argument("folder", type=existing)
@hyper_parameters(Config, "lr-find")
@as_json
def lr_find(folder: Path, as_json: bool, **options: Any) -> None:
    """Suggest a learning rate for a folder of pictures.

    Trains for a few steps at ever larger learning rates, shows the loss, and suggests the rate where it falls fastest.
    FOLDER is as for `finetune fit`; nothing is saved. `finetune fit --lr auto` does the same before training.
    """
    from finetune.api.preview import find_rate

    sweep = find_rate(folder, config=Config(**options), display=display_for(as_json))
    if as_json:
        print_json(sweep.to_dict())
    else:
        _print_sweep(sweep)


def _print_sweep(sweep: Sweep) -> None:
    console = Console(highlight=False)
    table = Table(title="loss at rising learning rates of the head", title_justify="left", box=None)
    for heading, justify in (("learning rate", "right"), ("loss", "right"), ("", "left")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    shown = _spread(sweep)
    best = min(sweep.smoothed)
    # The loss rises steeply at the end of a sweep; the bars are scaled to the losses up to the best.
    span = max(1e-9, max(sweep.smoothed[: sweep.smoothed.index(best) + 1]) - best)
    for position in shown:
        loss = sweep.smoothed[position]
        bar = "█" * (1 + round(min(1.0, (loss - best) / span) * (WIDTH - 1)))
        note = "  ← suggested" if sweep.rates[position] == sweep.suggestion else ""
        table.add_row(f"{sweep.rates[position]:.1e}", f"{loss:.3f}", bar + note)
    console.print(table)
    if sweep.diverged:
        console.print(f"stopped at {sweep.rates[-1]:.1e}, where the loss grew without bound")
    if sweep.suggestion is None:
        console.print(f"no rate is suggested: {sweep.trouble}")
        return
    console.print(f"[bold]suggested: --lr {sweep.suggestion:.2g}[/bold]")
    rates = sweep.stage_rates or {}
    if len(set(rates.values())) > 1:
        console.print("of which each stage gets " + ", ".join(f"{name} {rate:.1e}" for name, rate in rates.items()))


def _spread(sweep: Sweep) -> list[int]:
    """Positions of about ROWS evenly spaced points; the suggested rate is one of them."""
    every = max(1, -(-len(sweep.rates) // ROWS))
    shown = set(range(0, len(sweep.rates), every))
    if sweep.suggestion is not None:
        shown.add(sweep.rates.index(sweep.suggestion))
    return sorted(shown)


@click.command(cls=HelpfulCommand)
@click.argument("folder", type=existing)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    show_default="no page",
    help="With --backbone auto or --backbones: HTML page to write the table and its drawing to.",
)
@hyper_parameters(Config, "probe")
@as_json
def probe(folder: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Measure how well each backbone depth separates the classes.

    A linear probe is fitted at every depth and cross-validated on the training pictures of FOLDER. The deeper the best
    probe, the more these pictures resemble those that the backbone was pretrained on.

    With --backbones NAME,NAME or --backbone auto, the probes of each network are compared, and the time that it takes.
    The default list:

    \b
    fewtune_conv4                           ships with the package
    tf_efficientnet_lite0                   convolutional, low cost
    convnext_tiny.in12k_ft_in1k             convolutional, high cost
    vit_small_patch14_reg4_dinov2.lvd142m   transformer, low cost
    vit_base_patch14_reg4_dinov2.lvd142m    transformer, high cost

    Licences of these are permissive.
    """
    from finetune.api.backbones import compare_backbones
    from finetune.api.preview import probe_folder
    from finetune.report.backbones import write_comparison

    config, display = Config(**options), display_for(as_json)
    if config.backbone != AUTO:
        if out is not None:
            raise click.UsageError("--out goes with --backbone auto or --backbones NAME,NAME.")
        curve = probe_folder(folder, config=config, display=display)
        if as_json:
            print_json(curve.to_dict())
        else:
            _print_curve(curve)
        return
    comparison = compare_backbones(folder, config=config, display=display)
    if out is not None:
        write_comparison(out, comparison, pictures=folder.resolve().name)
    if as_json:
        print_json(comparison.to_dict())
    else:
        print_comparison(comparison)
        if out is not None:
            Console(emoji=False).print(f"drawn in {in_markup(str(out))}", soft_wrap=True)


def _print_curve(curve: ProbeCurve) -> None:
    from finetune.linear.probe import FAR

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
    far = "" if curve.distance is None else f" (distance {curve.distance:.2f} by batch norm; unlike from {FAR} on)"
    console.print(f"{'unlike' if curve.different else 'like'} the backbone's own pictures{far}")
