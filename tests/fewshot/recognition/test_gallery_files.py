from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import forked
from made_recognizer import NAMES, answers, contents, drawn, other_embedder

from fewshot.embedding.embedder import Embedder
from fewshot.recognition.answers import Recognition
from fewshot.recognition.gallery_files import GALLERY_FILE
from fewshot.recognition.recognizer import Recognizer
from finetune.errors import InputError
from finetune.files.reading import read_tensors_and_metadata
from finetune.files.writing import write_tensors

LABELS = ["Ä/ö", "漢字", "🦉", "a\nb\t\0", " ", "..", "\udce9\ud800", "e\u0301", "é", "counts"]


def test_a_loaded_recogniser_gives_the_same_answers(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.enrol(NAMES[0], drawn(0, 3)).add_background([drawn(90), drawn(91)])
    recognizer.save(tmp_path / "deep" / "gallery")
    for loaded in (
        Recognizer.load(str(tmp_path / "deep" / "gallery"), device="cpu"),
        Recognizer.load(tmp_path / "deep" / "gallery", embedder=recognizer.embedder),
    ):
        assert contents(loaded) == contents(recognizer)
        for ours, theirs in zip(answers(loaded), answers(recognizer), strict=True):
            assert isinstance(ours, Recognition)
            assert isinstance(theirs, Recognition)
            assert (ours.label, ours.similarities) == (theirs.label, theirs.similarities)
            # Of classes enrolled one by one, what unknown pictures are like was added up in another order.
            assert list(ours.scores.values()) == pytest.approx(list(theirs.scores.values()), abs=1e-5)
        assert loaded.threshold == pytest.approx(recognizer.threshold, abs=1e-5)


def test_loading_and_saving_keeps_every_bit(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.enrol(NAMES[0], drawn(0, 3)).add_background([drawn(90), drawn(91)]).save(tmp_path / "one")
    loaded = Recognizer.load(tmp_path / "one", embedder=recognizer.embedder)
    loaded.save(tmp_path / "other")
    again = Recognizer.load(tmp_path / "other", embedder=recognizer.embedder)
    assert (tmp_path / "one" / GALLERY_FILE).read_bytes() == (tmp_path / "other" / GALLERY_FILE).read_bytes()
    assert contents(again) == contents(loaded)
    assert answers(again) == answers(loaded)
    assert again.threshold == loaded.threshold


def test_labels_may_be_any_text(embedder: Embedder, tmp_path: Path) -> None:
    recognizer = Recognizer(embedder, false_accept_rate=0.2)
    for number, label in enumerate(LABELS):
        recognizer.enrol(label, drawn(number))
    recognizer.save(tmp_path)
    loaded = Recognizer.load(tmp_path, embedder=embedder)
    assert loaded.labels == tuple(LABELS)
    assert [loaded.recognize(drawn(number)).label for number in range(len(LABELS))] == LABELS


def test_an_empty_gallery_can_be_saved(embedder: Embedder, tmp_path: Path) -> None:
    Recognizer(embedder, false_accept_rate=0.2).save(tmp_path)
    loaded = Recognizer.load(tmp_path, embedder=embedder)
    assert loaded.labels == ()
    assert loaded.gallery.false_accept_rate == 0.2
    assert loaded.enrol("a", drawn(0)).recognize(drawn(0)).label == "a"


def refused(folder: Path, message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Recognizer.load(folder, **options)
    assert "\n" not in str(caught.value)


def test_another_embedder_is_refused(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.save(tmp_path)
    refused(
        tmp_path,
        "was made with the embedder .*, not .*: give its own embedder, or enrol again",
        embedder=other_embedder(),
    )


def test_an_embedder_without_origin_must_be_given(tmp_path: Path) -> None:
    embedder = other_embedder()
    Recognizer(embedder).enrol("a", drawn(0)).save(tmp_path)
    refused(tmp_path, "it is not recorded which embedder this was made with")
    assert Recognizer.load(tmp_path, embedder=embedder).labels == ("a",)


def test_files_that_are_missing_or_damaged_are_named(recognizer: Recognizer, tmp_path: Path) -> None:
    given = {"embedder": recognizer.embedder}
    refused(tmp_path / "missing", "missing holds no gallery", **given)
    refused(tmp_path, f"holds no gallery: it has no {GALLERY_FILE}", **given)
    recognizer.save(tmp_path)
    path = tmp_path / GALLERY_FILE
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], b"junk" * 100):
        path.write_bytes(damaged)
        refused(tmp_path, f"{GALLERY_FILE} is not a valid safetensors file", **given)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file; choose a folder for the gallery"):
        recognizer.save(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "has another format; this version reads 1 to 2"),
        ({"counts": {"a": 13}}, "do not match the counts"),
        ({"counts": {"": 12}}, "a label must be a text"),
        ({"counts": {"a": 12.0}}, "may be damaged: counts"),
        ({"counts": [12]}, "may be damaged: counts"),
        ({"counts": None}, "may be damaged: counts"),
        ({"false_accept_rate": 2}, "between 0 and 1"),
        ({"false_accept_rate": "x"}, "may be damaged: false_accept_rate"),
        ({"trials": ["character 0"]}, "is damaged: "),
        ({"trials": 5}, "may be damaged: trials"),
    ],
)
def test_a_gallery_with_invalid_entries_is_refused(
    change: dict[str, Any], message: str, recognizer: Recognizer, tmp_path: Path
) -> None:
    recognizer.save(tmp_path)
    tensors, metadata = read_tensors_and_metadata(tmp_path / GALLERY_FILE)
    changed = {"gallery": json.dumps(json.loads(metadata["gallery"]) | change)}
    write_tensors(tmp_path / GALLERY_FILE, tensors, changed)
    refused(tmp_path, message, embedder=recognizer.embedder)


def test_a_gallery_of_an_earlier_version_is_read(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.gallery.false_accept_rate = 0.05
    recognizer.save(tmp_path)
    tensors, metadata = read_tensors_and_metadata(tmp_path / GALLERY_FILE)
    about = json.loads(metadata["gallery"])
    about |= {"format": 1, "impostors": None}
    del about["trials"], tensors["trials"]
    write_tensors(tmp_path / GALLERY_FILE, tensors, {"gallery": json.dumps(about)})
    assert contents(Recognizer.load(tmp_path, embedder=recognizer.embedder)) == contents(recognizer)


def test_damaged_vectors_are_refused(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.save(tmp_path)
    tensors, metadata = read_tensors_and_metadata(tmp_path / GALLERY_FILE)
    examples = tensors["examples"]
    for damaged in (examples * 2, examples * torch.nan, examples[:, :5].clone(), examples[:3].clone(), examples[0]):
        write_tensors(tmp_path / GALLERY_FILE, tensors | {"examples": damaged}, metadata)
        refused(tmp_path, "is damaged: ", embedder=recognizer.embedder)
    write_tensors(tmp_path / GALLERY_FILE, {"examples": examples}, metadata)
    refused(tmp_path, "is damaged: ", embedder=recognizer.embedder)
    write_tensors(tmp_path / GALLERY_FILE, tensors, {"gallery": "{"})
    refused(tmp_path, "is not a gallery; it may be damaged", embedder=recognizer.embedder)
    write_tensors(tmp_path / GALLERY_FILE, tensors)
    refused(tmp_path, "is not a gallery; it may be damaged", embedder=recognizer.embedder)


def save_on_and_on(recognizer: Recognizer, folder: Path) -> None:
    example = recognizer.gallery.examples[:1]
    while True:
        recognizer.gallery.enrol("one", example)
        recognizer.gallery.enrol("two", -example)
        recognizer.save(folder)


@pytest.mark.slow
def test_a_killed_save_leaves_the_old_or_the_new_gallery(recognizer: Recognizer, tmp_path: Path) -> None:
    recognizer.save(tmp_path)
    path, moments = tmp_path / GALLERY_FILE, random.Random(0)
    before = path.stat().st_mtime_ns
    with forked(save_on_and_on, recognizer, tmp_path) as process:
        deadline = time.monotonic() + 60
        while path.stat().st_mtime_ns == before and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        assert process.pid is not None
        # A process that is stopped has left what it would have left if it had been killed: look at many moments.
        for _ in range(40):
            time.sleep(moments.uniform(0.001, 0.01))
            os.kill(process.pid, signal.SIGSTOP)
            assert_whole(tmp_path, recognizer)
            os.kill(process.pid, signal.SIGCONT)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    assert_whole(tmp_path, recognizer)


def assert_whole(folder: Path, recognizer: Recognizer) -> None:
    counts = Recognizer.load(folder, embedder=recognizer.embedder).gallery.counts
    assert counts["one"] == counts["two"] >= 1
