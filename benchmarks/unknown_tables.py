"""The tables of docs/unknown.md, of the rows of benchmarks/results/unknown.json that chose nothing."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
NAMES = {
    "softmax": "largest softmax",
    "logit": "largest logit",
    "energy": "energy",
    "mahalanobis": "Mahalanobis",
    "relative mahalanobis": "relative Mahalanobis",
    "nearest": "five nearest pictures",
    "product": "`finetune predict`",
}
PARTS = {
    "product": "as it is: cosine and ridge output, three depths",
    "and margin": "and the ridge output's lead over the second class",
    "and nearest": "and the mean cosine with the five nearest pictures",
    "and variance": "and minus the predictive variance of a ridge regression",
    "and shuffled": "and a regression against shuffled pictures",
    "and halves": "and a regression against halves of two classes",
    "and blends": "and a regression against blends of two classes",
    "cosine beside that of its class": "the cosine less the usual one of its class",
    "3 depths": "three depths",
    "1 depths": "the features alone",
    "5 depths": "five depths",
    "learned weights": "weights learned from held-out classes",
    "learned weights of all": "weights of six parts learned from held-out classes",
}
CLASSES = {"many": "all but some", "two": "two"}


def judging(result: Row) -> list[Row]:
    """Rows of networks and sets that neither the score nor a constant was chosen on."""
    chosen = set(result["chosen_on"])
    return [row for row in result["rows"] if row["set"] not in chosen or row["backbone"] != "tf_mobilenetv3_small_100"]


def score_rows(result: Row) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """AUROC of every score, near and far: mean over the sets, and the set with the least."""
    rows = [row for row in judging(result) if row["classes"] == "many"]
    sizes = sorted({row["size"] for row in rows})
    table = []
    for score, name in NAMES.items():
        cells = []
        for kind in ("near", "far"):
            for size in sizes:
                means = by_set([row for row in rows if row["size"] == size], "scores", score, kind, 0)
                cells.append(f"{statistics.mean(means.values()):.3f} ({min(means.values()):.2f})")
        table.append((name, *cells))
    return ("score", *(f"{kind}, {size}" for kind in ("near", "far") for size in sizes)), table


def rate_rows(result: Row) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """What the thresholds let pass beside the rate asked for, and what they refuse of the classes."""
    table = []
    for classes, called in CLASSES.items():
        for size in (5, 10, 50):
            rows = [row for row in judging(result) if (row["classes"], row["size"]) == (classes, size)]
            for place, rate in enumerate(result["rates"]):
                if rate not in (0.05, 0.1, 0.2):
                    continue
                cells = []
                for how in ("threshold", "with_background"):
                    for kind in ("near", "far", "refused"):
                        means = by_set(rows, how, place, kind)
                        cells.append(shares(means))
                table.append((called, str(size), f"{rate:.0%}", *cells))
    headings = ("classes", "pictures a class", "asked", "near accepted", "far accepted", "classes refused")
    given = ("near, with background", "far, with background", "refused, with background")
    return (*headings, *given), table


def shift_rows(result: Row) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Pictures of the classes that are refused at 5 % and at 20 %, by where they come from: means over draws."""
    ways = ("threshold", "with_background", "with_other_background", "with_added")
    table = []
    for name, size in dict.fromkeys((row["set"], row["size"]) for row in result["shifts"]):
        rows = [row["refused"] for row in result["shifts"] if (row["set"], row["size"]) == (name, size)]
        for source in [each for each in rows[0] if each != "unknown accepted"]:
            if (name, source) == ("steel-defects", "grey"):
                continue  # they are grey
            cells = [
                " / ".join(
                    f"{statistics.mean(row[source][way][result['rates'].index(rate)] for row in rows):.0%}"
                    for rate in (0.05, 0.2)
                )
                for way in ways
            ]
            table.append((name, str(size), source, mean_of(row[source]["accuracy"] for row in rows), *cells))
    headings = ("set", "pictures a class", "the pictures", "accuracy", "refused at 5 % / 20 %")
    return (*headings, "background of the left-out class", "background of another set", "5 more a class learned"), table


def part_rows(result: Row) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Of each way to score in benchmarks/unknown_parts.py: AUROC and the share refused, means over sets and sizes; and
    in how many of these fewer are refused than by the score as it is."""
    found: dict[str, dict[tuple[str, int], list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row in result["rows"]:
        for way, values in row["ways"].items():
            found[way][row["set"], row["size"]].append(values)
    means = {
        way: {cell: [statistics.mean(column) for column in zip(*rows, strict=True)] for cell, rows in cells.items()}
        for way, cells in found.items()
    }
    table = []
    for way, cells in means.items():
        fewer = sum(values[2] < means["product"][cell][2] for cell, values in cells.items())
        columns = [[values[place] for values in cells.values()] for place in (0, 2, 3)]
        auroc, *refused = (statistics.mean(column) for column in columns)
        better = "" if way == "product" else f"{fewer} of {len(cells)}"
        table.append((PARTS.get(way, way), f"{auroc:.3f}", *(f"{share:.1%}" for share in refused), better))
    return ("score", "AUROC", "refused where 5 % pass", "refused where 20 % pass", "fewer refused at 5 %"), table


def mean_of(values: Iterable[float]) -> str:
    return f"{statistics.mean(values):.0%}"


def summary(result: Row) -> str:
    """How far the accepted share is from the rate asked for, over sets, sizes and rates of 5 to 20 %."""
    apart: list[float] = []
    for size in (5, 10, 50):
        rows = [row for row in judging(result) if (row["classes"], row["size"]) == ("many", size)]
        for place, rate in enumerate(result["rates"]):
            if rate >= 0.05:
                means = by_set(rows, "threshold", place, "near")
                apart += [100 * (value - rate) for value in means.values()]
    mean, spread = statistics.mean(apart), statistics.stdev(apart)
    return (
        f"Over sets, 5 to 50 pictures a class and rates of 5 to 20 %, the share of near unknown pictures that passes "
        f"differs from the rate asked for by {mean:+.1f} points on average, with a standard deviation of {spread:.1f}: "
        f"from {min(apart):+.0f} to {max(apart):+.0f} points."
    )


def by_set(rows: Sequence[Row], *path: str | int) -> dict[tuple[str, str], float]:
    """Means over the draws of each set and network of the number at a path; rows without it are left out."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        value: Any = row
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else value[key] if value else None
        if value is not None:
            found[row["set"], row["backbone"]].append(value)
    return {key: statistics.mean(values) for key, values in found.items()}


def shares(means: Mapping[Any, float]) -> str:
    """The mean over sets, with the least and the most."""
    values = list(means.values())
    return f"{statistics.mean(values):.0%} ({min(values):.0%} to {max(values):.0%})"
