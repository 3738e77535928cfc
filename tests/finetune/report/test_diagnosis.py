from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import finetune
from finetune import Config
from finetune.classifier.run_metrics import RunMetrics
from finetune.metrics import wilson_interval
from finetune.report.diagnosis import Diagnosis, diagnose
from finetune.report.results import read_results

CONFIG = Config()
# What metrics.json says of the pictures that a run is measured on, which a diagnosis does not use.
MEASURED = {
    "accuracy": 0.5, "interval": [0.1, 0.9], "balanced_accuracy": 0.5, "loss": 1.0, "n": 2, "per_class": {},
    "split": "test",
}  # fmt: skip


def diagnosed(
    val: float, n: int = 500, train: float | None = None, history: list[dict[str, float]] | None = None, **more: Any
) -> Diagnosis:
    values = {
        **MEASURED,
        "strategy": "full",
        "kept": "full",
        "epochs": len(history or []),
        "val": {"accuracy": val, "interval": list(wilson_interval(round(val * n), n)), "n": n, "loss": 1.0},
        **({} if train is None else {"train": {"accuracy": train, "loss": 1.0, "n": 1000}}),
        **more,
    }
    return diagnose(RunMetrics.from_dict(values), history or [], CONFIG, 10)


def epochs(train: list[float], val: list[float]) -> list[dict[str, float]]:
    rows = enumerate(zip(train, val, strict=True), 1)
    return [{"epoch": e, "train_loss": t, "val_loss": v, "val_accuracy": 0.5} for e, (t, v) in rows]


@pytest.mark.parametrize(
    ("train", "val", "n", "kind"),
    [
        (0.60, 0.58, 500, "underfit"),
        (0.70, 0.40, 500, "underfit"),  # both: the first thing to mend is what it cannot even learn
        (0.87, 0.50, 500, "overfit"),  # both: three quarters of the error come with new pictures
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


NO_AUGMENTATION = {"trivial_augment": False, "crop_scale": 1.0, "flip": False, "label_smoothing": 0.0}
LONG = {"epochs": 14, "patience": 14, "lr": 3e-3, **NO_AUGMENTATION}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "random_labels", "kind"),
    [
        ({"strategy": "scratch", **LONG}, True, "overfit"),
        ({"strategy": "head"}, True, "overfit"),
        ({"strategy": "scratch", "epochs": 1, "lr": 1e-6}, False, "underfit"),
        ({"strategy": "head"}, False, "done"),
    ],
)
def test_real_runs_get_the_diagnosis_that_they_were_made_for(
    options: dict[str, Any], random_labels: bool, kind: str, tmp_path: Path
) -> None:
    """Labels that mean nothing can be learned by heart, and help with no other picture."""
    random = np.random.default_rng(0)
    for label in ("blue", "red"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
    for number in range(60):
        label = number % 2
        colour = random.integers(30, 226, 3) if random_labels else np.array((40, 60, 216)[:: 1 if label else -1])
        pixels = np.clip(colour + random.normal(0, 30, (20, 20, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / ("blue", "red")[label] / f"{number:03d}.png")
    small = {"backbone": "fewtune_conv4", "image_size": 32, "device": "cpu", "workers": 0}
    finetune.fit(tmp_path / "pictures", tmp_path / "run", val_fraction=0.4, test_fraction=0.0, **small, **options)
    found = read_results(tmp_path / "run")
    assert found.run is not None
    told = diagnose(found.run, found.history, found.config.options(), len(found.classes))
    assert told.kind == kind, told.evidence
    assert f">{told.name}</span>" in (tmp_path / "run" / "report.html").read_text()


def test_early_stopping_is_not_diagnosed_as_underfitting() -> None:
    turned = epochs([2.2, 1.0, 0.4, 0.3], [2.2, 2.1, 2.4, 2.9])
    found = diagnosed(0.40, 500, 0.65, turned, best_epoch=2)
    assert found.kind == "overfit"
    assert any("rose from 2.1 to 2.9" in line for line in found.evidence)
    assert diagnosed(0.40, 500, 0.65, turned[:2], best_epoch=2).kind == "underfit"


def test_without_training_accuracy_the_history_decides() -> None:
    guessing = epochs([2.31, 2.28, 2.2], [2.3, 2.28, 2.2])
    assert diagnosed(0.2, history=guessing, best_epoch=3).kind == "underfit"
    learned = epochs([1.5, 0.6, 0.36], [1.2, 1.0, 1.9])
    found = diagnosed(0.7, history=learned, best_epoch=3)
    assert found.kind == "overfit"
    assert any("rose from 1 to 1.9" in line for line in found.evidence)


def test_without_enough_figures_there_is_no_diagnosis() -> None:
    assert diagnosed(0.7).kind == "unknown"
    assert diagnose(RunMetrics.from_dict({**MEASURED, "strategy": "head"}), [], CONFIG, 10).kind == "unknown"


def test_advice_names_flags_that_exist_and_fits_the_run() -> None:
    short = epochs([2.2, 2.1, 2.0], [2.2, 2.1, 2.0])
    assert diagnosed(0.3, train=0.3, history=short, best_epoch=3).advice[0].startswith("--epochs 6:")
    stopped = diagnosed(0.3, train=0.3, history=short, best_epoch=3, interrupted=True)
    assert stopped.advice[0].startswith("--resume:")
    assert not any(line.startswith("--epochs") for line in stopped.advice)
    head = diagnosed(0.3, train=0.3, strategy="head", kept="head")
    assert head.advice[0].startswith("--strategy partial:")
    scratch = diagnosed(0.3, train=1.0, strategy="scratch", kept="scratch")
    assert scratch.advice[0].startswith("--strategy auto:")
    assert diagnosed(0.99, train=1.0).advice == ()


def test_no_advice_to_use_the_head_where_training_was_better() -> None:
    partial = diagnosed(0.6, train=1.0, history=epochs([0.3], [0.9]), best_epoch=1, strategy="partial", kept="partial")
    assert partial.kind == "overfit"
    assert not any(line.startswith("--strategy") for line in partial.advice)
    full = diagnosed(0.6, train=1.0, history=epochs([0.3], [0.9]), best_epoch=1)
    assert full.advice[0] == "--strategy partial: train fewer layers"


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 5000), st.sampled_from(["head", "partial", "full", "scratch"]))
def test_every_diagnosis_has_evidence_and_names_options_that_exist(
    train: float, val: float, n: int, strategy: str
) -> None:
    found = diagnosed(val, n, train, epochs([1.0], [1.0]), strategy=strategy, kept=strategy, best_epoch=1)
    assert found.evidence
    assert found.sentence
    for line in found.advice:
        if line.startswith("--"):
            assert line.split()[0].rstrip(":").removeprefix("--").replace("-", "_") in CONFIG.to_dict()
