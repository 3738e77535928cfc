"""The charts of a report, each from the findings; None where there is nothing to draw it from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from finetune.metrics import expected_calibration_error, reliability, wilson_interval
from finetune.report.charts import Band, Bar, Line, Mark, bar_chart, line_chart
from finetune.report.results import RunResults
from finetune.strategies import BASELINES, STRATEGIES

# So many classes have a curve of their own; of more, those with the least area.
_CURVES = 5
_BINS = 10

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def result_chart(metrics: Mapping[str, Any]) -> Markup:
    """Accuracy with its interval beside the baselines."""
    low, high = metrics["interval"]
    bars = [Bar("this model", metrics["accuracy"], low, high, highlighted=True)]
    for key, name in BASELINES.items():
        if key in metrics.get("baselines", {}):
            baseline = metrics["baselines"][key]
            bars.append(Bar(name, baseline["accuracy"], *baseline["interval"]))
    return bar_chart(bars, title="Accuracy, with 95% confidence intervals", value_label="Accuracy", percent=True)


def probe_chart(curve: Mapping[str, Any] | None) -> Markup | None:
    """Accuracy of a linear probe at every depth of the backbone, and on all depths together."""
    if not curve:
        return None
    probes, together = curve["probes"], curve["together"]
    last = len(probes)
    lines = [
        Line("one depth", range(last), [probe["accuracy"] for probe in probes]),
        Line("all depths together", [last], [together["accuracy"]]),
    ]
    bands = [_whiskers("one depth", 0, probes), _whiskers("all depths together", last, [together])]
    return line_chart(
        lines,
        title="Linear probe at every depth of the backbone",
        x_label="depth of the backbone, from input to output",
        y_label="cross-validated accuracy",
        percent=True,
        x_names=[*(probe["depth"] for probe in probes), "all"],
        bands=bands,
    )


def _whiskers(name: str, first: int, probes: Sequence[Mapping[str, Any]]) -> Band:
    places = range(first, first + len(probes))
    return Band(name, places, [probe["interval"][0] for probe in probes], [probe["interval"][1] for probe in probes])


def sweep_chart(sweep: Mapping[str, Any] | None) -> Markup | None:
    """The smoothed loss of the sweep of learning rates, as far as its shape can be read, and the rate it suggests."""
    points = [point for point in (sweep or {}).get("points", []) if point["smoothed"] is not None]
    if not points:
        return None
    losses = [point["smoothed"] for point in points]
    best = losses.index(min(losses))
    # Where a sweep ends the loss grows without bound, which would flatten the rest: only its first steps are drawn.
    low, high = losses[best], max(losses[: best + 1])
    room = 0.08 * (high - low) or 0.1
    end = next((place for place in range(best, len(losses)) if losses[place] > high + 2 * room), len(losses)) + 1
    suggestion = (sweep or {}).get("suggestion")
    return line_chart(
        [Line("loss", [point["lr"] for point in points[:end]], losses[:end])],
        title="Sweep of learning rates",
        x_label="learning rate of the head",
        y_label="smoothed loss, nats",
        log_x=True,
        y_range=(low - room, high + 2 * room),
        marks=[] if suggestion is None else [Mark(suggestion, f"used: {suggestion:.2g}")],
        dots=False,
    )


def training_charts(findings: RunResults) -> list[Markup]:
    """Loss and accuracy over the epochs, the kept one marked."""
    history, best = findings.history, findings.metrics.get("best_epoch", 0)
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


def kept_told(metrics: Mapping[str, Any]) -> str | None:
    """Which weights of a training were kept, in words; None where nothing was trained."""
    best, strategy = metrics.get("best_epoch", 0), STRATEGIES.get(str(metrics.get("strategy")))
    if not metrics.get("epochs"):
        return None
    stopped = ""
    if metrics.get("interrupted"):
        stopped = f" Training was interrupted after epoch {metrics['epochs']}; --resume continues it."
    if not best:
        return (
            "No epoch was kept: none was better on the validation pictures than the linear head on frozen features."
            + stopped
        )
    told = f"The weights of epoch {best} were kept."
    way = metrics.get("share_of_the_way")
    tried = strategy is not None and strategy.start == "pretrained"
    if tried and way is not None and way < 1:
        told += (
            f" They are mixed with the weights before training ({way:.0%} trained, {1 - way:.0%} before), "
            "which was better on the validation pictures."
        )
    elif tried and way is not None and not stopped:  # an interrupted training tries no mixture
        told += " No mixture with the weights before training was better on the validation pictures."
    return told + stopped


def head_inputs(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the head of the classifier reads, and what the baseline head reads where that is another head."""
    kept, reads, frozen = metrics.get("kept"), metrics.get("head_reads"), metrics.get("frozen_head_reads")
    if not reads:
        return []
    found = [("input of the head", _depths(reads))]
    if frozen and kept != "head":
        found.append(("input of the baseline head", f"{_depths(frozen)}, frozen"))
    return found


def _depths(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} (last output of the backbone)" if names[0] == "features" else names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}, side by side"


@dataclass(frozen=True)
class Areas:
    """How well each class is told from the rest. roc, precision_recall: area by class, of those that can be measured.

    charts: the two curves, of the classes with the least area and the mean over all.
    """

    roc: dict[str, float]
    precision_recall: dict[str, float]
    charts: tuple[Markup, Markup]

    @property
    def mean_roc(self) -> float:
        return sum(self.roc.values()) / len(self.roc)

    @property
    def mean_precision_recall(self) -> float:
        return sum(self.precision_recall.values()) / len(self.precision_recall)


def areas(findings: RunResults) -> Areas | None:
    """One class against the rest, and the mean over classes (macro average)."""
    from sklearn.metrics import auc, precision_recall_curve, roc_curve

    if findings.log_probabilities is None:
        return None
    shares = findings.log_probabilities.double().exp().numpy()
    labels = _labels(findings).numpy()
    measured = [index for index in range(len(findings.classes)) if 0 < (labels == index).sum() < len(labels)]
    if not measured:
        return None
    roc, precision = {}, {}
    roc_curves: dict[str, Curve] = {}
    precision_curves: dict[str, Curve] = {}
    for index in measured:
        name, truth, score = findings.classes[index], labels == index, shares[:, index]
        roc_curves[name] = roc_curve(truth, score)[:2]
        roc[name] = float(auc(*roc_curves[name]))
        found, recall, _ = precision_recall_curve(truth, score)
        precision[name] = float(-(np.diff(recall) * found[:-1]).sum())  # average precision, as its definition has it
        precision_curves[name] = recall[::-1], found[::-1]
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
    """The mean over classes and the curves of those with the least area, the area in the legend."""
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


def reliability_chart(findings: RunResults) -> Markup | None:
    """How often predictions of each probability are right, with intervals."""
    if findings.log_probabilities is None or not findings.answers:
        return None
    labels = _labels(findings)
    bins = reliability(findings.log_probabilities, labels, _BINS)
    places = [row["probability"] for row in bins]
    ends = [wilson_interval(round(row["accuracy"] * row["n"]), row["n"]) for row in bins]
    return line_chart(
        [Line("correct", places, [row["accuracy"] for row in bins])],
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


def calibration_error(findings: RunResults) -> float | None:
    """The expected calibration error of the probabilities as the run gives them, where it has kept them."""
    if findings.log_probabilities is None:
        return None
    return expected_calibration_error(findings.log_probabilities, _labels(findings))


def _labels(findings: RunResults) -> torch.Tensor:
    position = {name: index for index, name in enumerate(findings.classes)}
    return torch.tensor([position[answer.label] for answer in findings.answers], dtype=torch.int64)
