"""What clients of `fewshot serve` get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from made_pictures import encoded
from made_recognizer import NAMES, drawn
from PIL import Image
from served import WAIT, command, serving

import fewshot
from finetune.errors import InputError

pytestmark = pytest.mark.slow


def file_of(number: int, drawer: int = 0) -> bytes:
    return encoded(Image.fromarray(drawn(number, drawer)), "PNG")


@pytest.fixture(scope="module")
def recognizer() -> fewshot.Recognizer:
    made = fewshot.Recognizer(fewshot.Embedder.load("omniglot", device="cpu"))
    for number, name in enumerate(NAMES):
        made.enrol(name, file_of(number))
    return made


@pytest.fixture(scope="module")
def client(recognizer: fewshot.Recognizer) -> Iterator[httpx.Client]:
    with serving(fewshot.make_app(recognizer)) as opened:
        yield opened


@pytest.mark.parametrize("options", [{}, {"false_accept_rate": 0.25}, {"threshold": 0.9}, {"nearest": True}])
def test_pictures_get_the_answers_of_the_recognizer(
    client: httpx.Client, recognizer: fewshot.Recognizer, options: dict[str, Any]
) -> None:
    pictures = [file_of(number, 1) for number in range(16)]
    answer = client.post("/predict", files=[("picture", ("a.png", each)) for each in pictures], params=options)
    assert answer.status_code == 200
    for found, known in zip(answer.json()["predictions"], recognizer.recognize_all(pictures, **options), strict=True):
        assert isinstance(known, fewshot.Recognition)
        assert (found["label"], found["nearest"]) == (known.label, known.nearest)
        assert found["similarity"] == pytest.approx(known.similarity, abs=1e-4)
        assert found["threshold"] == (None if known.threshold is None else pytest.approx(known.threshold, abs=1e-4))
        assert [each["label"] for each in found["top"]] == list(known.similarities)[:5]


def test_a_recognizer_answers_a_picture_alone_as_among_others(recognizer: fewshot.Recognizer) -> None:
    pictures = [file_of(number, 1) for number in range(16)]
    together = recognizer.recognize_all([*pictures, b"none"], alone=True)
    assert together[5] == recognizer.recognize_all([pictures[5]], alone=True)[0]
    assert isinstance(together[16], fewshot.UnreadablePicture)


def test_a_compiled_recognizer_answers_a_picture_alone_as_among_others() -> None:
    pictures = [file_of(number, 1) for number in range(16)]
    plain, compiled = (fewshot.Recognizer(fewshot.Embedder.load("omniglot", device="cpu")) for _ in range(2))
    assert compiled.embedder.compile_alone()
    for number, name in enumerate(NAMES):
        plain.enrol(name, file_of(number))
        compiled.enrol(name, file_of(number))
    together = compiled.recognize_all(pictures, alone=True)
    expected = plain.recognize_all(pictures, alone=True)
    assert together != expected, "the digits of another program"
    for one, other in zip(together, expected, strict=True):
        assert isinstance(one, fewshot.Recognition)
        assert isinstance(other, fewshot.Recognition)
        assert (one.label, one.nearest) == (other.label, other.nearest)
        assert one.similarity == pytest.approx(other.similarity, abs=1e-4)
    assert together[5] == compiled.recognize_all([pictures[5]], alone=True)[0]
    assert together[5:9] == compiled.recognize_all(pictures[5:9], alone=True)


def test_vectors_of_exactly_float32_are_not_compiled() -> None:
    assert not fewshot.Embedder.load("omniglot", tolerance=1, device="cpu").compile_alone()


def test_what_cannot_be_answered_is_refused_with_the_reason(client: httpx.Client) -> None:
    both = client.post("/predict", content=file_of(0), params={"nearest": True, "threshold": 0.5})
    assert (both.status_code, both.json()["detail"][:17]) == (422, "give only one of ")
    assert client.post("/predict", content=b"none").json()["detail"] == "not a picture"
    assert client.post("/predict", content=file_of(0), params={"false_accept_rate": 0}).status_code == 422
    other = client.post("/predict", content=file_of(0), params={"min_probability": 0.5})
    assert (other.status_code, other.json()["detail"][:37]) == (422, "there is no option 'min_probability';")
    with pytest.raises(InputError, match="nothing is enrolled"):
        fewshot.make_app(fewshot.Recognizer(fewshot.Embedder.load("omniglot", device="cpu")))


def test_the_command_serves_a_gallery(recognizer: fewshot.Recognizer, tmp_path: Path) -> None:
    recognizer.save(tmp_path)
    with command("fewshot", "serve", tmp_path, "--port", 0, "--device", "cpu") as (process, address):
        described = httpx.get(f"{address}/metadata", timeout=WAIT).json()
        process.terminate()
        _, said = process.communicate(timeout=WAIT)
    assert described["classes"] == dict.fromkeys(NAMES, 1)
    assert described["threshold"] == pytest.approx(recognizer.threshold)
    starting = f"{tmp_path}: starting; the network is prepared first, which takes some seconds\n"
    assert (process.returncode, said) == (143, f"{starting}fewshot: stopped\n")
