from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Opened, chromium
from hostile_names import NAMES, assert_nothing_raw
from made_run import made_run

import finetune
from fewshot.recognition.answers import Recognition
from fewshot.search.neighbours import Neighbours
from finetune.classifier.answers.prediction import Prediction
from finetune.classifier.run_metrics import read_run_metrics
from finetune.errors import InputError
from finetune.linear.comparison import BackboneComparison, BackboneFigures
from finetune.linear.probe import Probe, ProbeCurve
from finetune.notebook.report import MOST_BYTES, ReportPage
from finetune.report.report import write_report

EVIL = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><b>', "&amp;", *NAMES)


class Classifier(finetune.Classifier):
    """One without a network, for its display alone."""

    def __init__(self, classes: tuple[str, ...]):
        self.classes, self.config = classes, finetune.Config()
        self.run_metrics = self.folder = self.address = None


def probe(depth: str, accuracy: float, error: float) -> Probe:
    return Probe(depth, 8, accuracy, (accuracy - 0.05, accuracy + 0.05), 0.0, (0.0, 0.0), error, 0.0, (0.0, 0.0), 1.0)


def things(names: tuple[str, ...]) -> list[Any]:
    """One of each thing that a notebook shows, with these names in it."""
    top = tuple((name, 0.9 / 2**place) for place, name in enumerate(names))
    sure = Prediction(names[0], 0.9, top, names[1])
    similar = {name: 0.8 / 2**place for place, name in enumerate(names)}
    curve = ProbeCurve((probe(names[0], 0.5, 0.8), probe(names[1], 0.9, 0.2)), probe("together", 0.8, 0.3), 30, 3, 0.05)
    networks = tuple(
        BackboneFigures(name=name, weights=name, accuracy=0.9, interval=(0.8, 0.95), error=0.1, ms=2.5)
        for name in names[:2]
    )
    left_out = BackboneFigures(name=names[2], weights="w", left_out=names[0])
    found = np.array([[0.9, 0.8], [0.7, -np.inf]], dtype=np.float32)
    keys = np.array([[names[0], names[1]], [names[2], None]], dtype=object)
    return [
        Classifier(names),
        sure,
        replace(sure, unsure=True, path=None),
        replace(sure, unknown=True),
        curve,
        BackboneComparison((*networks, left_out), names[0], f"{names[0]}: the least.", 20, 30, 3),
        Recognition(names[0], names[0], 0.8, 0.9, 0.5, similar, {}),
        Recognition(None, names[0], 0.8, None, 0.9, similar, {}),
        Recognition(None, names[0], 0.8, None, None, similar, {}),
        Neighbours(found, keys),
    ]


def words(thing: Any) -> str:
    """The text that is shown."""
    return " ".join(re.sub(r"<[^>]*>", " ", thing._repr_html_()).split())


def test_a_prediction_shows_its_answer_and_its_probabilities() -> None:
    _, sure, unsure, unknown, *_ = things(("cat", "dog", "cow"))
    assert words(sure) == "cat cat 90.0% dog 45.0% cow 22.5% dog"
    assert words(unsure).startswith("unsure It is between classes; the most probable is cat. cat 90.0%")
    assert words(unknown).startswith("unknown It is like none of the classes; the nearest is cat. cat 90.0%")
    assert "width:45.0%" in sure._repr_html_()
    many = Prediction("c0", 1.0, tuple((f"c{number}", 0.01) for number in range(1000)))
    assert "c9" in words(many)
    assert "c10" not in words(many)


def test_a_classifier_shows_its_classes_and_its_accuracy_with_baselines(tmp_path: Path) -> None:
    bare = Classifier(tuple(f"class{number}" for number in range(100)))
    assert words(bare) == (
        "Classifier of 100 classes "
        + ", ".join(f"class{number}" for number in range(12))
        + " and 88 more backbone tf_efficientnet_lite0"
    )
    bare.run_metrics = read_run_metrics(made_run(tmp_path, ["cat", "dog"], 10))
    bare.address = "hf://me/pets@abc"
    shown, metrics = words(bare), bare.run_metrics
    assert metrics.accuracy is not None
    assert f"this classifier {metrics.accuracy:.1%}" in shown
    assert "majority class 50.0%" in shown
    assert "Accuracy with 95 % intervals on 20 test pictures." in shown
    assert shown.endswith("strategy full; hf://me/pets@abc")
    unmeasured = {"split": None, "accuracy": None, "interval": None, "balanced_accuracy": None, "loss": None, "n": 0}
    bare.run_metrics = replace(metrics, **unmeasured)  # type: ignore[arg-type]
    assert "Not measured: the run has no validation and no test picture." in words(bare)


def test_a_probe_curve_shows_every_depth_and_which_is_best() -> None:
    curve = things(("stem", "features", "x"))[4]
    assert words(curve) == (
        "Probe curve The pictures are like those that the backbone was trained on. stem 50.0% features 90.0%, least "
        "error together 80.0% Cross-validated accuracy of a linear probe at each depth, with 95 % intervals; 30 "
        "pictures, 3 classes."
    )
    assert "left:85.0%;width:10.0%" in curve._repr_html_()
    assert "differ from" in words(replace(curve, distance=0.5))


def test_a_comparison_shows_networks_with_their_times_and_what_is_left_out() -> None:
    shown = words(things(("net1", "net2", "net3"))[5])
    assert shown.startswith("net1 net1: the least. net1 90.0%, 2.5 ms a picture net2 90.0%, 2.5 ms a picture")
    assert shown.endswith("on 20 of 30 pictures. net3 is left out: net1.")


def test_a_recognition_shows_the_threshold_and_says_unknown() -> None:
    known, unknown, none = things(("cat", "dog", "cow"))[6:9]
    assert words(known).startswith("cat 90% of the pictures of no class are less similar to their nearest. cat 0.800")
    assert "left:50.0%" in known._repr_html_()
    assert words(unknown).startswith("unknown The nearest is cat, which is not similar enough.")
    assert words(none).startswith("cat The nearest class; no threshold says whether it is similar enough.")


def test_neighbours_are_shown_for_each_query() -> None:
    shown = words(things(("a.png", "b.png", "c.png"))[9])
    assert shown == (
        "Nearest neighbours Query 1 of 2 a.png 0.900 b.png 0.800 Query 2 of 2 c.png 0.700 Cosine similarity."
    )
    nothing = Neighbours(np.full((1, 1), -np.inf, np.float32), np.full((1, 1), None, dtype=object))
    assert "Query 1 of 1: nothing is similar enough" in words(nothing)
    many = Neighbours(np.ones((1000, 50), np.float32), np.full((1000, 50), "x", dtype=object))
    assert len(many._repr_html_()) < 20_000


@pytest.mark.parametrize("first", range(len(EVIL)))
def test_names_are_no_markup_and_hide_nothing(first: int) -> None:
    names = tuple(EVIL[(first + step) % len(EVIL)] for step in range(len(EVIL)))
    for thing in things(names):
        page = thing._repr_html_()
        assert_nothing_raw(page)
        tags = set(re.findall(r"<\s*/?\s*(\w+)", page))
        assert tags == {"div"}
        assert not re.search(r"<[^>]*\s(on\w+|src|href)=", page)
        assert len(page) < 10_000


@pytest.mark.slow
def test_displays_are_readable_on_light_and_on_dark_pages(tmp_path: Path) -> None:
    shown = "".join(f"<section>{thing._repr_html_()}</section>" for thing in things(("cat", "dog", "a" * 60)))
    page = tmp_path / "page.html"
    style = '<meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>Displays</title>'
    page.write_text(f'<!doctype html><html lang="en">{style}<main><h1>Displays</h1>{shown}</main>', encoding="utf-8")
    with chromium() as browser:
        for scheme in ("light", "dark"):
            for width in (1000, 390):
                opened = Opened(browser, page, width=width, scheme=scheme)
                assert opened.violations() == []
                assert (opened.overflow(), opened.requests, opened.complaints) == (0, [], [])
                opened.close()


@pytest.mark.slow
def test_the_report_is_shown_in_a_frame_that_runs_and_loads_nothing(tmp_path: Path) -> None:
    run = made_run(tmp_path, ["cat", "dog"], 6)
    frame = ReportPage(write_report(run))._repr_html_()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
    evil = run / "evil.html"
    evil.write_text(
        "<!doctype html><body><script>document.title='run'; parent.document.title='out'</script>"
        f'<img src="{address}" onerror="document.title=\'run\'"><a href="#here">here</a>'
    )
    page = tmp_path / "page.html"
    page.write_text(f'<html lang="en"><title>Notebook</title>{frame}{ReportPage(evil)._repr_html_()}', encoding="utf-8")
    with listener, chromium() as browser:
        opened = Opened(browser, page, width=900)
        report, hostile = opened.page.frames[1:]
        report.wait_for_selector("h1")
        assert report.evaluate("document.compatMode") == "CSS1Compat"
        report.click("nav a >> nth=1")  # a link to a place of the report stays in it
        report.wait_for_function("location.hash.length > 1")
        assert report.url.startswith("about:srcdoc#")
        hostile.wait_for_selector("a")
        assert (hostile.title(), opened.page.title()) == ("", "Notebook")
        # What the policy stops is sometimes seen as a request, and never sent.
        assert set(opened.requests) <= {address}
        with pytest.raises(BlockingIOError):
            listener.accept()
        opened.close()


def test_a_report_that_cannot_be_shown_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report.html cannot be read: .*; write it with finetune report"):
        ReportPage(tmp_path / "report.html")._repr_html_()
    with (tmp_path / "large.html").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(InputError, match="at most 33,554,432 are shown in a notebook"):
        ReportPage(tmp_path / "large.html")._repr_html_()
    with pytest.raises(InputError, match="has no run folder"):
        Classifier(("a", "b")).report()
