from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune import Config
from finetune.diagnosis import Diagnosis, diagnose
from finetune.metrics import wilson_interval

CONFIG = Config().to_dict()


def diagnosed(
    val: float, n: int = 500, train: float | None = None, history: list[dict[str, float]] | None = None, **more: Any
) -> Diagnosis:
    metrics = {
        "strategy": "full",
        "kept": "full",
        "epochs": len(history or []),
        "val": {"accuracy": val, "interval": list(wilson_interval(round(val * n), n)), "n": n},
        **({} if train is None else {"train": {"accuracy": train, "loss": 1.0, "n": 1000}}),
        **more,
    }
    return diagnose(metrics, history or [], CONFIG, 10)


def epochs(train: list[float], val: list[float]) -> list[dict[str, float]]:
    rows = enumerate(zip(train, val, strict=True), 1)
    return [{"epoch": e, "train_loss": t, "val_loss": v, "val_accuracy": 0.5} for e, (t, v) in rows]


@pytest.mark.parametrize(
    ("train", "val", "n", "kind"),
    [
        (0.60, 0.58, 500, "underfit"),
        (0.70, 0.40, 500, "underfit"),  # both: the first thing to mend is what it cannot even learn
        (1.00, 0.75, 500, "overfit"),
        (0.99, 0.98, 500, "done"),
        (1.00, 0.90, 20, "unknown"),
        (1.00, 0.60, 20, "overfit"),
    ],
)
def test_the_errors_on_training_and_validation_pictures_decide(train: float, val: float, n: int, kind: str) -> None:
    found = diagnosed(val, n, train)
    assert found.kind == kind
    assert f"{1 - val:.1%}" in " ".join(found.evidence)
    assert f"{1 - train:.1%}" in " ".join(found.evidence)


def test_without_training_accuracy_the_history_decides() -> None:
    guessing = epochs([2.31, 2.28, 2.2], [2.3, 2.28, 2.2])
    assert diagnosed(0.2, history=guessing, best_epoch=3).kind == "underfit"
    learned = epochs([1.5, 0.6, 0.36], [1.2, 1.0, 1.9])
    found = diagnosed(0.7, history=learned, best_epoch=3)
    assert found.kind == "overfit"
    assert any("rose from 1 to 1.9" in line for line in found.evidence)


def test_too_little_known_is_said() -> None:
    assert diagnosed(0.7).kind == "unknown"
    assert diagnose({}, [], CONFIG, 10).kind == "unknown"


def test_advice_names_flags_that_exist_and_fits_the_run() -> None:
    short = epochs([2.2, 2.1, 2.0], [2.2, 2.1, 2.0])
    assert diagnosed(0.3, train=0.3, history=short, best_epoch=3).advice[0].startswith("--epochs 6:")
    head = diagnosed(0.3, train=0.3, strategy="head", kept="head")
    assert head.advice[0].startswith("--strategy partial:")
    scratch = diagnosed(0.3, train=1.0, strategy="scratch", kept="scratch")
    assert scratch.advice[0].startswith("--strategy auto:")
    assert diagnosed(0.99, train=1.0).advice == ()


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5000), st.sampled_from(["head", "partial", "full", "scratch"]))
def test_every_diagnosis_has_its_numbers_and_options_that_can_be_given(
    train: float, val: float, n: int, strategy: str
) -> None:
    found = diagnosed(val, n, train, epochs([1.0], [1.0]), strategy=strategy, kept=strategy, best_epoch=1)
    assert found.evidence
    assert found.sentence
    for line in found.advice:
        if line.startswith("--"):
            assert line.split()[0].rstrip(":").removeprefix("--").replace("-", "_") in CONFIG
