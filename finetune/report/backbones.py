"""Backbones compared: accuracy against cost as a chart, and as a page of its own."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from finetune.classifier.run_metrics import BackbonesMetrics
from finetune.errors import InputError
from finetune.files.reading import as_type
from finetune.files.writing import write_text
from finetune.linear.comparison import BackboneComparison
from finetune.report.charts import Band, Line, Mark, line_chart
from finetune.report.page import render


def write_comparison(path: str | Path, comparison: BackboneComparison, *, pictures: str = "these pictures") -> Path:
    """Write a comparison of backbones as a page: the choice, accuracy against cost, and the figures of each network.

    Args:
        path: The HTML file to write.
        comparison: What `compare_backbones` found.
        pictures: Name of the pictures, for the heading.

    Returns:
        `path`.

    Raises:
        InputError: If the file cannot be written.

    Example:
        >>> from finetune import Config, compare_backbones, write_comparison
        >>> found = compare_backbones("photos/", config=Config(backbones="fewtune_conv4", device="cpu"))
        >>> write_comparison("backbones.html", found, pictures="photos").name
        'backbones.html'
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} (--out) is a folder; name a file, such as {path / 'backbones.html'}")
    metrics = as_type(comparison.to_dict(), BackbonesMetrics, "comparison of backbones")
    page = render("backbones.html.j2", backbones=metrics, backbones_chart=cost_chart(metrics), name=pictures)
    write_text(path, page)
    return path


def cost_chart(found: BackbonesMetrics | None) -> Markup | None:
    """Cross-validated accuracy of each network over its milliseconds a picture; None without a measured network."""
    if found is None:
        return None
    measured = [each for each in found.candidates if each.left_out is None]
    points = [(each, each.ms, each.accuracy, each.interval) for each in measured]
    drawn = [
        (each, ms, accuracy, interval)
        for each, ms, accuracy, interval in points
        if ms is not None and accuracy is not None and interval is not None
    ]
    if not drawn:
        return None
    costs = [ms for _, ms, _, _ in drawn]
    chosen = next((ms for each, ms, _, _ in drawn if each.name == found.chosen), None)
    return line_chart(
        [Line(each.name, [ms], [accuracy]) for each, ms, accuracy, _ in drawn],
        title="Accuracy against cost, with 95% confidence intervals",
        x_label="milliseconds a picture, logarithmic",
        y_label="cross-validated accuracy of a linear probe",
        log_x=True,
        percent=True,
        x_range=(min(costs) / 1.6, max(costs) * 1.6),
        marks=[] if chosen is None else [Mark(chosen, f"taken: {found.chosen}")],
        bands=[Band(each.name, [ms], [interval[0]], [interval[1]]) for each, ms, _, interval in drawn],
    )
