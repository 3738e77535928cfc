"""Unknown pictures: a run learns to tell them, stores it, and answers by a rate."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from called import Answer, caller
from PIL import Image
from safetensors.torch import load_file, save_file

import finetune
from finetune.classifier.classifier import Prediction
from finetune.classifier.export import SCORE, _ExportedModel
from finetune.cli.main import main
from finetune.errors import InputError, UnreadablePicture
from finetune.files.reading import read_json
from finetune.open_set.unknown_model import UNKNOWN_FILE, UnknownModel, read_unknown

pytestmark = pytest.mark.slow

CLASSES = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40), "unsure": (180, 180, 40)}
OPTIONS: dict[str, Any] = {"backbone": "fewtune_conv4", "device": "cpu"}


def draw(folder: Path, base: tuple[int, ...], count: int, seed: int) -> list[Path]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = np.clip(random.normal(base, 40, (36, 36, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos` of four classes with `run` on them, `new` pictures of one class, and `other` pictures of none."""
    place = tmp_path_factory.mktemp("unknown")
    for number, (label, base) in enumerate(CLASSES.items()):
        draw(place / "photos" / label, base, 14, number)
    draw(place / "new", CLASSES["red"], 5, 50)
    (place / "other").mkdir()
    for number in range(12):
        stripes = np.zeros((36, 36, 3), np.uint8)
        stripes[:, :: 2 + number % 3] = 255 - number
        Image.fromarray(np.roll(stripes, number, 1)).save(place / "other" / f"{number:02d}.png")
    finetune.fit(place / "photos", place / "run", strategy="head", **OPTIONS)
    return place


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def answers(classifier: finetune.Classifier, paths: list[Path], **options: Any) -> list[Prediction]:
    found = classifier.predict_all(paths, **options)
    assert not any(isinstance(answer, UnreadablePicture) for answer in found)
    return [answer for answer in found if isinstance(answer, Prediction)]


def test_a_picture_refused_at_a_rate_is_refused_at_every_smaller_one(place: Path) -> None:
    classifier = finetune.load(place / "run", device="cpu")
    paths = [*sorted((place / "new").iterdir()), *sorted((place / "other").iterdir())]
    refused = [
        {answer.path for answer in answers(classifier, paths, false_accept_rate=rate) if answer.unknown}
        for rate in (0.001, 0.01, 0.1, 0.5, 0.9, 1)
    ]
    assert all(fewer <= more for more, fewer in pairwise(refused))
    assert refused[-1] == set()
    assert len(refused[0]) >= 12
    plain = answers(classifier, paths)
    assert not any(answer.unknown or answer.unknown_score is not None for answer in plain)
    scored = answers(classifier, paths, false_accept_rate=0.1)
    assert [replace(each, unknown=False, unknown_score=None) for each in scored] == plain, "nothing else changes"
    for bad in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="false_accept_rate must be above 0 and at most 1"):
            classifier.predict(paths[0], false_accept_rate=bad)


def test_pictures_of_the_classes_pass_and_others_do_not(place: Path) -> None:
    classifier = finetune.load(place / "run", device="cpu")
    new, other = (
        answers(classifier, sorted((place / name).iterdir()), false_accept_rate=0.3) for name in ("new", "other")
    )
    assert sum(answer.unknown for answer in new) <= 2
    assert all(answer.unknown for answer in other)
    assert max(each.unknown_score or 0 for each in new) < min(each.unknown_score or 0 for each in other)


def test_no_readable_picture_has_no_score(place: Path) -> None:
    classifier = finetune.load(place / "run", device="cpu")
    for pictures in ([], [b"no picture", b"nor this"]):
        known, scores, index, contents = classifier.scored(pictures)
        assert (tuple(known.shape), tuple(scores.shape), len(index)) == ((0, 4), (0,), 0)
        assert [contents[position].reason for position in range(len(pictures))] == ["not a picture"] * len(pictures)
        assert tuple(classifier.log_probabilities(pictures)[0].shape) == (0, 4)
    (answer,) = classifier.predict_all([b"no picture"], false_accept_rate=0.1)
    assert isinstance(answer, UnreadablePicture)


def test_the_words_are_unknown_and_unsure(place: Path, tmp_path: Path, run: Callable[..., Answer]) -> None:
    table, sorted_into = tmp_path / "table.csv", tmp_path / "sorted"
    options = ("--false-accept-rate", "0.3", "--min-probability", "1")
    answer = run(
        "predict", place / "run", place / "new", place / "other", *options, "--csv", table, "--sort-into", sorted_into
    )
    assert answer.code == 0
    assert "other/00.png: unknown  (" in answer.out
    assert "new/00.png: unsure  (red" in answer.out
    assert "of the pictures of none of the classes are expected to pass" in answer.err
    with table.open(newline="") as file:
        rows = {Path(row["path"]).parent.name: row for row in csv.DictReader(file)}
    assert (rows["other"]["unknown"], rows["other"]["unsure"]) == ("yes", "yes")
    # A class is called "unsure" here.
    assert {path.name for path in sorted_into.iterdir()} <= {"unknown", "_unsure"}
    assert len(list((sorted_into / "unknown").iterdir())) >= 12
    answer = run("predict", place / "run", place / "other", "--false-accept-rate", "0.3", "--json")
    row = json.loads(answer.out.splitlines()[0])
    assert (row["unknown"], row["unsure"]) == (True, False)
    assert row["unknown_score"] > 0
    row = json.loads(run("predict", place / "run", place / "other", "--json").out.splitlines()[0])
    assert row["unknown"] is False
    assert "unknown_score" not in row
    answer = run("predict", place / "run", place / "new", "--background", place / "other")
    assert (answer.code, answer.out) == (2, "")
    assert "--background goes with --false-accept-rate" in answer.err


def test_background_pictures_move_the_threshold(place: Path, run: Callable[..., Answer]) -> None:
    classifier = finetune.load(place / "run", device="cpu")
    before = classifier.require_unknown().threshold(0.1)
    assert classifier.learn_background(sorted((place / "other").iterdir())) == 12
    assert classifier.require_unknown().threshold(0.1) < before, "they are far from the classes"
    options = ("--false-accept-rate", "0.1")
    answer = run("predict", place / "run", place / "new", *options, "--background", place / "other")
    assert "12 background pictures count too" in answer.err
    assert "new/00.png: red" in answer.out
    with pytest.raises(InputError, match="no background picture can be read"):
        classifier.learn_background([b"no picture"])


def test_the_export_gives_the_same_scores_and_lists_thresholds(place: Path, tmp_path: Path) -> None:
    about = finetune.export(place / "run", tmp_path / "out.onnx")
    assert about["parity"]["largest_score_difference"] < 1e-3
    assert about == read_json(tmp_path / "out.onnx.json")
    classifier = finetune.load(place / "run", device="cpu", precision="float32")
    paths = [*sorted((place / "new").iterdir()), *sorted((place / "other").iterdir())]
    exported = _ExportedModel((tmp_path / "out.onnx").read_bytes(), "onnx")
    scores = exported(classifier.pictures(paths).batch(range(len(paths))).pixels)[:, -1].tolist()
    assert about["unknown"]["output"]["name"] == SCORE
    for row in about["unknown"]["thresholds"]:
        found = answers(classifier, paths, false_accept_rate=row["false_accept_rate"])
        assert [score > row["threshold"] for score in scores] == [answer.unknown for answer in found]
        assert scores == pytest.approx([answer.unknown_score for answer in found], abs=1e-3)


def test_an_older_run_says_what_to_do_and_exports_without_scores(
    place: Path, tmp_path: Path, run: Callable[..., Answer]
) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / UNKNOWN_FILE).unlink()
    answer = run("predict", tmp_path / "run", place / "new", "--false-accept-rate", "0.1")
    assert (answer.code, answer.out) == (2, "")
    assert "run finetune fit again" in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert run("predict", tmp_path / "run", place / "new").code == 0
    assert "unknown" not in finetune.export(tmp_path / "run", tmp_path / "out.pt2", format="torch-export")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("means", lambda value: value[:, :-1]),
        ("means", lambda value: value[:-1]),
        ("weight", lambda value: value * float("nan")),
        ("scale", lambda value: value * 0),
        ("scale", lambda value: -value),
        ("held_out", lambda value: value[:-1]),
        ("held_out", lambda value: value * 1e200),
        ("known", lambda value: value.float()),
        ("of_class", lambda value: value + 100),
        ("of_class", lambda value: value - 100),
        ("background", lambda value: None),
    ],
)
def test_damaged_files_are_refused_in_one_line(place: Path, tmp_path: Path, name: str, change: Any) -> None:
    path = tmp_path / UNKNOWN_FILE
    tensors, about = read_unknown(place / "run", 4).tensors()
    tensors[name] = change(tensors[name])
    save_file({key: value.contiguous() for key, value in tensors.items() if value is not None}, path, about)
    with pytest.raises(InputError, match=UNKNOWN_FILE) as caught:
        read_unknown(tmp_path, 4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "about",
    [
        {"format": "9"},
        {"widths": "[1, 2]"},
        {"widths": "[]"},
        {"widths": "[-5, 10]"},
        {"widths": "[99999999999]"},
        {"widths": "x"},
        {"more_classes": "NaN"},
        {"more_classes": "0.5"},
        {"more_classes": "1e300"},
    ],
)
def test_damaged_descriptions_are_refused_in_one_line(place: Path, tmp_path: Path, about: dict[str, str]) -> None:
    tensors, good = read_unknown(place / "run", 4).tensors()
    save_file(tensors, tmp_path / UNKNOWN_FILE, good | about)
    with pytest.raises(InputError) as caught:
        read_unknown(tmp_path, 4)
    assert UNKNOWN_FILE in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_network_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    model = read_unknown(place / "run", 4)
    tensors, about = model.tensors()
    width = model.likeness.width
    save_file(tensors, tmp_path / "run" / UNKNOWN_FILE, about | {"widths": f"[{width - 3}, 3]"})
    with pytest.raises(InputError, match="does not belong to this network"):
        finetune.load(tmp_path / "run", device="cpu").predict(place / "new" / "00.png", false_accept_rate=0.1)
    (tmp_path / "run" / UNKNOWN_FILE).write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="safetensors"):
        finetune.load(tmp_path / "run", device="cpu").predict(place / "new" / "00.png", false_accept_rate=0.1)


def test_what_is_stored_is_what_fit_has_in_memory(place: Path) -> None:
    in_memory = finetune.fit(place / "photos", strategy="head", **OPTIONS)
    stored = finetune.load(place / "run", device="cpu")
    paths = sorted((place / "new").iterdir())
    wanted = answers(stored, paths, false_accept_rate=0.1)
    assert answers(in_memory, paths, false_accept_rate=0.1) == wanted
    assert answers(pickle.loads(pickle.dumps(in_memory)), paths, false_accept_rate=0.1) == wanted
    assert load_file(place / "run" / UNKNOWN_FILE)["means"].dtype == torch.float32


def test_two_classes_and_one_picture_a_class_have_thresholds(place: Path, tmp_path: Path) -> None:
    for name, count in (("two", 8), ("one", 1)):
        for label in list(CLASSES)[: 2 if name == "two" else 4]:
            (tmp_path / name / label).mkdir(parents=True)
            for path in sorted((place / "photos" / label).iterdir())[:count]:
                shutil.copy(path, tmp_path / name / label)
        classifier = finetune.fit(tmp_path / name, strategy="head", val_fraction=0, test_fraction=0, **OPTIONS)
        expected = classifier.require_unknown().expected(0.2)
        assert np.isfinite(expected.threshold)
        assert (expected.refused is None) == (name == "one")
        assert all(
            answer.unknown for answer in answers(classifier, sorted((place / "other").iterdir()), false_accept_rate=0.2)
        )


def test_a_trained_network_learns_from_its_own_features(place: Path, tmp_path: Path) -> None:
    options = {"strategy": "full", "epochs": 1, "keep": "trained", **OPTIONS}
    classifier = finetune.fit(place / "photos", tmp_path / "run", **options)
    assert classifier.metrics["kept"] == "full"
    assert classifier.metrics["unknown"]["trained"]
    stored = finetune.load(tmp_path / "run", device="cpu")
    model: UnknownModel = stored.require_unknown()
    assert len(model.known) == classifier.metrics["pictures"]["val"]
    found = answers(stored, sorted((place / "new").iterdir()), false_accept_rate=0.9)
    assert found == answers(classifier, sorted((place / "new").iterdir()), false_accept_rate=0.9)


def test_a_training_that_was_interrupted_says_why_it_tells_no_unknown_pictures(place: Path, tmp_path: Path) -> None:
    def interrupt(_: finetune.EpochResult) -> None:
        raise KeyboardInterrupt

    options = {"strategy": "full", "epochs": 3, "keep": "trained", **OPTIONS}
    classifier = finetune.fit(place / "photos", tmp_path / "run", on_epoch=interrupt, **options)
    assert (classifier.metrics["kept"], classifier.metrics["interrupted"]) == ("full", True)
    for found in (finetune.load(tmp_path / "run", device="cpu"), classifier):
        with pytest.raises(InputError, match="or interrupted; run finetune fit again, without --minutes"):
            found.predict(place / "new" / "00.png", false_accept_rate=0.1)


def test_the_report_shows_the_curve_and_the_nearest_pictures(place: Path) -> None:
    page = (place / "run" / "report.html").read_text(encoding="utf-8")
    assert 'id="unknown"' in page
    assert "Open-set classification rate" in page
    figures = read_json(place / "run" / "metrics.json")["unknown"]
    assert figures["known"] == figures["unknown"]
    assert 0 <= figures["oscr"] <= figures["accuracy"] <= 1
    shares = [row["refused"] for row in figures["rates"]]
    assert shares == sorted(shares, reverse=True)
    for each in (*figures["nearly_refused"], *figures["nearly_accepted"]):
        assert (place / "photos" / each["path"]).exists()


def test_an_extended_run_tells_unknown_pictures_of_its_new_classes(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run", tmp_path / "run")
    draw(tmp_path / "more" / "stripes", (0, 0, 0), 8, 70)
    for number, path in enumerate(sorted((place / "other").iterdir())[:8]):
        shutil.copy(path, tmp_path / "more" / "stripes" / f"{number:02d}.png")
    paths = sorted((place / "other").iterdir())
    before = (tmp_path / "run" / UNKNOWN_FILE).read_bytes()
    classifier = finetune.extend(tmp_path / "run", tmp_path / "more", device="cpu")
    stored = finetune.load(tmp_path / "run", device="cpu")
    assert stored.require_unknown().likeness.means.shape[0] == 5
    found = answers(stored, paths, false_accept_rate=0.3)
    assert found == answers(classifier, paths, false_accept_rate=0.3)
    assert sum(answer.unknown for answer in found) < 12, "most were of no class before"
    finetune.undo(tmp_path / "run")
    assert (tmp_path / "run" / UNKNOWN_FILE).read_bytes() == before


def test_a_picture_that_cannot_be_read_has_no_score_and_is_named(place: Path, run: Callable[..., Answer]) -> None:
    bad = place / "bad.png"
    bad.write_text("no picture")
    answer = run("predict", place / "run", bad, "--false-accept-rate", "0.1", "--device", "cpu")
    assert answer.code == 2
    assert answer.err.endswith(f"finetune: {bad}: not a picture\n")
