"""The page of a report, as HTML."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup

from fewshot.evaluation.benchmark import BenchmarkReport, published_for, task_name
from fewshot.evaluation.measure import Result
from fewshot.evaluation.protocols import VerificationResult
from fewshot.report.curves import VerificationCurves
from fewshot.report.hardest import HardAlphabet, HardClass, WayCurve, WrongNeighbour
from fewshot.report.held_out import HeldOutPictures
from fewshot.report.map import Map
from fewshot.report.run import TrainedRun, facts, training_charts
from finetune.report.charts import Band, Bar, Line, Mark, bar_chart, line_chart
from finetune.report.page import render

# Pictures of a hard class and of the class that it is confused with; pictures of a group of the map.
_SHOWN, _SHOWN_OF_GROUP = 3, 7

# The question of each protocol.
QUESTIONS = {
    "lake": "20 runs: which of 20 characters of one alphabet does a drawing show? One example of each is known.",
    "lake-minimal": "the same, for an encoder trained on five alphabets only",
    "within": "the same, with random alphabets, characters and drawers",
    "koch": "do two drawings show the same character, or two characters of one alphabet?",
    "vinyals": "characters of mixed alphabets; each of the four rotations counts as a separate character",
    "vinyals-upright": "the same, without rotations",
    "all-way": "one question about all characters at once",
}


@dataclass(frozen=True, eq=False)
class EncoderFindings:
    """Contents of a report.

    notes: What could not be measured, and why. The fields after `seed` are filled if there were pictures to test on.
    """

    trained: TrainedRun
    report: BenchmarkReport
    notes: tuple[str, ...]
    seed: int
    tested: HeldOutPictures | None = None
    curves: Sequence[WayCurve] = ()
    alphabets: Sequence[HardAlphabet] = ()
    classes: Sequence[HardClass] = ()
    wrong: tuple[int, int, list[WrongNeighbour]] | None = None
    pairs: VerificationCurves | None = None
    map: Map | None = None


def page_of(found: EncoderFindings) -> str:
    """Render the page."""
    recipe = found.trained.config["recipe"]
    return render(
        "omniglot.html.j2",
        package="fewshot.report",
        name=found.trained.name,
        on_omniglot=found.trained.on_omniglot,
        notes=found.notes,
        tested=found.tested,
        kinds=("character", "characters", "drawing") if _drawn(found) else ("class", "classes", "picture"),
        headline=_headline(found),
        protocols=[_protocol(result) for result in found.report.results],
        questions=_questions(found.report.results),
        lake=_lake(found.report.results),
        skipped=[f"{name}: {reason.removeprefix(f'{name}: ')}" for name, reason in found.report.skipped.items()],
        curves=_curves(found.curves),
        alphabets=_alphabets(found),
        classes=[_hard(found.tested, hard) for hard in found.classes] if found.tested else [],
        wrong=_wrong(found),
        pairs=found.pairs,
        verification=_verification(found),
        map=found.map,
        colours=_colours(found),
        facts=facts(found.trained),
        training_charts=training_charts(found.trained),
        command=found.trained.command,
        recipe=[(option, "chosen by the run" if value is None else value) for option, value in recipe.items()],
        seed=found.seed,
        versions=f"Python {platform.python_version()}, torch {torch.__version__}",
    )


def _drawn(found: EncoderFindings) -> bool:
    return found.tested is not None and found.tested.grouped


def _headline(found: EncoderFindings) -> dict[str, Any] | None:
    """The headline: 20-way one-shot accuracy of the first protocol, or of the curve."""
    results = found.report.results
    if results:
        leading = [result for result in results if result.protocol == results[0].protocol]
        first = next((result for result in leading if "20-way 1-shot" in task_name(result)), leading[0])
        return {
            "accuracy": first.accuracy,
            "interval": first.interval,
            "what": f"{task_name(first)}, {first.trials:,} questions",
        }
    if found.curves:
        first_curve = found.curves[0]
        point = min(first_curve.points, key=lambda each: abs(each.way - 20))
        what = f"{point.way}-way 1-shot, {point.trials:,} questions"
        return {"accuracy": point.accuracy, "interval": point.interval, "what": what}
    return None


def _protocol(result: Result) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "shape": task_name(result),
        "accuracy": result.accuracy,
        "interval": result.interval,
        "trials": result.trials,
        "tested": result.tested,
        "published": published_for(result),
        "also": None,
    }
    if isinstance(result, VerificationResult):
        shown["also"] = (
            f"area under the ROC curve {100 * result.auc:.1f}% ({_interval(result.auc_interval)}), "
            f"equal error rate {100 * result.eer:.1f}% ({_interval(result.eer_interval)})"
        )
    return shown


def _questions(results: Sequence[Result]) -> list[tuple[str, str]]:
    """The questions of the measured protocols, one for each kind, as (name, question)."""
    measured = dict.fromkeys(result.protocol for result in results)
    kinds = dict.fromkeys("all-way" if name.startswith("all-way") else name for name in measured)
    return [(kind, QUESTIONS[kind]) for kind in kinds]


def _lake(results: Sequence[Result]) -> dict[str, Any] | None:
    """Lake's runs as a bar chart with the published accuracies."""
    measured = next((result for result in results if result.protocol in ("lake", "lake-minimal")), None)
    if measured is None:
        return None
    low, high = measured.interval
    bars = [Bar("this encoder", measured.accuracy, low, high, highlighted=True)]
    published = published_for(measured)
    bars += [Bar(row.name, row.accuracy) for row in published]
    ranked = sorted(bars, key=lambda bar: -bar.value)
    chart = bar_chart(ranked, title="Lake's 20 runs: 20-way one-shot", value_label="accuracy", percent=True)
    return {"chart": chart, "published": published}


def _curves(curves: Sequence[WayCurve]) -> Markup | None:
    if not curves:
        return None
    lines, bands = [], []
    # Equal steps between ways, which are about evenly spaced in logarithms.
    ways = sorted({point.way for curve in curves for point in curve.points})
    for curve in curves:
        examples = "1 example of each" if curve.shot == 1 else f"{curve.shot} examples of each"
        name = examples + (", one alphabet" if curve.inside else "")
        places = [ways.index(point.way) for point in curve.points]
        lines.append(Line(name, places, [point.accuracy for point in curve.points], dashed=curve.inside))
        low, high = zip(*(point.interval for point in curve.points), strict=True)
        bands.append(Band(name, places, low, high, filled=True))
    return line_chart(
        lines,
        title="Accuracy by number of classes",
        x_label="number of classes to choose among (way)",
        y_label="accuracy",
        percent=True,
        x_names=[str(way) for way in ways],
        bands=bands,
    )


def _alphabets(found: EncoderFindings) -> Markup | None:
    if not found.alphabets or found.tested is None:
        return None
    bars = [
        Bar(found.tested.groups[hard.group], hard.accuracy, *hard.interval, highlighted=True)
        for hard in found.alphabets
    ]
    title = f"{found.alphabets[0].way}-way 1-shot accuracy within each alphabet, hardest first"
    return bar_chart(bars, title=title, value_label="accuracy", percent=True)


def _hard(tested: HeldOutPictures, hard: HardClass) -> dict[str, Any]:
    return {
        "name": tested.names[hard.label],
        "taken_for": tested.names[hard.taken_for],
        "accuracy": hard.accuracy,
        "taken": hard.taken,
        "way": hard.way,
        "own": _examples(tested, hard.label),
        "other": _examples(tested, hard.taken_for),
    }


def _examples(tested: HeldOutPictures, label: int) -> list[str]:
    return [tested.picture(row) for row in (tested.embedded.label == label).nonzero()[:_SHOWN, 0].tolist()]


def _wrong(found: EncoderFindings) -> dict[str, Any] | None:
    if found.wrong is None or found.tested is None:
        return None
    count, asked, worst = found.wrong
    tested, names = found.tested, found.tested.names
    label = tested.embedded.label
    rows = [
        {
            "query": (tested.picture(wrong.row), tested.captions[wrong.row]),
            "own": (tested.picture(wrong.own), tested.captions[wrong.own]),
            "other": (tested.picture(wrong.other), tested.captions[wrong.other]),
            "name": names[int(label[wrong.row])],
            "taken_for": names[int(label[wrong.other])],
            "own_similarity": wrong.own_similarity,
            "other_similarity": wrong.other_similarity,
        }
        for wrong in worst
    ]
    return {"count": count, "asked": asked, "share": count / asked if asked else None, "rows": rows}


def _colours(found: EncoderFindings) -> list[dict[str, Any]]:
    """The groups of the map in the order of their colours, with accuracy and examples."""
    if found.map is None or found.tested is None:
        return []
    tested, shown = found.tested, found.map.rows
    if tested.grouped:
        names, group = tested.groups, tested.embedded.alphabet[shown]
    else:
        names, group = tested.names, tested.embedded.character[shown]
    accuracy = {names[hard.group]: hard.accuracy for hard in found.alphabets}
    colours = []
    for name in found.map.groups:
        rows = shown[group == names.index(name)]
        spaced = torch.linspace(0, len(rows) - 1, min(_SHOWN_OF_GROUP, len(rows))).round().long()
        examples = [(tested.picture(row), tested.captions[row]) for row in rows[spaced].tolist()]
        colours.append({"name": name, "accuracy": accuracy.get(name), "examples": examples})
    return colours


def _verification(found: EncoderFindings) -> list[Markup]:
    pairs = found.pairs
    if pairs is None:
        return []
    # Both axes are in per cent.
    marks = [Mark(100 * pairs.eer, f"equal error rate {100 * pairs.eer:.1f}%")]
    roc = line_chart(
        [Line("ROC", [100 * rate for rate in pairs.false_accept], [100 - 100 * rate for rate in pairs.false_reject])],
        title=f"ROC curve: area {100 * pairs.auc:.1f}%",
        x_label="false accept rate (different pairs accepted), %",
        y_label="true accept rate (same pairs accepted), %",
        x_range=(0, 100),
        y_range=(0, 100),
        marks=marks,
    )
    rates = zip(pairs.false_accept, pairs.false_reject, strict=True)
    errors = [(100 * far, 100 * frr) for far, frr in rates if far and frr]
    if len(errors) < 2:
        return [roc]
    det = line_chart(
        [Line("DET", [far for far, _ in errors], [frr for _, frr in errors])],
        title="DET: false rejects against false accepts",
        x_label="false accept rate, %, logarithmic",
        y_label="false reject rate, %, logarithmic",
        log_x=True,
        log_y=True,
        marks=marks if pairs.eer else [],
        diagonal=True,
    )
    return [roc, det]


def _interval(interval: tuple[float, float]) -> str:
    return f"{100 * interval[0]:.1f}% to {100 * interval[1]:.1f}%"
