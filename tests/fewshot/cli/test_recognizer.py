from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from called import Answer

from fewshot import Embedder, Recognizer
from fewshot.recognition.recognizer import change_gallery

Call = Callable[..., Answer]


def as_json(answer: Answer) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    return json.loads(answer.out)  # type: ignore[no-any-return]


def told(answer: Answer, message: str) -> None:
    """One line on stderr, exit code 2."""
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_enrol_recognize_and_forget(call: Call, pictures: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    enrolled = as_json(call("enrol", gallery, "zero", pictures / "sign 0" / "0.png", "--json"))
    assert (enrolled["classes"], enrolled["threshold"]) == ({"zero": 1}, Recognizer.load(gallery).threshold)
    assert enrolled["alike"] == []
    assert set(enrolled["expected"]) == {"value", "chosen_by", "false_accepts", "refusals", "refusals_measured"}
    assert enrolled["expected"]["refusals_measured"] is False
    call("enrol", gallery, "one", pictures / "sign 1")
    shown = [pictures / "sign 0" / "1.png", pictures / "sign 1" / "2.png", pictures / "sign 3" / "0.png"]
    answer = call("recognize", gallery, *shown, "--json")
    assert [found["label"] for found in json.loads(answer.out)] == ["zero", "one", None]
    assert call("recognize", gallery, pictures / "sign 1" / "2.png").out.startswith(str(pictures / "sign 1" / "2.png"))
    assert as_json(call("info", gallery, "--json"))["classes"] == {"zero": 1, "one": 3}
    assert as_json(call("forget", gallery, "zero", "--json"))["classes"] == {"one": 3}
    told(call("forget", gallery, "zero"), "'zero' is not enrolled")
    assert Recognizer.load(gallery).labels == ("one",)


def test_a_failed_enrol_leaves_the_gallery_as_it_was(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    gallery, bad = tmp_path / "gallery", tmp_path / "bad.png"
    call("enrol", gallery, "zero", pictures / "sign 0", "--model", model)
    before = (gallery / "gallery.safetensors").read_bytes()
    bad.write_text("no picture")
    told(call("enrol", gallery, "one", pictures / "sign 1", bad), "bad.png")
    told(call("enrol", gallery, "one", pictures / "sign 0" / "0.png"), "is already enrolled as 'zero'")
    told(call("enrol", gallery, "one", pictures / "sign 1", "--model", "omniglot"), "was made with the embedder")
    told(call("enrol", pictures, "one", pictures / "sign 1"), "is not empty and holds no gallery")
    told(call("recognize", pictures, pictures), "holds no gallery")
    assert (gallery / "gallery.safetensors").read_bytes() == before
    told(call("enrol", tmp_path / "new" / "gallery", "one", bad, "--model", model), "bad.png")
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="nobody waits there")
def test_two_processes_enrol_at_once(model: Path, pictures: Path, tmp_path: Path) -> None:
    embedder = Embedder.load(model, device="cpu")

    def enrol(number: int) -> None:
        with change_gallery(tmp_path / "gallery", embedder) as recognizer:
            recognizer.enrol(f"sign {number}", pictures / f"sign {number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enrol, range(4)))
    assert sorted(Recognizer.load(tmp_path / "gallery").labels) == [f"sign {number}" for number in range(4)]


@pytest.mark.skipif(sys.platform == "win32", reason="names are text there")
def test_labels_and_file_names_can_be_any_text(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x84")
    copied = tmp_path / odd / "sign.png"
    copied.parent.mkdir()
    shutil.copy(pictures / "sign 0" / "0.png", copied)
    call("enrol", tmp_path / "gallery", odd, copied, "--model", model)
    assert json.loads(call("recognize", tmp_path / "gallery", copied, "--nearest", "--json").out)[0]["label"] == odd


def test_enrol_shows_the_expected_errors(call: Call, pictures: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    one = call("enrol", gallery, "zero", pictures / "sign 0" / "0.png").out
    assert "this was measured on other pictures" in one
    call("enrol", gallery, "zero", pictures / "sign 0")
    told_then = call("enrol", gallery, "zero again", pictures / "sign 1").out
    assert "2 classes, 6 examples" in told_then
    assert "measured on other pictures" not in told_then
    assert "chosen for equal errors of both kinds" in told_then
    assert "of unknown pictures are accepted" in told_then
    assert "of pictures of the classes are refused or misnamed" in told_then
    rate = call("enrol", gallery, "two", pictures / "sign 2", "--false-accept-rate", "0.1").out
    assert "chosen for the rate of false accepts" in rate
    assert "10% (" in rate


def test_without_a_threshold_the_nearest_classes_are_shown(
    call: Call, model: Path, pictures: Path, tmp_path: Path
) -> None:
    gallery = tmp_path / "gallery"
    assert "no threshold" in call("enrol", gallery, "zero", pictures / "sign 0", "--model", model).out
    answer = call("recognize", gallery, pictures / "sign 1" / "0.png")
    assert "no threshold  (zero " in answer.out
    assert "use fewshot calibrate" in answer.err
    call("enrol", gallery, "one", pictures / "sign 1")
    assert "no threshold" not in call("recognize", gallery, pictures / "sign 1" / "0.png").out


def test_recognize_takes_a_rate_a_threshold_or_nearest(call: Call, pictures: Path, tmp_path: Path) -> None:
    gallery, stranger = tmp_path / "gallery", pictures / "sign 3" / "0.png"
    for number in range(2):
        call("enrol", gallery, f"sign {number}", pictures / f"sign {number}" / "0.png")

    def label(*options: str) -> str | None:
        found: list[dict[str, Any]] = json.loads(call("recognize", gallery, stranger, "--json", *options).out)
        return found[0]["label"]  # type: ignore[no-any-return]

    assert label() is None
    assert label("--nearest") in ("sign 0", "sign 1")
    assert label("--threshold", "-100") in ("sign 0", "sign 1")
    assert label("--threshold", "100") is None
    assert label("--false-accept-rate", "0.999999") in ("sign 0", "sign 1")
    shown = call("recognize", gallery, stranger)
    assert ": unknown  (sign " in shown.out
    assert "threshold of similarity" in shown.err
    told(call("recognize", gallery, stranger, "--nearest", "--threshold", "1"), "give only one")


def test_calibrate_sets_the_threshold_of_a_gallery(call: Call, model: Path, pictures: Path, tmp_path: Path) -> None:
    gallery = tmp_path / "gallery"
    for number in range(2):
        call("enrol", gallery, f"sign {number}", pictures / f"sign {number}" / "0.png", "--model", model)
    shown = call("calibrate", gallery, pictures, "--false-accept-rate", "0.2").out
    assert "4 pictures of enrolled classes: " in shown
    assert "6 pictures of other classes: " in shown
    found = as_json(call("calibrate", gallery, pictures, "--json"))
    assert (found["known"], found["unknown"]) == (4, 6)
    loaded = Recognizer.load(gallery)
    assert loaded.gallery.false_accept_rate == 0.2
    assert found["threshold"]["value"] == loaded.threshold
    assert set(found["threshold"]["false_accepts"]) == {"value", "low", "high"}
    about = as_json(call("info", gallery, "--json"))
    assert (about["background_pictures"], about["trial_pictures"]) == (6, 4)
    told(call("calibrate", gallery, tmp_path / "gallery"), "holds no pictures in class folders")
