"""`run_demo`: every strategy on handwritten digits, compared with training from scratch. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finetune.api.fit import fit
from finetune.config import Config
from finetune.data.digits import write_digits
from finetune.progress import Display
from finetune.strategies import STRATEGIES
from finetune.terminal import printable

PER_CLASS = 10


def run_demo(out: Path, *, seed: int = 0, display: Display | None = None) -> list[dict[str, Any]]:
    """Write the digits to `out`/digits, and fit every strategy into `out`/NAME; finished runs are not repeated.

    Args:
        out: Folder of the digits and the runs.
        seed: Seed of all random numbers.
        display: Shows progress, and the table.

    Returns:
        The metrics of each strategy.

    Example:
        >>> from finetune import run_demo
        >>> rows = run_demo(Path("demo"))  # doctest: +SKIP
    """
    display = display or Display()
    folder = out / "digits"
    Config(seed=seed)  # raises for an invalid seed
    write_digits(folder, per_class=PER_CLASS, seed=seed)
    display.say(
        f"{folder}: handwritten digits, {PER_CLASS} training pictures and {PER_CLASS} validation pictures per class"
    )
    rows = []
    for name in STRATEGIES:
        config = Config(
            backbone="fewtune_conv4",
            strategy=name,
            seed=seed,
            flip=False,
            trivial_augment=False,
            crop_scale=0.6,
            device="cpu",
        )
        metrics = fit(folder, out / name, config=config, resume=True, display=display).metrics
        if metrics["interrupted"]:
            raise KeyboardInterrupt
        rows.append(metrics)
    if display.console is not None:
        _show(rows, out)
    return rows


def _show(rows: list[dict[str, Any]], out: Path) -> None:
    table = Table(
        title=f"handwritten digits, {PER_CLASS} pictures per class, {rows[0]['n']} test pictures", title_justify="left"
    )
    for heading in ("strategy", "accuracy", "95 % interval", "error against scratch", "seconds"):
        table.add_column(heading, justify="left" if heading == "strategy" else "right")
    scratch = next(row for row in rows if row["strategy"] == "scratch")
    for row in rows:
        low, high = row["interval"]
        share = (1 - row["accuracy"]) / max(1 - scratch["accuracy"], 1 / row["n"])
        table.add_row(
            row["strategy"] + (" (kept: head)" if row["kept"] != row["strategy"] else ""),
            f"{row['accuracy']:.1%}",
            f"{low:.1%} to {high:.1%}",
            f"{share:.2f} of it",
            f"{row['seconds']:.1f}",
        )
    console = Console()
    console.print(table)
    best = max(rows, key=lambda row: row["val"]["accuracy"])["strategy"]
    line = f"try it: finetune predict {out / best} {out / 'digits' / 'test' / '3'}"
    console.print(printable(line), soft_wrap=True, markup=False, emoji=False)
