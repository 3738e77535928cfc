from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from finetune.report.axes import number
from finetune.report.charts import Band, Bar, Line, Mark, Point, bar_chart, line_chart, scatter
from finetune.report.page import render, thumbnail

numbers = st.floats(-1e9, 1e9, allow_nan=False).map(lambda value: round(value, 6))


def drawn(figure: str) -> ElementTree.Element:
    """The figure as XML, which it must be."""
    return ElementTree.fromstring(figure)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40), st.booleans())
def test_every_point_lies_inside_the_drawing(points: list[tuple[float, float]], diagonal: bool) -> None:
    xs, ys = zip(*points, strict=True)
    svg = drawn(line_chart([Line("a", xs, ys)], title="t", x_label="x", y_label="y", diagonal=diagonal)).find("svg")
    assert svg is not None
    _, _, width, height = map(float, svg.attrib["viewBox"].split())
    line = next(path for path in svg.iter("path") if path.attrib["class"].startswith("line"))
    places = [tuple(map(float, step.split())) for step in line.attrib["d"].replace("L", "M").split("M") if step]
    assert len(places) == len(points)
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)


def test_a_chart_describes_its_numbers_and_escapes_names() -> None:
    chart = line_chart(
        [Line("<train>", [1, 2, 3], [0.5, math.nan, 0.75]), Line("val", [1, 2, 3], [0.4, 0.5, 0.6], dashed=True)],
        title="Accuracy & more",
        x_label="epoch",
        y_label="accuracy",
        percent=True,
        marks=[Mark(2, "kept")],
        bands=[Band("val", [1], [0.3], [0.5]), Band("val", [1, 2], [0.3, 0.4], [0.5, 0.6], filled=True)],
    )
    figure = drawn(chart)
    assert figure.findtext("svg/title") == "Accuracy & more"
    assert "<train>: 50% at 1, 75% at 3; val: 40% at 1" in str(figure.findtext("svg/desc"))
    assert [item.text or "".join(item.itertext()) for item in figure.iter("li")] == ["<train>", "val"]
    assert "kept" in chart
    assert line_chart([Line("a", [1], [1])], title="t", x_label="x", y_label="y") == line_chart(
        [Line("a", [1], [1])], title="t", x_label="x", y_label="y"
    )


def test_an_axis_of_shares_ends_at_0_and_100_per_cent() -> None:
    for share in (0.0, 0.985, 1.0):
        lines = [Line("a", [1, 2, 3], [share] * 3)]
        chart = drawn(line_chart(lines, title="t", x_label="x", y_label="y", percent=True))
        texts = [element.text or "" for element in chart.iter("text")]
        shares = [float(text.rstrip("%")) for text in texts if text.endswith("%")]
        assert shares
        assert min(shares) >= 0
        assert max(shares) <= 100


def test_a_logarithmic_axis_has_powers_of_ten_and_refuses_zero() -> None:
    chart = line_chart([Line("a", [1e-5, 1], [1, 2])], title="t", x_label="x", y_label="y", log_x=True)
    texts = [text.text for text in drawn(chart).iter("text")]
    assert {"1e-05", "0.0001", "0.01", "1"} <= set(texts)
    with pytest.raises(ValueError, match="above 0"):
        line_chart([Line("a", [0, 1], [1, 2])], title="t", x_label="x", y_label="y", log_x=True)


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="point"):
        line_chart([Line("a", [1], [math.nan])], title="t", x_label="x", y_label="y")
    with pytest.raises(ValueError, match="point"):
        scatter([], title="t")


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart([Bar("a", 0.5, 0.4, 0.6, highlighted=True), Bar("b", 0.25)], title="t", value_label="v")
    wide, half = (float(bar.attrib["width"]) for bar in drawn(chart).iter("rect"))
    assert wide == pytest.approx(2 * half, abs=0.2)


def test_map_points_are_named_and_the_first_takes_keyboard_focus() -> None:
    small = thumbnail(Image.new("RGB", (400, 100), "red"), 40)
    page = drawn(
        f"<div>{scatter([Point(0, 0, 'a<', 'A', small), Point(1, 2, 'b', 'B')], title='Map')}</div>".replace(
            '<img alt="">', '<img alt=""/>'
        ).replace(" hidden>", ' hidden="">')
    )
    points = list(page.iter("circle"))
    assert [point.attrib["aria-label"] for point in points] == ["a<", "b"]
    assert [point.attrib["tabindex"] for point in points] == ["0", "-1"]
    assert points[0].attrib["data-picture"].startswith("data:image/webp;base64,")


def test_numbers_read_well() -> None:
    assert [number(value) for value in (0.123456, 12345.6, 3)] == ["0.123", "12,346", "3"]
    assert [number(value, percent=True) for value in (0.98765, 1, 0.0012)] == ["98.8%", "100%", "0.12%"]


def test_a_page_allows_nothing_from_the_network() -> None:
    page = render("base.html.j2")
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
