"""A model measured by several protocols in one go, beside what was published; another one beside it where asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fewshot.expected_time import seconds_to_measure
from fewshot.measuring import NEEDED, Result, measure, refused
from fewshot.models import Model, open_model
from fewshot.omniglot.dataset import lake_runs, read_omniglot
from fewshot.paired import Difference, compare
from fewshot.protocols import ProtocolResult, VerificationResult
from fewshot.published import PUBLISHED, Published
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
