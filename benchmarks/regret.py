"""Regret of `auto`, from the runs of benchmarks/transfer.py: how far it is below the best method in hindsight."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from simple import SIMPLE

# Methods that hindsight may take. Logistic regression with a strength known in hindsight is not among them.
TRAINED = ("partial", "full", "train", "scratch")
HINDSIGHT = ("head", *TRAINED, *SIMPLE)
ORDER = ("1", "2", "5", "10", "20", "50", "all")
RESAMPLES = 4000

Interval = tuple[float, float]


@dataclass(frozen=True)
class Cell:
    """One data set at one size.

    Attributes:
        dataset: Name of the data set.
        size: Pictures of each class, or "all".
        draws: Accuracy of each method by seed; only draws that `auto` has run on.
        took: Strategy that `auto` took, by seed.
    """

    dataset: str
    size: str
    draws: Mapping[int, Mapping[str, float]]
    took: Mapping[int, str]

    @property
    def name(self) -> str:
        return f"{self.dataset}, {self.size} a class"

    @property
    def auto(self) -> float:
        """Mean accuracy of `auto`."""
        return statistics.mean(draw["auto"] for draw in self.draws.values())

    def less(self, method: str) -> dict[int, float]:
        """Points by which `auto` is below a method, by seed of the draws that both have."""
        return {
            seed: 100 * (draw[method] - draw["auto"])
            for seed, draw in self.draws.items()
            if draw.get(method) is not None
        }

    @property
    def best(self) -> str:
        """The method of HINDSIGHT with the largest mean difference from `auto`."""
        found = {method: self.less(method) for method in HINDSIGHT}
        return max((method for method, less in found.items() if less), key=lambda m: statistics.mean(found[m].values()))

    @property
    def best_accuracy(self) -> float:
        """Mean accuracy of the best method, on the draws that it has."""
        return statistics.mean(draw[self.best] for draw in self.draws.values() if self.best in draw)

    @property
    def regret(self) -> float:
        """Points by which `auto` is below the method that is best by the mean over draws."""
        return statistics.mean(self.less(self.best).values())

    @property
    def regret_of_draws(self) -> dict[int, float]:
        """Points by which `auto` is below the best method of each single draw, by seed."""
        return {
            seed: 100 * (max(value for method, value in draw.items() if method in HINDSIGHT) - draw["auto"])
            for seed, draw in self.draws.items()
        }


def backbones(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the backbones, in the order in which they were begun."""
    return list(dict.fromkeys(run["backbone"] for run in runs))


def cells(runs: Sequence[Mapping[str, Any]], backbone: str) -> list[Cell]:
    """The cells of a backbone, by size and then by data set; draws without `auto` or without a rival are left out."""
    draws: dict[tuple[str, str], dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    took: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for run in runs:
        if run["backbone"] != backbone:
            continue
        key, seed = (run["dataset"], run["size"]), run["seed"]
        found = run["accuracy"] if run["method"] == "simple" else {run["method"]: run["accuracy"]}
        draws[key][seed] |= found
        if run["method"] == "auto":
            took[key][seed] = run["took"]
    made = []
    for (dataset, size), by_seed in draws.items():
        whole = {s: dict(draw) for s, draw in by_seed.items() if "auto" in draw and set(draw) & set(HINDSIGHT)}
        if whole:
            made.append(Cell(dataset, size, whole, took[dataset, size]))
    return sorted(made, key=lambda cell: (ORDER.index(cell.size), cell.dataset))


def interval(found: Sequence[Cell], methods: Sequence[str | None]) -> Interval | None:
    """95 % bootstrap interval of the mean over cells of the points below a method.

    Seeds are resampled within each data set, and every cell of the data set gets the same seeds: the draws of one seed
    share pictures. methods: for each cell; None for the best of each draw. None where no cell has two draws.
    """
    less = [
        cell.regret_of_draws if method is None else cell.less(method)
        for cell, method in zip(found, methods, strict=True)
    ]
    seeds = {
        cell.dataset: sorted({s for other in found if other.dataset == cell.dataset for s in other.draws})
        for cell in found
    }
    if max(len(by) for by in less) < 2:
        return None
    random, means = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        taken = {dataset: random.choice(of, len(of)) for dataset, of in seeds.items()}
        each = [[by[s] for s in taken[cell.dataset] if s in by] for cell, by in zip(found, less, strict=True)]
        if any(each):
            means.append(np.mean([np.mean(values) for values in each if values]))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def rows(found: Sequence[Cell]) -> list[tuple[str, ...]]:
    """Cells of a table: data set, size, `auto`, what it took, best method, its accuracy, regret, regret of draws."""
    table = list[tuple[str, ...]]()
    for cell in found:
        took = Counter(cell.took.values())
        names = ", ".join(f"{name} {count}" if len(took) > 1 else name for name, count in took.most_common())
        of_draws = statistics.mean(cell.regret_of_draws.values())
        table.append(
            (
                cell.dataset,
                cell.size,
                f"{cell.auto:.1%} ({len(cell.draws)})",
                names,
                f"{cell.best} {cell.best_accuracy:.1%} ({len(cell.less(cell.best))})",
                f"{cell.regret:.1f}{_between(interval([cell], [cell.best]))}",
                f"{of_draws:.1f}",
            )
        )
    return table


HEADINGS = (
    "data set",
    "pictures a class",
    "`auto` (draws)",
    "it took",
    "best method by mean (draws)",
    "`auto` below it, points",
    "below the best of each draw",
)


def summary(runs: Sequence[Mapping[str, Any]]) -> str:
    """Mean regret and largest regret of a cell, for each backbone, as sentences."""
    told = []
    for backbone in backbones(runs):
        found = cells(runs, backbone)
        if not found:
            continue
        best = [cell.best for cell in found]
        worst = max(found, key=lambda cell: cell.regret)
        mean = statistics.mean(cell.regret for cell in found)
        of_draws = statistics.mean(statistics.mean(cell.regret_of_draws.values()) for cell in found)
        told.append(
            f"{backbone}, {len(found)} (data set, size) pairs, {sum(len(cell.draws) for cell in found)} draws: against "
            f"the method that is best by mean, `auto` is {mean:.2f} points below on average"
            f"{_between(interval(found, best), 2)} and {worst.regret:.1f} at most"
            f"{_between(interval([worst], [worst.best]))}, on {worst.name} ({worst.best}). Against the best method of "
            f"each single draw it is {of_draws:.2f} points below{_between(interval(found, [None] * len(found)), 2)}; "
            "the largest of several noisy accuracies is too high by chance, so this is an upper bound. "
            + trained_beside_head(runs, backbone)
        )
    return "\n\n".join(told)


def trained_beside_head(runs: Sequence[Mapping[str, Any]], backbone: str) -> str:
    """How far the strategies as trained are above or below the head, as a sentence; empty where none was trained."""
    found: dict[str, list[float]] = defaultdict(list)
    for cell in cells(runs, backbone):
        for draw in cell.draws.values():
            for method in TRAINED:
                if method in draw and "head" in draw:
                    found[method].append(100 * (draw[method] - draw["head"]))
    told = [
        f"`{method}` {statistics.mean(points):+.1f} on average, {min(points):+.1f} to {max(points):+.1f} "
        f"({len(points)} draws)"
        for method, points in found.items()
    ]
    return f"As trained, above the head, in points: {'; '.join(told)}." if told else ""


def _between(found: Interval | None, digits: int = 1) -> str:
    return "" if found is None else f" ({found[0]:.{digits}f} to {found[1]:.{digits}f})"
