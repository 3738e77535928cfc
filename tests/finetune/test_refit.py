"""What is trained, and kept, learns from the validation pictures that the run set aside, too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeFolder
from killing import assert_same_weights, fit_until_killed
from told import Told

import finetune
from finetune import Config
from finetune.checkpoint import Course
from finetune.classifier import Classifier
from finetune.files import read_csv
from finetune.folder import list_folder
from finetune.preparation import prepare
from finetune.progress import Advance, Display
from finetune.refit import refit
from finetune.steps import copy_of

SMALL = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0, "trivial_augment": False, "batch_size": 8}
TWO = {"green": 40, "red": 40}


@pytest.fixture
def folder(make_folder: MakeFolder) -> Path:
    return make_folder(classes=TWO, noise=60)


@pytest.mark.parametrize("strategy", ["partial", "full", "scratch"])
def test_what_is_kept_has_learned_from_validation_pictures_and_is_not_judged_by_them(
    strategy: str, folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    metrics = finetune.fit(folder, run, strategy=strategy, epochs=4, **SMALL).metrics
    assert (metrics["kept"], metrics["learned_from"]) == (strategy, ["train", "val"])
    assert {row["learned"] for row in _rows(run / "pictures.csv", "val")} == {"yes"}
    assert "learned from the validation pictures too" in (run / "report.html").read_text()
    told = {row["path"]: float(row["probability"]) for row in _rows(run / "predictions.csv", "val")}
    kept = finetune.load(run, device="cpu").predict_all([folder / name for name in told])
    # Other weights gave the answers that are told of them: such as had not seen them.
    assert all(abs(answer.probability - told[name]) > 1e-6 for answer, name in zip(kept, told, strict=True))
    tested = {row["path"]: float(row["probability"]) for row in _rows(run / "predictions.csv", "test")}
    kept = finetune.load(run, device="cpu").predict_all([folder / name for name in tested])
    assert [answer.probability for answer in kept] == pytest.approx(list(tested.values()), abs=2e-3)


def test_validation_pictures_that_were_given_are_not_learned_from(make_folder: MakeFolder, tmp_path: Path) -> None:
    divided = tmp_path / "divided"
    for split, seed in (("train", 0), ("val", 7)):
        shutil.copytree(make_folder(split, classes=TWO, seed=seed, noise=60), divided / split)
    metrics = finetune.fit(divided, strategy="scratch", epochs=2, **SMALL).metrics
    assert metrics["pictures"]["val"] < 100
    assert metrics["learned_from"] == ["train"]


def test_many_validation_pictures_are_left_to_choose_the_epoch(make_folder: MakeFolder) -> None:
    many = make_folder("many", classes={"green": 350, "red": 350})
    metrics = finetune.fit(many, strategy="scratch", epochs=2, **SMALL).metrics
    assert metrics["pictures"]["val"] >= 100
    assert metrics["learned_from"] == ["train"]


@pytest.mark.parametrize("strategy", ["partial", "full"])
def test_killed_while_it_learns_from_all_and_resumed_it_is_the_same(
    strategy: str, folder: Path, tmp_path: Path
) -> None:
    options = {"strategy": strategy, "epochs": 10, **SMALL}
    finetune.fit(folder, tmp_path / "at once", **options)
    fit_until_killed(folder, tmp_path / "killed", options, at="refit")
    finetune.fit(folder, tmp_path / "killed", resume=True, **options)
    assert_same_weights(tmp_path / "killed", tmp_path / "at once")


@pytest.mark.parametrize("epoch", [0, 2])
def test_ctrl_c_while_it_learns_from_all_leaves_what_was_trained_before(
    epoch: int, folder: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"strategy": "full", "epochs": 4, **SMALL}
    run = tmp_path / "run"
    stopped = finetune.fit(folder, run, display=_CtrlC(in_training=2, after=epoch), **options)
    assert stopped.metrics["interrupted"]
    assert stopped.metrics["learned_from"] == ["train"]
    told = {row["path"]: float(row["probability"]) for row in _rows(run / "predictions.csv", "val")}
    answers = stopped.predict_all([folder / name for name in told])
    assert [answer.probability for answer in answers] == pytest.approx(list(told.values()), abs=2e-3)

    finished = finetune.fit(folder, run, resume=True, **options).metrics
    assert not finished["interrupted"]
    finetune.fit(folder, tmp_path / "at once", **options)
    assert_same_weights(run, tmp_path / "at once")


@pytest.mark.parametrize(
    ("lr", "head", "why"),
    [(1e30, 1.0, "without bound"), (1e-9, -1.0, "known less well")],  # the second goes nowhere from reversed answers
)
def test_a_second_training_that_fails_leaves_what_was_trained_before(
    lr: float, head: float, why: str, folder: Path
) -> None:
    config = Config(strategy="full", epochs=3, **SMALL)
    prepared = prepare(list_folder(folder), config, None, Display())
    network, _ = prepared.beginning(config)
    classifier = Classifier(
        network, prepared.rows.folder.classes, prepared.backbone.preprocessing, config, prepared.fabric
    )
    before, told = copy_of(network), Told()
    begun = {name: value * head if name.startswith("head.") else value for name, value in before.items()}
    course = Course(epoch=3, best_epoch=3, lr=lr)
    unseen = refit(prepared, classifier, begun, course, checkpoint=None, resume=False, display=told)
    assert unseen is None
    assert why in told.lines[-1]
    assert not course.interrupted
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


class _CtrlC(Display):
    """Ctrl-C in the training with this number, counted from 1, after so many of its epochs."""

    def __init__(self, in_training: int, after: int):
        super().__init__()
        self._left, self._after = in_training, after

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Advance]:
        self._left -= label == "training"
        epochs = 0

        def advance(done: int, note: str) -> None:
            nonlocal epochs
            epochs += note.startswith("epoch")
            if label == "training" and self._left == 0 and done > 0 and epochs == self._after:
                raise KeyboardInterrupt

        yield advance


def _rows(table: Path, split: str) -> list[dict[str, str]]:
    return [row for row in read_csv(table, ["path", "split"]) if row["split"] == split]
