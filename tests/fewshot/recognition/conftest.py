from __future__ import annotations

from copy import deepcopy

import pytest
from made_recognizer import NAMES, drawn

from fewshot.embedding.embedder import Embedder
from fewshot.recognition.recognizer import Recognizer


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load("omniglot", device="cpu")


@pytest.fixture(scope="module")
def enrolled(embedder: Embedder) -> Recognizer:
    """One drawing each of twelve characters."""
    made = Recognizer(embedder)
    for number, name in enumerate(NAMES):
        made.enrol(name, drawn(number))
    return made


@pytest.fixture
def recognizer(enrolled: Recognizer) -> Recognizer:
    """A copy of it, to be changed."""
    copied = Recognizer(enrolled.embedder)
    copied.gallery = deepcopy(enrolled.gallery)
    return copied
