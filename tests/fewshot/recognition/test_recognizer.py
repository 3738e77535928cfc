from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawings import folder_of
from made_recognizer import NAMES, contents, drawn, other_embedder
from PIL import Image

from fewshot.embedding.embedder import Embedder
from fewshot.recognition.answers import Recognition
from fewshot.recognition.recognizer import Recognizer
from finetune.errors import InputError, UnreadablePicture

# --- recognised -------------------------------------------------------------------------------------------------------


def test_one_drawing_of_each_class_is_enough(recognizer: Recognizer) -> None:
    found = recognizer.recognize_all([drawn(number, drawer) for number in range(12) for drawer in (1, 2)])
    assert np.mean([each.nearest == NAMES[at // 2] for at, each in enumerate(found)]) >= 0.9  # type: ignore[union-attr]
    assert np.mean([each.label == NAMES[at // 2] for at, each in enumerate(found)]) >= 0.7  # type: ignore[union-attr]


def test_unknown_drawings_are_answered_unknown(recognizer: Recognizer) -> None:
    found = [recognizer.recognize(drawn(number)) for number in range(100, 140)]
    assert np.mean([each.label is None for each in found]) >= 0.8
    assert all(each.nearest in NAMES for each in found)


def test_an_answer_lists_all_classes_by_similarity(recognizer: Recognizer) -> None:
    for number in (0, 5, 200):
        found = recognizer.recognize(drawn(number, 1))
        similarities, scores = list(found.similarities.values()), list(found.scores.values())
        assert set(found.similarities) == set(found.scores) == set(NAMES)
        assert list(found.similarities) == list(found.scores)
        assert similarities == sorted(similarities, reverse=True)
        assert scores == sorted(scores, reverse=True)
        assert (found.nearest, found.similarity, found.score) == (next(iter(found.scores)), similarities[0], scores[0])
        assert found.threshold == recognizer.threshold
        assert found.threshold is not None
        assert found.label == (found.nearest if found.similarity >= found.threshold else None)


def test_the_enrolled_drawing_itself_is_recognised(recognizer: Recognizer) -> None:
    found = recognizer.recognize(drawn(3))
    assert found.label == NAMES[3]
    assert found.score is not None
    assert found.score >= 0.95


def test_one_class_is_enough(embedder: Embedder) -> None:
    recognizer = Recognizer(embedder).enrol("it", [drawn(0), drawn(0, 1)])
    assert recognizer.recognize(drawn(0, 2)).label == "it"
    assert recognizer.recognize(drawn(1)).label is None


def test_answers_keep_their_order_around_unreadable_pictures(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    given = [tmp_path / "text.png", drawn(0), np.zeros((0, 3), np.uint8), drawn(1), str(tmp_path / "missing.png")]
    broken, zero, empty, one, missing = recognizer.recognize_all(given)
    assert isinstance(zero, Recognition)
    assert isinstance(one, Recognition)
    assert (zero.label, one.label) == (NAMES[0], NAMES[1])
    assert isinstance(broken, UnreadablePicture)
    assert isinstance(missing, UnreadablePicture)
    assert isinstance(empty, UnreadablePicture)
    assert (broken.source, broken.reason) == (str(tmp_path / "text.png"), "not a picture")
    assert (missing.source, missing.reason) == (str(tmp_path / "missing.png"), "no such file")
    assert empty.source == "picture 2"
    assert all(isinstance(each, UnreadablePicture) for each in recognizer.recognize_all([tmp_path / "text.png"]))
    assert recognizer.recognize_all([]) == []
    with pytest.raises(UnreadablePicture, match=r"text\.png: not a picture"):
        recognizer.recognize(tmp_path / "text.png")


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_is_recognised_in_the_order_of_paths(kind: type, recognizer: Recognizer, tmp_path: Path) -> None:
    for number in (2, 0, 1):
        Image.fromarray(drawn(number)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_text("hello")
    *found, broken = recognizer.recognize_all(kind(tmp_path))
    assert [each.label for each in found] == NAMES[:3]  # type: ignore[union-attr]
    assert isinstance(broken, UnreadablePicture)
    assert broken.source == str(tmp_path / "3.png")


def test_a_recogniser_without_classes_refuses_to_answer(embedder: Embedder) -> None:
    for question in (lambda it: it.recognize(drawn(0)), lambda it: it.recognize_all([]), lambda it: it.threshold):
        with pytest.raises(InputError, match="nothing is enrolled"):
            question(Recognizer(embedder))


# --- enrolled and forgotten -------------------------------------------------------------------------------------------


def test_enrol_and_forget_can_be_chained(recognizer: Recognizer) -> None:
    chained = recognizer.forget(NAMES[0]).enrol("zero", [drawn(0), drawn(0, 1)]).forget(NAMES[1])
    assert chained is recognizer
    assert recognizer.labels == (*NAMES[2:], "zero")
    assert recognizer.recognize(drawn(0, 2)).label == "zero"
    assert recognizer.recognize(drawn(1)).nearest != NAMES[1]


def test_one_picture_several_and_a_folder_can_be_enrolled(embedder: Embedder, tmp_path: Path) -> None:
    folder_of(tmp_path, classes=1, each=3)
    files = sorted(tmp_path.rglob("*.png"))
    pixels = [np.asarray(Image.open(file)) for file in files]
    tensors = torch.from_numpy(np.stack(pixels))[:, None].repeat(1, 3, 1, 1)
    several = [tmp_path, str(tmp_path), files, tuple(pixels), tensors, np.stack(pixels)[..., None].repeat(3, 3)]
    counts = [Recognizer(embedder).enrol("a", given).gallery.counts["a"] for given in several]  # type: ignore[arg-type]
    assert counts == [3] * len(several)
    single = [files[0], str(files[0]), files[0].read_bytes(), pixels[0], tensors[0], Image.open(files[0])]
    vectors = [Recognizer(embedder).enrol("a", given).gallery.examples for given in single]
    assert {len(each) for each in vectors} == {1}
    assert max(np.abs(each - vectors[0]).max() for each in vectors) < 1e-5


def test_the_same_picture_twice_counts_once(recognizer: Recognizer) -> None:
    recognizer.enrol("new", [drawn(50), drawn(51), drawn(50)])
    assert recognizer.gallery.counts["new"] == 2
    recognizer.enrol("new", [drawn(51), drawn(52)])
    assert recognizer.gallery.counts["new"] == 3
    before = contents(recognizer)
    recognizer.enrol("new", drawn(51))
    assert contents(recognizer) == before


def test_a_picture_of_another_class_is_refused_by_name(recognizer: Recognizer) -> None:
    before = contents(recognizer)
    message = r"picture 1 of 'new' is already enrolled as 'character 4'; forget that class first"
    with pytest.raises(InputError, match=message):
        recognizer.enrol("new", [drawn(50), drawn(4)])
    assert contents(recognizer) == before
    recognizer.forget(NAMES[4]).enrol("new", [drawn(4, 1), drawn(4)])
    assert recognizer.recognize(drawn(4)).label == "new"


def test_a_failed_enrol_changes_nothing(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty").mkdir()
    before = contents(recognizer)
    for label, pictures in [
        ("new", tmp_path / "text.png"),
        ("new", [drawn(50), tmp_path / "text.png"]),
        ("new", tmp_path / "missing.png"),
        ("new", []),
        ("new", tmp_path / "empty"),
        ("", drawn(50)),
    ]:
        with pytest.raises(InputError):
            recognizer.enrol(label, pictures)
        assert contents(recognizer) == before
    with pytest.raises(InputError, match="'stranger' is not enrolled"):
        recognizer.forget("stranger")
    with pytest.raises(UnreadablePicture):
        recognizer.add_background([drawn(60), tmp_path / "text.png"])
    assert contents(recognizer) == before


def test_background_pictures_raise_the_threshold(recognizer: Recognizer) -> None:
    before = recognizer.threshold
    assert before is not None
    # The same by other hands: as like the enrolled ones as can be.
    assert recognizer.add_background([drawn(number, 5) for number in range(12)]) is recognizer
    assert len(recognizer.gallery.background) == 12
    assert recognizer.threshold is not None
    assert recognizer.threshold > before


def test_a_lower_rate_of_false_accepts_raises_the_threshold(embedder: Embedder) -> None:
    strict, lenient = (
        Recognizer(embedder, false_accept_rate=rate).enrol("a", drawn(0)).enrol("b", drawn(1)) for rate in (0.01, 0.3)
    )
    assert strict.threshold is not None
    assert lenient.threshold is not None
    assert strict.threshold > lenient.threshold
    assert strict.expect(0.3) == lenient.expect()


# --- threshold of a single call ---------------------------------------------------------------------------------------


def test_rate_threshold_and_nearest_apply_to_one_call(recognizer: Recognizer) -> None:
    unknown = drawn(200)
    usual, strict = recognizer.recognize(unknown), recognizer.recognize(unknown, false_accept_rate=0.001)
    lenient = recognizer.recognize(unknown, false_accept_rate=0.9999)
    assert usual.threshold == recognizer.threshold
    assert strict.threshold is not None
    assert usual.threshold is not None
    assert lenient.threshold is not None
    assert lenient.threshold < usual.threshold < strict.threshold
    assert strict.label is None
    assert lenient.label == lenient.nearest
    given = recognizer.recognize(unknown, threshold=usual.similarity)
    assert (given.label, given.threshold) == (usual.nearest, usual.similarity)
    assert recognizer.recognize(unknown, threshold=usual.similarity + 1e-4).label is None
    nearest = recognizer.recognize(unknown, nearest=True)
    assert (nearest.label, nearest.threshold) == (usual.nearest, None)


@pytest.mark.parametrize("options", [{"threshold": 1.0, "nearest": True}, {"false_accept_rate": 0.1, "threshold": 1.0}])
def test_rate_threshold_and_nearest_exclude_each_other(options: dict[str, Any], recognizer: Recognizer) -> None:
    with pytest.raises(InputError, match="give only one of"):
        recognizer.recognize(drawn(0), **options)


def test_without_a_threshold_the_nearest_classes_are_the_answer() -> None:
    """An encoder that carries no calibration, and one class."""
    found = Recognizer(other_embedder()).enrol("a", drawn(0)).recognize(drawn(0, 1))
    assert (found.label, found.nearest, found.threshold, found.score) == (None, "a", None, None)
    assert (list(found.similarities), found.scores) == (["a"], {})


def test_expect_gives_intervals(recognizer: Recognizer) -> None:
    found = recognizer.expect()
    assert found is not None
    assert found.chosen_by == "equal error"
    assert found.refusals is not None
    assert found.false_accepts is not None
    for share in (found.refusals, found.false_accepts):
        assert 0 <= share.low < share.value < share.high <= 1
    assert found.false_accepts.value <= 0.2
    assert found.refusals.value >= found.false_accepts.value - 0.01


def test_too_similar_classes_are_listed(recognizer: Recognizer) -> None:
    before = recognizer.alike()
    recognizer.enrol("twin", drawn(0, 4))
    first, *others = recognizer.alike()
    assert {first.label, first.other} == {NAMES[0], "twin"}
    assert len(others) <= len(before) + 1


# --- calibrated on labelled pictures ----------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two enrolled characters by three drawers, ten others by two."""
    for number, drawers in [(0, 3), (1, 3), *((number, 2) for number in range(60, 70))]:
        folder = tmp_path / "labelled" / f"character {number}"
        folder.mkdir(parents=True)
        for drawer in range(drawers):
            Image.fromarray(drawn(number, drawer + 1)).save(folder / f"{drawer}.png")
    return tmp_path / "labelled"


def test_calibrate_sets_the_threshold_and_adds_no_examples(recognizer: Recognizer, labelled: Path) -> None:
    examples, before = recognizer.gallery.examples.tolist(), recognizer.expect(0.1)
    trial = recognizer.calibrate(labelled, false_accept_rate=0.1)
    assert (trial.known, trial.unknown) == (6, 20)
    assert trial.right is not None
    assert trial.refused is not None
    assert trial.misnamed is not None
    assert trial.right + trial.refused + trial.misnamed == pytest.approx(1)
    assert trial.accepted == pytest.approx(0.1, abs=0.1)
    assert trial.threshold == recognizer.expect()
    assert trial.threshold != before
    assert recognizer.gallery.false_accept_rate == 0.1
    assert recognizer.gallery.examples.tolist() == examples
    assert len(recognizer.gallery.background) == 20
    assert len(recognizer.gallery.trials[0]) == 6


def test_calibrating_twice_on_the_same_pictures_changes_nothing(recognizer: Recognizer, labelled: Path) -> None:
    first = recognizer.calibrate(labelled)
    before = contents(recognizer)
    assert recognizer.calibrate(labelled) == first
    assert contents(recognizer) == before


def test_calibrate_accepts_unknown_pictures_alone(recognizer: Recognizer, tmp_path: Path) -> None:
    (tmp_path / "labelled" / "others").mkdir(parents=True)
    for number in range(60, 64):
        Image.fromarray(drawn(number)).save(tmp_path / "labelled" / "others" / f"{number}.png")
    trial = recognizer.calibrate(tmp_path / "labelled")
    assert (trial.known, trial.unknown, trial.right) == (0, 4, None)
    assert len(recognizer.gallery.background) == 4


def test_trials_are_saved_and_removed_with_their_class(recognizer: Recognizer, labelled: Path, tmp_path: Path) -> None:
    recognizer.calibrate(labelled)
    recognizer.save(tmp_path / "gallery")
    loaded = Recognizer.load(tmp_path / "gallery", embedder=recognizer.embedder)
    assert contents(loaded) == contents(recognizer)
    assert loaded.expect() == recognizer.expect()
    loaded.forget(NAMES[0])
    assert loaded.gallery.trials[0] == (NAMES[1],) * 3


def test_calibration_needs_classes_and_pictures(recognizer: Recognizer, embedder: Embedder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        (tmp_path / "broken" / name / "0.png").write_text("no picture")
    before = contents(recognizer)
    with pytest.raises(InputError, match="broken: none of the 2 pictures can be read"):
        recognizer.calibrate(tmp_path / "broken")
    with pytest.raises(InputError, match="nothing is enrolled"):
        Recognizer(embedder).calibrate(tmp_path / "broken")
    assert contents(recognizer) == before
