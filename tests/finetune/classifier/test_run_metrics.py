"""metrics.json: what is written is read again, and a damaged file is one InputError that names the field."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_run import made_run

from finetune import InputError
from finetune.classifier.run_metrics import EvaluationMetrics, RunMetrics, read_metrics, write_metrics
from finetune.report.report import write_report

# What a file may hold in the place of anything else; None stands for a missing key, too.
WRONG = [None, True, -1, 0, 0.5, 1e300, 10**400, "", "val", "\udcff", [], [0.1, 0.2], [None], {}, {"accuracy": 2}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("made"), ["cats", "dogs"], 2, side=16, calibration=CALIBRATION)


CALIBRATION = {"temperature": 1.5, "ece_before": 0.1, "ece_after": 0.05, "n": 4, "split": "test"}
SOURCE = {"run": "/runs/a", "folder": "/pictures", "asked": None, "config": {"format": 1, "config": {}}}


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in a JSON value, keys and positions; of a long list, to the first one."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value))[:1]
    for key, inner in inside:
        yield (*above, key)
        if isinstance(inner, (dict, list)):
            yield from places(inner, (*above, key))


def test_metrics_are_written_as_they_were_read(run: Path, tmp_path: Path) -> None:
    metrics = read_metrics(run)
    assert isinstance(metrics, RunMetrics)
    assert metrics.calibration is not None
    assert metrics.calibration.temperature == 1.5
    saved = json.loads((run / "metrics.json").read_text())
    told = metrics.to_dict()
    assert {name: told[name] for name in saved if name not in ("probe_curve", "lr_sweep")} == {
        name: value for name, value in saved.items() if name not in ("probe_curve", "lr_sweep")
    }
    write_metrics(tmp_path, metrics)
    assert read_metrics(tmp_path) == metrics
    assert json.loads((tmp_path / "metrics.json").read_text()) == told


@pytest.mark.parametrize("table", [{}, {"table": "/pictures/list.csv"}])
def test_an_evaluation_names_a_table_only_where_there_is_one(run: Path, tmp_path: Path, table: dict[str, str]) -> None:
    saved = json.loads((run / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(saved | {"evaluated": SOURCE | table}))
    metrics = read_metrics(tmp_path)
    assert isinstance(metrics, EvaluationMetrics)
    assert metrics.to_dict()["evaluated"] == SOURCE | table
    assert list(metrics.to_dict())[-2:] == ["seconds", "evaluated"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"accuracy": 2}', "accuracy"),
        ("[]", "expected object"),
        ('{"accuracy": NaN}', "NaN is not a number"),
        ("[" * 100_000, "not valid JSON"),
        ('{"evaluated": []}', "evaluated"),
        ("", "not valid JSON"),
    ],
)
def test_a_damaged_file_and_its_field_are_named(content: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(InputError, match=named) as error:
        read_metrics(tmp_path)
    assert str(tmp_path / "metrics.json") in str(error.value)


@pytest.mark.slow
@settings(max_examples=100)
@given(st.data())
def test_a_wrong_value_anywhere_is_an_input_error_or_a_report(run: Path, data: st.DataObject) -> None:
    """Whatever one field of metrics.json or config.json holds, no other exception is raised."""
    name = data.draw(st.sampled_from(["metrics.json", "config.json"]))
    original = (run / name).read_text()
    values = json.loads(original)
    *above, last = data.draw(st.sampled_from(list(places(values))))
    changed = copy.deepcopy(values)
    inner = changed
    for key in above:
        inner = inner[key]
    inner[last] = data.draw(st.sampled_from(WRONG))
    (run / name).write_text(json.dumps(changed))
    try:
        write_report(run)
    except InputError as error:
        message = str(error)
        assert any(file in message for file in (name, "predictions.csv")), message
    finally:
        (run / name).write_text(original)
