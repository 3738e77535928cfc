"""A program as users write it, with public names alone: `make check` checks its types, as their editors do."""

from __future__ import annotations

from pathlib import Path

import fewshot
import finetune
from fewshot import Embedder, Index, Recognizer
from finetune import Classifier, Config, InputError, Prediction, UnreadablePicture, fit, load


def train(folder: Path) -> Classifier:
    return fit(folder, "run", config=Config(strategy="head", epochs=None))


def names(run: str, pictures: list[str]) -> list[str]:
    classifier = load(run, device="cpu")
    one: Prediction = classifier.predict(pictures[0], top=2)
    found = [one.label]
    for answer in classifier.predict_all(pictures):
        if isinstance(answer, UnreadablePicture):
            found.append(answer.reason)
        else:
            found.append(f"{answer.label} {answer.probability:.1%}")
    return found


def nearest(pictures: list[str]) -> list[tuple[str, float]]:
    embedder = Embedder.load("omniglot", device="cpu")
    index = Index(embedder.width)
    index.add(pictures, embedder.embed(pictures))
    return [(each.key, each.similarity) for each in index.search(embedder.embed(pictures[:1]), k=3)[0]]


def recognised(picture: str) -> str | None:
    recognizer = Recognizer(Embedder.load("omniglot")).enrol("cow", "cow.png")
    return recognizer.recognize(picture).label


def shared(run: str) -> str:
    try:
        return finetune.push_to_hub(run, "me/pets", private=True, include=["hashes"])
    except InputError as error:
        return str(error)


def accuracy(run: str) -> float:
    return float(finetune.evaluate(run, "pictures/")["accuracy"])


def version() -> list[str]:
    return [*finetune.__all__, *fewshot.__all__]
