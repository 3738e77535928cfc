"""Prints the results of a benchmark as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fewshot.evaluation.benchmark import BenchmarkReport, published_for, task_name
from fewshot.evaluation.measure import Result
from fewshot.evaluation.protocols import VerificationResult
from finetune.terminal import in_markup

# Width of a line if the output is not a terminal, in characters.
LOG_WIDTH = 150


def print_report(report: BenchmarkReport) -> None:
    """Print the results on stdout, each followed by the published ones."""
    table = Table(title=f"{in_markup(report.model)} ({report.fingerprint or 'no training'})", title_justify="left")
    for heading in ("protocol", "", "accuracy", "95 % interval", "trials"):
        table.add_column(heading, justify="left" if heading in ("protocol", "") else "right")
    for position, result in enumerate(report.results):
        table.add_row(task_name(result), in_markup(report.model), *_figures(result), style="bold")
        if report.differences:
            other, difference = report.against_results[position], report.differences[position]
            table.add_row("", in_markup(report.against or ""), *_figures(other))
            low, high = difference.interval
            gap = f"{100 * difference.difference:+.2f}", f"{100 * low:+.2f} to {100 * high:+.2f}"
            table.add_row("", f"difference, p = {difference.p:.4f}", *gap, "")
        for row in published_for(result):
            table.add_row("", f"{row.name} ({row.source})", f"{100 * row.accuracy:.1f}", "published", "", style="dim")
    console = Console(soft_wrap=True, emoji=False)
    if not console.is_terminal:
        console = Console(soft_wrap=True, emoji=False, width=LOG_WIDTH)  # lines of a file need not be wrapped
    console.print(table)
    for result in report.results:
        if isinstance(result, VerificationResult):
            console.print(
                f"{task_name(result)}: area under the ROC {100 * result.auc:.2f} ({_percent(result.auc_interval)}), "
                f"equal error rate {100 * result.eer:.2f} ({_percent(result.eer_interval)})"
            )
        if result.leaking:
            console.print(
                f"{task_name(result)}: {result.leaking} test characters were trained on; the accuracy is too high"
            )


def _percent(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}"


def _figures(result: Result) -> tuple[str, str, str]:
    low, high = result.interval
    return f"{100 * result.accuracy:.2f}", f"{100 * low:.1f} to {100 * high:.1f}", f"{result.trials:,}"
