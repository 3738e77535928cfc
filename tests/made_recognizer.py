"""Drawings of characters that tests enrol, and what a recogniser holds and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from drawings import character
from numpy.typing import NDArray

from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec, create, round_to_half
from fewshot.recognition.answers import Recognition
from fewshot.recognition.recognizer import Recognizer
from finetune.errors import UnreadablePicture

NAMES = [f"character {number}" for number in range(12)]


def drawn(number: int, drawer: int = 0) -> NDArray[np.uint8]:
    """Dark ink on white."""
    return 255 - character(number, drawer)


def contents(recognizer: Recognizer) -> tuple[Any, ...]:
    gallery = recognizer.gallery
    labels, trials = gallery.trials
    return gallery.counts, gallery.examples.tolist(), gallery.background.tolist(), labels, trials.tolist()


def answers(recognizer: Recognizer) -> list[Recognition | UnreadablePicture]:
    return recognizer.recognize_all([drawn(number, 1) for number in range(16)])


def other_embedder() -> Embedder:
    torch.manual_seed(0)
    spec = EncoderSpec("fewtune_drawing", 32, "drawing")
    network = create(spec)
    round_to_half(network)
    return Embedder(network, spec, device="cpu")
