"""Recognition from one picture of each class, which may answer that it does not know."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot.calibration import Calibration
from fewshot.embedder import Embedder
from fewshot.gallery import SAME, Gallery
from finetune.errors import InputError, UnreadablePicture
from finetune.files import read_tensors_and_metadata, write_tensors
from finetune.folder import list_unlabelled
from finetune.images import Picture
from finetune.progress import Display

FORMAT = 1
GALLERY_FILE = "gallery.safetensors"


@dataclass(frozen=True)
class Recognition:
    """What a picture was taken for.

    label: its class; None for unknown. nearest: the most similar class, known or not. similarity: to that one, 1 at
    most. score: the share of pictures of no enrolled class that are less like any class, from 0 to 1; the picture is
    unknown where that is under 1 - the false-accept rate. similarities, scores: of every class, the most similar first.
    """

    label: str | None
    nearest: str
    similarity: float
    score: float
    similarities: Mapping[str, float]
    scores: Mapping[str, float]


class Recognizer:
    """Classes learned from one picture each, or a few, by an embedder that is not trained further.

    false_accept_rate: share of pictures of no enrolled class that may be taken for one; `Gallery` says how the
    threshold follows from it. Enrolling and forgetting take milliseconds. Many threads may recognise at once; a change
    may not run beside anything else.
    """

    def __init__(self, embedder: Embedder, *, false_accept_rate: float = 0.05):
        self.embedder = embedder
        impostors = None if embedder.verification is None else Calibration.from_dict(embedder.verification)
        self.gallery = Gallery(embedder.width, false_accept_rate=false_accept_rate, impostors=impostors)

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order in which they were enrolled."""
        return self.gallery.labels

    @property
    def threshold(self) -> float:
        """The similarity from which on a picture is no longer unknown. InputError when nothing is enrolled."""
        return self.gallery.threshold

    def enrol(self, label: str, pictures: Picture | Tensor | Sequence[Picture | Tensor]) -> Recognizer:
        """Learn a class, or more of one, from one picture or several; returns this recognizer.

        A picture that the class has already is not counted twice. InputError, changing nothing, for a picture that is
        enrolled under another label; UnreadablePicture for one that cannot be read.
        """
        vectors = self.embedder.embed(_several(pictures))
        holders = self.gallery.holders(vectors)
        for number, holder in enumerate(holders):
            if holder not in (None, label):
                raise InputError(f"picture {number} of {label!r} is enrolled as {holder!r} already; forget that first")
        new = _different(vectors[[holder is None for holder in holders]])
        if len(new) or not len(vectors):
            self.gallery.enrol(label, new)
        return self

    def forget(self, label: str) -> Recognizer:
        """Take a class out; returns this recognizer. InputError when it is not enrolled."""
        self.gallery.forget(label)
        return self

    def add_background(self, pictures: Picture | Tensor | Sequence[Picture | Tensor]) -> Recognizer:
        """Learn from pictures of things that will never be enrolled what unknown ones are like; returns this
        recognizer. UnreadablePicture for one that cannot be read."""
        self.gallery.add_background(self.embedder.embed(_several(pictures)))
        return self

    def recognize(self, picture: Picture | Tensor) -> Recognition:
        """What a picture shows. UnreadablePicture when it cannot be read, InputError when nothing is enrolled."""
        found = self.recognize_all([picture])[0]
        if isinstance(found, UnreadablePicture):
            raise found
        return found

    def recognize_all(
        self, pictures: Sequence[Picture | Tensor] | NDArray[Any] | Tensor | str | Path, display: Display | None = None
    ) -> list[Recognition | UnreadablePicture]:
        """One answer for each picture, in order: what it shows, or the error that says why it cannot be read."""
        if not self.labels:
            raise InputError("nothing is enrolled yet; enrol at least one class")
        if isinstance(pictures, (str, Path)) and Path(pictures).is_dir():
            pictures = list_unlabelled([Path(pictures)])
        found = self.embedder.embed_all(pictures, display=display)
        readable = np.array([number not in found.unreadable for number in range(len(found.vectors))], bool)
        likeness = self.gallery.likeness(found.vectors[readable])
        threshold, shown = self.threshold, zip(likeness.similarity, likeness.score, strict=True)
        known = iter([self._answer(similarity, score, threshold) for similarity, score in shown])
        return [
            next(known) if good else UnreadablePicture(_name(pictures, number), found.unreadable[number])
            for number, good in enumerate(readable)
        ]

    def save(self, folder: str | Path) -> None:
        """Everything but the encoder's weights, in one file in `folder`, which is replaced whole or not at all."""
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder for the gallery")
        about = {
            "format": FORMAT,
            "fingerprint": self.embedder.fingerprint,
            "origin": self.embedder.origin,
            "false_accept_rate": self.gallery.false_accept_rate,
            "counts": self.gallery.counts,
            "impostors": None if self.gallery.impostors is None else self.gallery.impostors.to_dict(),
        }
        vectors = {"examples": self.gallery.examples, "background": self.gallery.background}
        write_tensors(
            folder / GALLERY_FILE,
            {name: torch.from_numpy(values) for name, values in vectors.items()},
            {"gallery": json.dumps(about, allow_nan=False)},
        )

    @classmethod
    def load(cls, folder: str | Path, *, embedder: Embedder | None = None, device: str = "auto") -> Recognizer:
        """What was saved in `folder`, with the embedder that it was made with, or `embedder`.

        InputError when there is none, it is damaged, or the embedder is another.
        """
        path = Path(folder) / GALLERY_FILE
        about, tensors = read_gallery(Path(folder))
        embedder = embedder or Embedder.of_origin(about.get("origin"), device=device)
        if embedder.fingerprint != about.get("fingerprint"):
            raise InputError(
                f"{folder} was made with the embedder {about.get('fingerprint')}, not with {embedder.fingerprint}: "
                "give that one, or enrol anew"
            )
        try:
            recognizer = cls(embedder, false_accept_rate=about["false_accept_rate"])
            impostors = about["impostors"]
            recognizer.gallery.impostors = None if impostors is None else Calibration.from_dict(impostors)
            recognizer.gallery.fill(about["counts"], tensors["examples"].numpy())
            recognizer.gallery.add_background(tensors["background"].numpy())
        except (KeyError, TypeError, AttributeError, InputError) as error:
            raise InputError(f"{path} is not as it was saved ({error}); it may be damaged") from error
        return recognizer

    def _answer(self, similarity: NDArray[np.float32], score: NDArray[np.float64], threshold: float) -> Recognition:
        order = np.argsort(-similarity, kind="stable")
        labels = self.labels
        names = [labels[position] for position in order]
        similarities = dict(zip(names, similarity[order].tolist(), strict=True))
        scores = dict(zip(names, score[order].tolist(), strict=True))
        nearest = names[0]
        label = nearest if similarities[nearest] >= threshold else None
        return Recognition(label, nearest, similarities[nearest], scores[nearest], similarities, scores)


def read_gallery(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a saved gallery tells of itself, and its vectors. InputError when there is none, or it is damaged."""
    path = folder / GALLERY_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no gallery: it has no {GALLERY_FILE}; fewshot enrol makes one")
    tensors, metadata = read_tensors_and_metadata(path)
    try:
        about = json.loads(metadata["gallery"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is not a gallery; it may be damaged") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise InputError(f"{path} is of another version; this one reads format {FORMAT}")
    return about, tensors


def _several(pictures: Picture | Tensor | Sequence[Picture | Tensor]) -> Any:
    """A list of one picture, or several as the embedder takes them."""
    if isinstance(pictures, (str, Path)):
        return pictures if Path(pictures).is_dir() else [pictures]
    single = isinstance(pictures, (bytes, Image.Image)) or (
        isinstance(pictures, (np.ndarray, Tensor)) and pictures.ndim < 4
    )
    return [pictures] if single else pictures


def _different(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those that are not of the very same picture as one before them."""
    cosines = np.tril(vectors @ vectors.T, -1)
    return vectors[~(cosines >= SAME).any(1)]


def _name(pictures: Any, number: int) -> str:
    if isinstance(pictures, Sequence) and isinstance(pictures[number], (str, Path)):
        return str(pictures[number])
    return f"picture {number}"
