"""Recognition from one picture of each class, with "unknown" as a possible answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.threshold import Calibration
from fewshot.recognition.gallery import SAME, Gallery, GallerySimilarities, check_rate
from fewshot.recognition.operating_point import Threshold
from finetune.data.folder import list_folder, list_unlabelled
from finetune.data.images import Picture
from finetune.errors import InputError, UnreadablePicture
from finetune.files import locked, read_tensors_and_metadata, write_tensors
from finetune.progress import Display

FORMAT = 2
READ = (1, 2)  # formats; before 2 there were no trials, and no rate was not an option
GALLERY_FILE = "gallery.safetensors"

Pictures = Picture | Tensor | Sequence[Picture | Tensor]


SHIPPED = "omniglot"


@dataclass(frozen=True)
class Recognition:
    """What a picture was taken for.

    Attributes:
        label: Its class; None for unknown, or where no threshold is known.
        nearest: The most similar class, whether it was accepted or not.
        similarity: To that class: the cosine with the mean of its examples, 1 at most.
        score: The share of pictures of no enrolled class that are less similar to their nearest class, from 0 to 1;
            None where nothing is known of such pictures.
        threshold: The similarity from which on a class is accepted; None where none is known, or `nearest` was asked.
        similarities: Of every class, the most similar first.
        scores: Of every class, in the same order; empty where nothing is known.
    """

    label: str | None
    nearest: str
    similarity: float
    score: float | None
    threshold: float | None
    similarities: Mapping[str, float]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """What a recogniser did with labelled pictures.

    Attributes:
        known: Pictures of enrolled classes; right, refused and misnamed of them are shares.
        unknown: Pictures of classes that are not enrolled; accepted of them is a share.
        threshold: The threshold that follows from these pictures and from all that was known before.
    """

    known: int
    right: float | None
    refused: float | None
    misnamed: float | None
    unknown: int
    accepted: float | None
    threshold: Threshold | None


class Recognizer:
    """Classes learned from one picture each, or a few, by an encoder that is not trained further.

    Enrolling and forgetting take milliseconds. Many threads may recognise at once; a change may not run beside anything
    else.

    Args:
        embedder: The encoder.
        false_accept_rate: Share of pictures of no enrolled class that may be taken for one, between 0 and 1. None for
            equal errors: as many unknown pictures are accepted as known ones are refused, a fifth at most
            (`fewshot.recognition.operating_point`).

    Raises:
        InputError: If the rate is not between 0 and 1.

    Example:
        >>> recognizer = Recognizer(Embedder.load("omniglot"))  # doctest: +SKIP
        >>> recognizer.enrol("stop", "stop.png").enrol("yield", "yield.png")  # doctest: +SKIP
        >>> recognizer.recognize("new.png").label  # doctest: +SKIP
        'stop'
    """

    def __init__(self, embedder: Embedder, *, false_accept_rate: float | None = None):
        self.embedder = embedder
        carried = embedder.recognition or embedder.verification
        self.gallery = Gallery(
            embedder.width,
            false_accept_rate=false_accept_rate,
            calibration=None if carried is None else Calibration.from_dict(carried),
        )

    def __repr__(self) -> str:
        return f"Recognizer({len(self.labels)} classes, {len(self.gallery.examples)} examples, by {self.embedder!r})"

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order in which they were enrolled."""
        return self.gallery.labels

    @property
    def threshold(self) -> float | None:
        """The similarity from which on a picture is no longer unknown; None where nothing is known to set it by.

        Raises:
            InputError: If nothing is enrolled.
        """
        return self.gallery.threshold

    def expect(self, false_accept_rate: float | None = None) -> Threshold | None:
        """The threshold, why it is that one, and the shares of mistakes to expect there, with intervals.

        Args:
            false_accept_rate: Another rate than the recogniser's own.

        Returns:
            None where nothing is known of unknown pictures: a single class, no background pictures, and an encoder that
            carries no calibration.

        Raises:
            InputError: If nothing is enrolled, or the rate is not between 0 and 1.
        """
        return self.gallery.threshold_for(false_accept_rate)

    def alike(self) -> list[GallerySimilarities]:
        """Pairs of enrolled classes that are too alike: the examples of one would be accepted as the other."""
        threshold = self.threshold if self.labels else None
        return [] if threshold is None else self.gallery.alike(threshold)

    def enrol(self, label: str, pictures: Pictures) -> Recognizer:
        """Learn a class, or more of one, from one picture or several.

        A picture that the class has already is not counted twice.

        Returns:
            This recogniser.

        Raises:
            InputError: If a picture is enrolled under another label; nothing is changed.
            UnreadablePicture: If one cannot be read; nothing is changed.
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
        """Take a class out.

        Returns:
            This recogniser.

        Raises:
            InputError: If it is not enrolled.
        """
        self.gallery.forget(label)
        return self

    def add_background(self, pictures: Pictures) -> Recognizer:
        """Learn how similar unknown pictures are, from pictures of classes that are not enrolled.

        Returns:
            This recogniser.

        Raises:
            UnreadablePicture: If one cannot be read; nothing is changed.
        """
        self.gallery.add_background(self.embedder.embed(_several(pictures)))
        return self

    def calibrate(
        self, folder: str | Path, *, false_accept_rate: float | None = None, display: Display | None = None
    ) -> Trial:
        """Measure on labelled pictures of one's own, and keep what they show of similarities.

        The pictures become no examples. Those of a class that is not enrolled show from now on how similar unknown
        pictures are, those of an enrolled one how many pictures are refused. A picture that is kept already, or is an
        example, is not counted again.

        Args:
            folder: One sub-folder for each class; those named as an enrolled class hold pictures of it.
            false_accept_rate: The recogniser's rate from now on; None leaves it.
            display: Shows a bar.

        Returns:
            What the recogniser does with these pictures, at the threshold that it has afterwards.

        Raises:
            InputError: If nothing is enrolled, or no picture of the folder can be read.
        """
        if not self.labels:
            raise InputError("nothing is enrolled yet; enrol at least one class")
        if false_accept_rate is not None:
            check_rate(false_accept_rate)
        listing = list_folder(Path(folder), to_train=False)
        found = self.embedder.embed_all([listing.root / sample.path for sample in listing.samples], display=display)
        good = [row for row in range(len(listing.samples)) if row not in found.unreadable]
        if not good:
            raise InputError(f"{folder}: none of its {len(listing.samples)} pictures can be read")
        labels = np.array([listing.samples[row].label for row in good])
        vectors = found.vectors[good]
        if false_accept_rate is not None:
            self.gallery.false_accept_rate = false_accept_rate
        self._keep_trials(labels, vectors)
        return self._tried(labels, vectors)

    def recognize(
        self,
        picture: Picture | Tensor,
        *,
        false_accept_rate: float | None = None,
        threshold: float | None = None,
        nearest: bool = False,
    ) -> Recognition:
        """What a picture shows.

        Args:
            picture: A path, the contents of a file, an array, a tensor or a PIL image.
            false_accept_rate: Another rate than the recogniser's own, for this picture.
            threshold: The similarity from which on a class is accepted, instead of a rate.
            nearest: Name the nearest class in any case; nothing is unknown.

        Raises:
            UnreadablePicture: If it cannot be read.
            InputError: If nothing is enrolled, or more than one of the three says what is accepted.
        """
        found = self.recognize_all(
            [picture], false_accept_rate=false_accept_rate, threshold=threshold, nearest=nearest
        )[0]
        if isinstance(found, UnreadablePicture):
            raise found
        return found

    def recognize_all(
        self,
        pictures: Sequence[Picture | Tensor] | NDArray[Any] | Tensor | str | Path,
        display: Display | None = None,
        *,
        false_accept_rate: float | None = None,
        threshold: float | None = None,
        nearest: bool = False,
    ) -> list[Recognition | UnreadablePicture]:
        """One answer for each picture, in order: what it shows, or the error that says why it cannot be read.

        The arguments are those of `recognize`; a folder stands for the pictures below it.
        """
        accepted_from = self._accepted_from(false_accept_rate, threshold, nearest)
        if isinstance(pictures, (str, Path)) and Path(pictures).is_dir():
            pictures = list_unlabelled([Path(pictures)])
        found = self.embedder.embed_all(pictures, display=display)
        readable = np.array([number not in found.unreadable for number in range(len(found.vectors))], bool)
        likeness = self.gallery.likeness(found.vectors[readable])
        shown = zip(likeness.similarity, likeness.score, strict=True)
        known = iter([self._answer(similarity, score, accepted_from) for similarity, score in shown])
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
            "trials": self.gallery.trials[0],
        }
        vectors = {
            "examples": self.gallery.examples,
            "background": self.gallery.background,
            "trials": self.gallery.trials[1],
        }
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
            recognizer.gallery.fill(about["counts"], tensors["examples"].numpy())
            recognizer.gallery.add_background(tensors["background"].numpy())
            if about["format"] > 1:
                pairs = zip(about["trials"], tensors["trials"].numpy(), strict=True)
                for label, group in groupby(pairs, key=itemgetter(0)):
                    recognizer.gallery.add_trials(label, [vector for _, vector in group])
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
            raise InputError(f"{path} is not as it was saved ({error}); it may be damaged") from error
        return recognizer

    def _accepted_from(self, rate: float | None, threshold: float | None, nearest: bool) -> float | None:
        """The similarity from which on a class is accepted; None where none is known."""
        if (rate is not None) + (threshold is not None) + nearest > 1:
            raise InputError("false_accept_rate, threshold and nearest each say what is accepted; give one of them")
        if nearest:
            return -np.inf
        if threshold is not None:
            return float(threshold)
        found = self.gallery.threshold_for(rate)
        return None if found is None else found.value

    def _answer(
        self, similarity: NDArray[np.float32], score: NDArray[np.float64], accepted_from: float | None
    ) -> Recognition:
        order = np.argsort(-similarity, kind="stable")
        labels = self.labels
        names = [labels[position] for position in order]
        similarities = dict(zip(names, similarity[order].tolist(), strict=True))
        scores = {} if np.isnan(score).any() else dict(zip(names, score[order].tolist(), strict=True))
        nearest = names[0]
        accepted = accepted_from is not None and similarities[nearest] >= accepted_from
        return Recognition(
            label=nearest if accepted else None,
            nearest=nearest,
            similarity=similarities[nearest],
            score=scores.get(nearest),
            threshold=None if accepted_from == -np.inf else accepted_from,
            similarities=similarities,
            scores=scores,
        )

    def _keep_trials(self, labels: NDArray[np.str_], vectors: NDArray[np.float32]) -> None:
        gallery = self.gallery
        kept = np.concatenate([gallery.examples, gallery.background, gallery.trials[1]])
        new = (vectors @ kept.T < SAME).all(1)
        enrolled = np.isin(labels, self.labels)
        gallery.add_background(vectors[new & ~enrolled])
        for label in np.unique(labels[new & enrolled]):
            gallery.add_trials(str(label), vectors[new & (labels == label)])

    def _tried(self, labels: NDArray[np.str_], vectors: NDArray[np.float32]) -> Trial:
        similarity = self.gallery.similarity(vectors)
        nearest = np.array(self.labels)[similarity.argmax(1)]
        expectation = self.expect()
        accepted = similarity.max(1) >= (np.inf if expectation is None else expectation.value)
        enrolled = np.isin(labels, self.labels)
        right = nearest == labels
        return Trial(
            known=int(enrolled.sum()),
            right=_share((accepted & right)[enrolled]),
            refused=_share(~accepted[enrolled]),
            misnamed=_share((accepted & ~right)[enrolled]),
            unknown=int((~enrolled).sum()),
            accepted=_share(accepted[~enrolled]),
            threshold=expectation,
        )


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
    if not isinstance(about, dict) or about.get("format") not in READ:
        raise InputError(f"{path} is of another version; this one reads formats {READ[0]} to {READ[-1]}")
    return about, tensors


def _several(pictures: Pictures) -> Any:
    """A list of one picture, or several as the embedder takes them."""
    if isinstance(pictures, (str, Path)):
        return pictures if Path(pictures).is_dir() else [pictures]
    single = isinstance(pictures, (bytes, Image.Image)) or (
        isinstance(pictures, (np.ndarray, Tensor)) and pictures.ndim < 4
    )
    return [pictures] if single else pictures


def _share(true: NDArray[np.bool_]) -> float | None:
    return float(true.mean()) if len(true) else None


def _different(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Those that are not of the very same picture as one before them."""
    cosines = np.tril(vectors @ vectors.T, -1)
    return vectors[~(cosines >= SAME).any(1)]


def _name(pictures: Any, number: int) -> str:
    if isinstance(pictures, Sequence) and isinstance(pictures[number], (str, Path)):
        return str(pictures[number])
    return f"picture {number}"


@contextmanager
def change_gallery(
    folder: Path,
    embedder: Embedder | None,
    *,
    false_accept_rate: float | None = None,
    device: str = "auto",
) -> Iterator[Recognizer]:
    """The recognizer saved in `folder`, or a new one, to be changed; it is saved at the end unless that failed.

    embedder: of a new one, the encoder that ships when None; of a saved one it must be the one that it was made with.
    false_accept_rate: as saved, or as usual for a new one, when None. InputError where the folder holds something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder for the gallery")
    saved = (folder / GALLERY_FILE).exists()
    if not saved and folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no gallery; name another folder")
    if embedder is None and not saved:
        embedder = Embedder.load(SHIPPED, device=device)  # before a folder is made for it
    with locked(folder):
        # Another process may have made the gallery meanwhile.
        if embedder is None or (folder / GALLERY_FILE).exists():
            recognizer = Recognizer.load(folder, embedder=embedder, device=device)
        else:
            recognizer = Recognizer(embedder)
        if false_accept_rate is not None:
            recognizer.gallery.false_accept_rate = false_accept_rate
        yield recognizer
        recognizer.save(folder)
