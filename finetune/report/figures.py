"""The charts and sentences of a report, made from the results of a run; None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from finetune.classifier.run_metrics import (
    BudgetMetrics,
    EvaluationMetrics,
    ProbeCurveMetrics,
    ProbeMetrics,
    RunMetrics,
    SweepMetrics,
)
from finetune.metrics import (
    Curve,
    expected_calibration_error,
    precision_recall_curve,
    reliability,
    roc_curve,
    wilson_interval,
)
from finetune.report.charts import Band, Bar, Line, Mark, bar_chart, line_chart
from finetune.report.results import RunResults
from finetune.strategies import STRATEGIES

# Most classes with a curve of their own: those with the smallest area.
_CURVES = 5
_BINS = 10


def result_chart(metrics: RunMetrics | EvaluationMetrics) -> Markup | None:
    """Accuracy with its interval beside the baselines."""
    if metrics.accuracy is None or metrics.interval is None:
        return None
    bars = [Bar("this model", metrics.accuracy, *metrics.interval, highlighted=True)]
    if isinstance(metrics, RunMetrics):
        bars += [Bar(name, baseline.accuracy, *baseline.interval) for name, baseline in metrics.baselines.named()]
    return bar_chart(bars, title="Accuracy, with 95% confidence intervals", value_label="Accuracy", percent=True)


def probe_chart(curve: ProbeCurveMetrics | None) -> Markup | None:
    """Accuracy of a linear probe at every depth of the backbone, and on all depths together."""
    if curve is None:
        return None
    last = len(curve.probes)
    lines = [
        Line("one depth", range(last), [probe.accuracy for probe in curve.probes]),
        Line("all depths together", [last], [curve.together.accuracy]),
    ]
    bands = [_whiskers("one depth", 0, curve.probes), _whiskers("all depths together", last, [curve.together])]
    return line_chart(
        lines,
        title="Linear probe at every depth of the backbone",
        x_label="depth of the backbone, from input to output",
        y_label="cross-validated accuracy",
        percent=True,
        x_names=[*(probe.depth for probe in curve.probes), "all"],
        bands=bands,
    )


def squared_errors(curve: ProbeCurveMetrics | None) -> list[ProbeMetrics]:
    """The probes, that on all depths last; none where one lacks its squared error, as in older runs."""
    probes = [] if curve is None else [*curve.probes, curve.together]
    complete = all(None not in (probe.error, probe.less_error, probe.less_error_interval) for probe in probes)
    return probes if complete else []


def _whiskers(name: str, first: int, probes: Sequence[ProbeMetrics]) -> Band:
    places = range(first, first + len(probes))
    return Band(name, places, [probe.interval[0] for probe in probes], [probe.interval[1] for probe in probes])


def sweep_chart(sweep: SweepMetrics | None) -> Markup | None:
    """The smoothed loss of the learning-rate sweep up to where it diverges, and the rate that was used."""
    points = [(point.lr, point.smoothed) for point in sweep.points if point.smoothed is not None] if sweep else []
    if not points or sweep is None:
        return None
    rates, losses = [rate for rate, _ in points], [loss for _, loss in points]
    best = losses.index(min(losses))
    # Where a sweep ends the loss grows without bound, which would flatten the rest: only its first steps are drawn.
    low, high = losses[best], max(losses[: best + 1])
    room = 0.08 * (high - low) or 0.1
    end = next((place for place in range(best, len(losses)) if losses[place] > high + 2 * room), len(losses)) + 1
    return line_chart(
        [Line("loss", rates[:end], losses[:end])],
        title="Sweep of learning rates",
        x_label="learning rate of the head",
        y_label="smoothed loss, nats",
        log_x=True,
        y_range=(low - room, high + 2 * room),
        marks=[] if sweep.suggestion is None else [Mark(sweep.suggestion, f"used: {sweep.suggestion:.2g}")],
        dots=False,
    )


def training_charts(results: RunResults) -> list[Markup]:
    """Loss and accuracy over the epochs, the kept one marked."""
    history, best = results.history, 0 if results.run is None else results.run.best_epoch
    if not history:
        return []
    epochs = [row["epoch"] for row in history]
    marks = [Mark(best, f"kept: epoch {best}")] if best in epochs else []
    loss = [
        Line("training (augmented pictures)", epochs, [row["train_loss"] for row in history]),
        Line("validation", epochs, [row["val_loss"] for row in history]),
    ]
    accuracy = [Line("validation", epochs, [row["val_accuracy"] for row in history])]
    return [
        line_chart(loss, title="Loss", x_label="epoch", y_label="loss, nats", marks=marks),
        line_chart(
            accuracy, title="Validation accuracy", x_label="epoch", y_label="accuracy", percent=True, marks=marks
        ),
    ]


def budget_told(metrics: RunMetrics, budget: BudgetMetrics) -> str:
    """What a run did with the time that it was given, in words."""
    told = f"--minutes {budget.minutes:g}; {budget.planned_seconds:.0f} s planned, {budget.used_seconds:.0f} s used."
    if budget.epochs_planned:
        told += f" {metrics.epochs} epoch{'' if metrics.epochs == 1 else 's'} trained, {budget.epochs_planned} planned."
    if budget.pictures_read < budget.pictures_found:
        told += f" {budget.pictures_read:,} of {budget.pictures_found:,} pictures were read."
    return told


def kept_told(metrics: RunMetrics, keep: str = "best") -> str | None:
    """Which weights of a training were kept, in words; None where nothing was trained. keep: value of `--keep`."""
    best, strategy = metrics.best_epoch, STRATEGIES.get(metrics.strategy)
    if not metrics.epochs:
        return None
    stopped = ""
    if metrics.interrupted:
        stopped = f" Training was interrupted after epoch {metrics.epochs}; --resume continues it."
    if not best:
        return (
            "No epoch was kept: none was better on the validation pictures than the linear head on frozen features."
            + stopped
        )
    told = f"The weights of epoch {best} were kept."
    way = metrics.share_of_the_way
    pretrained = strategy is not None and strategy.start == "pretrained"
    if pretrained and keep == "trained":
        told += (
            " They were not compared with the linear head or mixed with the weights before training (--keep trained)."
        )
    tried = pretrained and keep == "best"
    if tried and way is not None and way < 1:
        told += (
            f" They are mixed with the weights before training ({way:.0%} trained, {1 - way:.0%} before), "
            "which was better on the validation pictures."
        )
    elif tried and way is not None and not stopped:  # an interrupted training tries no mixture
        told += " No mixture with the weights before training was better on the validation pictures."
    return told + stopped


def head_inputs(metrics: RunMetrics) -> list[tuple[str, str]]:
    """The depths that the classifier's head reads, and those of the baseline head where that is another head."""
    if not metrics.head_reads:
        return []
    found = [("input of the head", _depths(metrics.head_reads))]
    if metrics.frozen_head_reads and metrics.kept != "head":
        found.append(("input of the baseline head", f"{_depths(metrics.frozen_head_reads)}, frozen"))
    return found


def _depths(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} (last output of the backbone)" if names[0] == "features" else names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}, side by side"


@dataclass(frozen=True)
class Areas:
    """Areas under the curves by class, of the classes that can be measured. charts: the curves of the classes with the
    smallest area, and their mean over all classes."""

    roc: dict[str, float]
    precision_recall: dict[str, float]
    charts: tuple[Markup, Markup]

    @property
    def mean_roc(self) -> float:
        return sum(self.roc.values()) / len(self.roc)

    @property
    def mean_precision_recall(self) -> float:
        return sum(self.precision_recall.values()) / len(self.precision_recall)


def areas(results: RunResults) -> Areas | None:
    """One class against the rest, and the mean over classes (macro average)."""
    if results.log_probabilities is None:
        return None
    shares = results.log_probabilities.double().exp().numpy()
    labels = _labels(results).numpy()
    measured = [index for index in range(len(results.classes)) if 0 < (labels == index).sum() < len(labels)]
    if not measured:
        return None
    roc, precision = {}, {}
    roc_curves: dict[str, Curve] = {}
    precision_curves: dict[str, Curve] = {}
    for index in measured:
        name, truth, score = results.classes[index], labels == index, shares[:, index]
        false, true = roc_curves[name] = roc_curve(truth, score)
        roc[name] = float(np.trapezoid(true, false))
        recall, found = precision_curves[name] = precision_recall_curve(truth, score)
        precision[name] = float((np.diff(recall) * found[1:]).sum())  # average precision
    drawings = (
        _curves(
            precision_curves,
            precision,
            title="Precision and recall, each class against the others",
            x_label="recall: found pictures of the class",
            y_label="precision: correct among those found",
        ),
        _curves(
            roc_curves,
            roc,
            title="ROC curve, each class against the others",
            x_label="false positive rate",
            y_label="true positive rate",
            diagonal=True,
        ),
    )
    return Areas(roc, precision, drawings)


def _curves(curves: Mapping[str, Curve], area: Mapping[str, float], *, title: str, **labels: Any) -> Markup:
    """The mean over the classes, and the curves of those with the smallest area, which the legend says."""
    grid = np.linspace(0, 1, 101)
    mean = np.mean([np.interp(grid, *curve) for curve in curves.values()], axis=0)
    worst = sorted(curves, key=lambda name: area[name])[:_CURVES]
    average = sum(area.values()) / len(area)
    lines = [Line(f"mean of {len(area)} classes, area {average:.3f}", list(grid), list(mean), dashed=True)]
    for name in worst:
        x, y = curves[name]
        kept = np.unique(np.linspace(0, len(x) - 1, 150).round().astype(int))
        lines.append(Line(f"{name}, {area[name]:.3f}", x[kept].tolist(), y[kept].tolist()))
    return line_chart(
        lines, title=title, x_range=(0, 1), y_range=(0, 1), dots=False, percent=True, percent_x=True, **labels
    )


def reliability_chart(results: RunResults) -> Markup | None:
    """Accuracy of predictions by their probability, with intervals."""
    if results.log_probabilities is None or not results.answers:
        return None
    labels = _labels(results)
    bins = reliability(results.log_probabilities, labels, _BINS)
    places = [row.probability for row in bins]
    ends = [wilson_interval(round(row.accuracy * row.n), row.n) for row in bins]
    return line_chart(
        [Line("correct", places, [row.accuracy for row in bins])],
        title="Reliability: how often a prediction of this probability is correct",
        x_label="probability of the prediction",
        y_label="share of correct predictions",
        percent=True,
        percent_x=True,
        x_range=(0, 1),
        y_range=(0, 1),
        diagonal=True,
        bands=[Band("correct", places, [low for low, _ in ends], [high for _, high in ends])],
    )


def calibration_error(results: RunResults) -> float | None:
    """The expected calibration error of the probabilities; None where a run has not kept them."""
    if results.log_probabilities is None:
        return None
    return expected_calibration_error(results.log_probabilities, _labels(results))


def _labels(results: RunResults) -> torch.Tensor:
    position = {name: index for index, name in enumerate(results.classes)}
    return torch.tensor([position[answer.label] for answer in results.answers], dtype=torch.int64)
