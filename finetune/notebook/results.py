"""Displays of results: a prediction, a classifier, a probe curve, a comparison of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.notebook.parts import Bar, bars, block, line, muted, names, title

if TYPE_CHECKING:
    from finetune.classifier.answers.prediction import Prediction
    from finetune.classifier.classifier import Classifier
    from finetune.classifier.run_metrics import RunMetrics
    from finetune.linear.comparison import BackboneComparison
    from finetune.linear.probe import ProbeCurve

# Most classes of a prediction, and most names in a list.
_MOST_BARS, _MOST_NAMES = 10, 12
_SPLITS = {"test": "test pictures", "val": "validation pictures, which also served to choose"}


def prediction_html(found: Prediction) -> str:
    """The answer, and the most probable classes."""
    answer, words = found.label, ""
    if found.unknown:
        answer, words = "unknown", f"It is like none of the classes; the nearest is {found.label}."
    elif found.unsure:
        answer, words = "unsure", f"It is between classes; the most probable is {found.label}."
    pale = found.unknown or found.unsure
    rows = [Bar(label, share, f"{share:.1%}", pale=pale) for label, share in found.top[:_MOST_BARS]]
    parts = [title(answer), line(words) if words else "", bars(rows)]
    return block(*parts, muted(found.path) if found.path is not None else "")


def classifier_html(classifier: Classifier) -> str:
    """What it is, its classes, and its accuracy beside that of the baselines."""
    count, metrics = len(classifier.classes), classifier.run_metrics
    parts = [title(f"Classifier of {count:,} classes"), line(names(classifier.classes, count, _MOST_NAMES))]
    made = [f"backbone {classifier.config.backbone}"]
    if metrics is not None:
        made.append(f"strategy {metrics.kept or metrics.strategy}")
        if metrics.accuracy is not None and metrics.interval is not None and metrics.split is not None:
            parts.append(bars(_accuracies(metrics)))
            parts.append(muted(f"Accuracy with 95 % intervals on {metrics.n:,} {_SPLITS[metrics.split]}."))
        else:
            parts.append(line("Not measured: the run has no validation and no test picture."))
    place = classifier.address or classifier.folder
    return block(*parts, muted("; ".join(made + ([] if place is None else [str(place)]))))


def _accuracies(metrics: RunMetrics) -> list[Bar]:
    found = [("this classifier", metrics.accuracy or 0.0, metrics.interval, False)]
    found += [(name, each.accuracy, each.interval, True) for name, each in metrics.baselines.named()]
    return [Bar(name, share, f"{share:.1%}", interval, pale=pale) for name, share, interval, pale in found]


def curve_html(curve: ProbeCurve) -> str:
    """The accuracy of the probe of every depth."""
    rows = []
    for probe in (*curve.probes, curve.together):
        best = probe is curve.best
        words = f"{probe.accuracy:.1%}" + (", least error" if best else "")
        rows.append(Bar(probe.depth, probe.accuracy, words, probe.interval, pale=not best))
    likeness = "differ from" if curve.different else "are like"
    return block(
        title("Probe curve"),
        line(f"The pictures {likeness} those that the backbone was trained on."),
        bars(rows),
        muted(
            f"Cross-validated accuracy of a linear probe at each depth, with 95 % intervals; {curve.pictures:,} "
            f"pictures, {curve.classes:,} classes."
        ),
    )


def comparison_html(found: BackboneComparison) -> str:
    """The networks with their accuracies and their times, and the one to take."""
    rows = []
    for each in found.candidates:
        if each.accuracy is not None:
            time = "" if each.ms is None else f", {each.ms:.2g} ms a picture"
            chosen = each is found.taken
            rows.append(Bar(each.name, each.accuracy, f"{each.accuracy:.1%}{time}", each.interval, pale=not chosen))
    out = [f"{each.name} is left out: {each.left_out}." for each in found.candidates if each.left_out is not None]
    return block(
        title(found.chosen),
        line(found.reason),
        bars(rows),
        muted(
            f"Cross-validated accuracy of probes with 95 % intervals, on {found.pictures:,} of {found.of:,} pictures."
        ),
        *(muted(each) for each in out),
    )
