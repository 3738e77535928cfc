"""A model measured by several protocols in one go, beside what was published; another one beside it where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fewshot.evaluation.intervals import Difference, compare
from fewshot.evaluation.measure import NEEDED, Result, measure, refused, seconds_to_measure
from fewshot.evaluation.models import Model, open_model
from fewshot.evaluation.protocols import ProtocolResult, VerificationResult
from fewshot.omniglot.dataset import lake_runs, read_omniglot
from finetune.errors import InputError
from finetune.progress import Display
from finetune.training.expected_time import in_words

# What stands for several protocols, and how their names begin.
SEVERAL = {"all": "", "all-way": "all-way-"}
LOG_WIDTH = 150


@dataclass(frozen=True)
class Report:
    """What `model` came to. skipped: protocol -> why it was not measured by it. differences: to `against`, in order."""

    model: str
    fingerprint: str | None
    results: tuple[Result, ...]
    skipped: dict[str, str]
    against: str | None = None
    against_fingerprint: str | None = None
    against_results: tuple[Result, ...] = ()
    differences: tuple[Difference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def benchmark(
    source: str,
    protocols: Sequence[str] = ("all",),
    *,
    against: str | None = None,
    views: int = 1,
    rerank: bool = False,
    allow_leaks: bool = False,
    seed: int = 0,
    data: Path | None = None,
    device: str = "auto",
    display: Display | None = None,
) -> Report:
    """Measure the model `source` (as open_model takes it) by `protocols`: names in NEEDED, or "all" or "all-way", which
    leave out those that it was trained on characters of, or is not made for. views and rerank are of `source`, as in
    open_model; `against` is measured plain.

    InputError for a protocol that is asked for by name and refused, and as read_omniglot and open_model raise it.
    """
    display = display or Display()
    model = open_model(source, views=views, rerank=rerank, device=device)
    other = None if against is None else open_model(against, device=device)
    models = [model] if other is None else [model, other]
    names, skipped = _chosen(models, protocols, allow_leaks)
    for line in skipped.values():
        display.say(f"left out: {line}")
    runs = lake_runs(data) if any(not NEEDED[name] for name in names) else []
    omniglot = read_omniglot(data) if any(NEEDED[name] for name in names) else None
    if display.console is not None:
        seconds = seconds_to_measure(models, names, omniglot, runs)
        display.say(f"measuring by {', '.join(names)}: {in_words(seconds)} from now on")
    results = [measure(each, omniglot, runs, protocols=names, seed=seed, allow_leaks=allow_leaks) for each in models]
    return Report(
        model=model.name,
        fingerprint=model.fingerprint,
        results=tuple(results[0]),
        skipped=skipped,
        against=other.name if other else None,
        against_fingerprint=other.fingerprint if other else None,
        against_results=tuple(results[-1]) if other else (),
        differences=tuple(compare(a, b, seed) for a, b in zip(results[0], results[1], strict=True)) if other else (),
    )


def _chosen(models: Sequence[Model], protocols: Sequence[str], allow_leaks: bool) -> tuple[list[str], dict[str, str]]:
    """The protocols to measure by; and of those that "all" or "all-way" stand for, the refused, with the reason."""
    names: list[str] = []
    skipped: dict[str, str] = {}
    for asked in protocols:
        several = [name for name in NEEDED if asked in SEVERAL and name.startswith(SEVERAL[asked])]
        for name in several or [asked]:
            reasons = [reason for model in models if (reason := refused(model, name, allow_leaks))]
            if not reasons:
                names.append(name)
            elif several:
                skipped[name] = reasons[0]
            else:
                raise InputError(reasons[0])
    if not names:
        raise InputError(f"no protocol may measure this model: {next(iter(skipped.values()))}")
    return list(dict.fromkeys(names)), skipped


def published_for(result: Result) -> tuple[Published, ...]:
    """What was published by the same protocol, way and shot; a figure of leaking characters is compared with none."""
    way, shot = (result.way, result.shot) if isinstance(result, ProtocolResult) else (2, 1)
    return () if result.leaking else PUBLISHED.get((result.protocol, way, shot), ())


def print_report(report: Report) -> None:
    """As a table on stdout: what was measured, each followed by what was published."""
    table = Table(title=f"{report.model} ({report.fingerprint or 'nothing learned'})", title_justify="left")
    for heading in ("protocol", "", "accuracy", "95 % interval", "trials"):
        table.add_column(heading, justify="left" if heading in ("protocol", "") else "right")
    for position, result in enumerate(report.results):
        table.add_row(shape_of(result), report.model, *_figures(result), style="bold")
        if report.differences:
            other, difference = report.against_results[position], report.differences[position]
            table.add_row("", report.against or "", *_figures(other))
            low, high = difference.interval
            gap = f"{100 * difference.difference:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}"
            table.add_row("", f"difference, p = {difference.p:.4f}", *gap, "")
        for row in published_for(result):
            table.add_row(
                "", f"{row.name} ({row.source})", f"{100 * row.accuracy:.1f}", "as published", "", style="dim"
            )
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(soft_wrap=True, width=LOG_WIDTH)  # a file has no width that lines would have to be broken at
    console.print(table)
    for result in report.results:
        if isinstance(result, VerificationResult):
            console.print(
                f"{shape_of(result)}: area under the ROC {100 * result.auc:.2f} ({_percent(result.auc_interval)}), "
                f"equal error rate {100 * result.eer:.2f} ({_percent(result.eer_interval)})"
            )
        if result.leaking:
            console.print(
                f"{shape_of(result)}: {result.leaking} characters tested on were trained on; not a fair figure"
            )


def shape_of(result: Result) -> str:
    """Like `vinyals 20-way 1-shot`."""
    if isinstance(result, ProtocolResult):
        return f"{result.protocol} {result.way}-way {result.shot}-shot"
    return f"{result.protocol} verification"


def _percent(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


def _figures(result: Result) -> tuple[str, str, str]:
    low, high = result.interval
    return f"{100 * result.accuracy:.2f}", f"{100 * low:.1f} to {100 * high:.1f}", f"{result.trials:,}"


@dataclass(frozen=True)
class Published:
    """accuracy: a fraction. source: where it stands. note: what one must know to compare."""

    name: str
    accuracy: float
    source: str
    note: str = ""


# Protocol, way and shot -> rows, best first. Koch's table 2 is the one that lectures show.
PUBLISHED: Mapping[tuple[str, int, int], tuple[Published, ...]] = {
    ("lake", 20, 1): (
        Published("ConvARC", 0.985, "Shyam et al. 2017", "compares pairs in the context of all supports; no embedding"),
        Published("Bayesian program learning", 0.967, "Lake et al. 2015", "learns from strokes"),
        Published("humans", 0.955, "Lake et al. 2015"),
        Published("hierarchical Bayesian program learning", 0.952, "Koch et al. 2015, table 2", "learns from strokes"),
        Published("convolutional Siamese network", 0.920, "Koch et al. 2015, table 2", "trained on 40 alphabets"),
        Published("affine model", 0.818, "Koch et al. 2015, table 2"),
        Published("hierarchical deep", 0.652, "Koch et al. 2015, table 2"),
        Published("deep Boltzmann machine", 0.620, "Koch et al. 2015, table 2"),
        Published("modified Hausdorff", 0.612, "Lake et al. 2015", "the official demo: 38.8 % error"),
        Published("Siamese network, fully connected", 0.583, "Koch et al. 2015, table 2"),
        Published("simple strokes", 0.352, "Koch et al. 2015, table 2"),
        Published("nearest neighbour in pixels", 0.217, "Koch et al. 2015, table 2"),
    ),
    ("lake-minimal", 20, 1): (
        Published("Bayesian program learning", 0.957, "Lake et al. 2015", "first minimal set; learns from strokes"),
        Published("deep convolutional network", 0.777, "Lake et al. 2015", "the better of the two minimal sets"),
    ),
    ("vinyals", 5, 1): (
        Published("Meta-Curvature MC2+", 0.9997, "Park & Oliva 2019"),
        Published("prototypical networks", 0.988, "Snell et al. 2017"),
        Published("matching networks", 0.981, "Vinyals et al. 2016"),
    ),
    ("vinyals", 5, 5): (
        Published("Meta-Curvature MC2+", 0.9989, "Park & Oliva 2019"),
        Published("prototypical networks", 0.997, "Snell et al. 2017"),
        Published("matching networks", 0.989, "Vinyals et al. 2016"),
    ),
    ("vinyals", 20, 1): (
        Published("Meta-Curvature MC2+", 0.9912, "Park & Oliva 2019"),
        Published("prototypical networks", 0.960, "Snell et al. 2017"),
        Published("matching networks", 0.938, "Vinyals et al. 2016"),
    ),
    ("vinyals", 20, 5): (
        Published("Meta-Curvature MC2+", 0.9965, "Park & Oliva 2019"),
        Published("prototypical networks", 0.989, "Snell et al. 2017"),
        Published("matching networks", 0.985, "Vinyals et al. 2016"),
    ),
    ("all-way-423", 423, 1): (Published("adaptive posterior learning", 0.735, "Ramalho & Garnelo 2019"),),
    ("koch", 2, 1): (
        Published(
            "convolutional Siamese network",
            0.9342,
            "Koch et al. 2015, table 1",
            "whether its threshold was chosen on validation pairs is not said",
        ),
    ),
}

# Learned without labels, by 20-way 1-shot of `vinyals` (as quoted by the papers that compare with them).
WITHOUT_LABELS: tuple[Published, ...] = (
    Published("Meta-GMVAE", 0.8221, "Lee et al. 2021"),
    Published("UMTRA", 0.7425, "Khodadadeh et al. 2019"),
    Published("ProtoTransfer", 0.7227, "Medina et al. 2020"),
    Published("AAL", 0.6879, "Antoniou & Storkey 2019"),
)
