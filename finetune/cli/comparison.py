"""A comparison of backbones in the terminal: a table, and a drawing of accuracy against cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from finetune.terminal import in_markup, printable

if TYPE_CHECKING:
    from finetune.linear.comparison import BackboneComparison, BackboneFigures

# Rows and columns of the drawing, in characters.
_ROWS, _COLUMNS = 10, 56
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def print_comparison(found: BackboneComparison) -> None:
    """Print the networks, the fastest first, a drawing, and the choice with its reason."""
    measured = [each for each in found.candidates if each.accuracy is not None]
    letters = {each.name: letter for each, letter in zip(measured, _LETTERS, strict=False)}
    console = Console(highlight=False, emoji=False)
    of = "" if found.of == found.pictures else f" of {found.of:,}"
    table = Table(
        title=f"{found.pictures:,}{of} training and validation pictures, {found.classes} classes",
        title_justify="left",
        box=None,
    )
    table.add_column("")
    table.add_column("network", overflow="fold")
    for heading in ("accuracy", "95 %", "error", "ms", "alone", "weights"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in found.candidates:
        table.add_row(letters.get(each.name, "") if each.left_out is None else "", in_markup(each.name), *_cells(each))
    console.print(table)
    for each in found.candidates:
        if each.left_out is not None:
            console.print(printable(f"{each.name} is left out: {each.left_out}"), soft_wrap=True, markup=False)
    console.print(
        "error: squared error of probes, 1 for guessing; ms: milliseconds a picture in batches on all cores, "
        "alone: of one picture on one core; weights: their number",
        style="dim",
    )
    console.print(printable(f"licences: {_licences(found.candidates)}"), soft_wrap=True, markup=False)
    if len(measured) > 1:
        console.print("\n".join(drawing([(letters.get(each.name, "*"), each) for each in measured])), markup=False)
    console.print(printable(f"taken: {found.reason}"), soft_wrap=True, markup=False)


def _cells(each: BackboneFigures) -> list[str]:
    return [
        "–" if each.accuracy is None else f"{each.accuracy:.1%}",
        "–" if each.interval is None else f"{100 * each.interval[0]:.0f}–{100 * each.interval[1]:.0f}",
        "–" if each.error is None else f"{each.error:.3f}",
        "–" if each.ms is None else f"{each.ms:.3g}",
        "–" if each.ms_single is None else f"{each.ms_single:.3g}",
        "–" if each.parameters is None else f"{each.parameters / 1e6:.1f} M",
    ]


def _licences(candidates: Sequence[BackboneFigures]) -> str:
    """The licences of the published weights, each with its networks."""
    by_licence: dict[str, list[str]] = {}
    for each in candidates:
        by_licence.setdefault(each.licence or "not stated", []).append(each.name)
    return "; ".join(f"{licence}: {', '.join(names)}" for licence, names in by_licence.items())


def drawing(networks: list[tuple[str, BackboneFigures]]) -> list[str]:
    """Lines of text: accuracy upwards, milliseconds a picture to the right on a logarithmic scale, a letter for each
    network."""
    places = [(letter, math.log(max(1e-6, each.ms or 0)), each.accuracy or 0.0) for letter, each in networks]
    left, right = min(x for _, x, _ in places), max(x for _, x, _ in places)
    low, high = min(y for *_, y in places), max(y for *_, y in places)
    rows = [[" "] * _COLUMNS for _ in range(_ROWS)]
    for letter, x, y in places:
        column = round((x - left) / max(1e-9, right - left) * (_COLUMNS - 1))
        row = round((high - y) / max(1e-9, high - low) * (_ROWS - 1))
        while column < _COLUMNS - 1 and rows[row][column] != " ":  # networks with equal figures stand side by side
            column += 1
        rows[row][column] = letter
    names = {0: f"{high:.1%}", _ROWS - 1: f"{low:.1%}"}
    lines = [f"{names.get(number, ''):>8} │{''.join(row)}" for number, row in enumerate(rows)]
    ends = f"{math.exp(left):.2g} ms", f"{math.exp(right):.2g} ms a picture"
    lines.append(f"{'':>8} └{'─' * _COLUMNS}")
    lines.append(f"{'':>9} {ends[0]}{ends[1]:>{_COLUMNS - len(ends[0])}}")
    return lines
