"""Recognition from one picture of each class, with "unknown" as a possible answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.threshold import Calibration
from fewshot.recognition.answers import Recognition, Trial
from fewshot.recognition.gallery import SAME, Gallery, SimilarClasses, check_rate
from fewshot.recognition.gallery_files import GALLERY_FILE, check_folder, fill_gallery, read_gallery, write_gallery
from fewshot.recognition.operating_point import Threshold
from finetune.data.folder import list_folder, list_unlabelled
from finetune.data.images import Picture
from finetune.errors import InputError, UnreadablePicture
from finetune.files.locks import locked
from finetune.progress import Display

DEFAULT_ENCODER = "omniglot"

Pictures = Picture | Tensor | Sequence[Picture | Tensor]


class Recognizer:
    """Classes learned from one picture each, or a few, by an encoder that is not trained further.

    Enrolling and forgetting take milliseconds. Several threads may recognise at once; a change must run alone.

    Args:
        embedder: The encoder.
        false_accept_rate: Share of pictures of no enrolled class that may be given one, between 0 and 1. None for
            equal errors: as many unknown pictures are accepted as known ones are refused, at most a fifth.

    Raises:
        InputError: If the rate is not between 0 and 1.

    Example:
        >>> from fewshot import Embedder, Recognizer
        >>> recognizer = Recognizer(Embedder.load("omniglot", device="cpu"))
        >>> recognizer = recognizer.enrol("stop", "signs/class00/00.png").enrol("yield", "signs/class01/00.png")
        >>> recognizer.recognize("sign.png").nearest
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
        """The enrolled classes, in the order of enrolment."""
        return self.gallery.labels

    @property
    def threshold(self) -> float | None:
        """The smallest similarity that is accepted; None if nothing is known to choose it by.

        Raises:
            InputError: If nothing is enrolled.
        """
        return self.gallery.threshold

    def expect(self, false_accept_rate: float | None = None) -> Threshold | None:
        """The threshold, how it was chosen, and the expected shares of errors with intervals.

        Args:
            false_accept_rate: In place of the recogniser's own rate.

        Returns:
            None if nothing is known about unknown pictures: a single class, no background pictures, and an encoder
            without calibration.

        Raises:
            InputError: If nothing is enrolled, or the rate is not between 0 and 1.
        """
        return self.gallery.threshold_for(false_accept_rate)

    def alike(self) -> list[SimilarClasses]:
        """Pairs of enrolled classes that are too similar: examples of one would be accepted as the other."""
        threshold = self.threshold if self.labels else None
        return [] if threshold is None else self.gallery.alike(threshold)

    def enrol(self, label: str, pictures: Pictures) -> Recognizer:
        """Enrol one or more pictures of a new or an enrolled class. A picture of the class counts once.

        Returns:
            This recogniser.

        Raises:
            InputError: If a picture is enrolled under another label; nothing changes.
            UnreadablePicture: If one cannot be read; nothing changes.
        """
        vectors = self.embedder.embed(_several(pictures))
        holders = self.gallery.holders(vectors)
        for number, holder in enumerate(holders):
            if holder not in (None, label):
                raise InputError(
                    f"picture {number} of {label!r} is already enrolled as {holder!r}; forget that class first"
                )
        new = _different(vectors[[holder is None for holder in holders]])
        if len(new) or not len(vectors):
            self.gallery.enrol(label, new)
        return self

    def forget(self, label: str) -> Recognizer:
        """Remove a class.

        Returns:
            This recogniser.

        Raises:
            InputError: If it is not enrolled.
        """
        self.gallery.forget(label)
        return self

    def add_background(self, pictures: Pictures) -> Recognizer:
        """Add pictures of classes that are not enrolled; they show how similar unknown pictures are.

        Returns:
            This recogniser.

        Raises:
            UnreadablePicture: If one cannot be read; nothing changes.
        """
        self.gallery.add_background(self.embedder.embed(_several(pictures)))
        return self

    def calibrate(
        self, folder: str | Path, *, false_accept_rate: float | None = None, display: Display | None = None
    ) -> Trial:
        """Measure on your own labelled pictures, and keep their vectors for choosing the threshold.

        The pictures do not become examples. Those of enrolled classes show how many pictures are refused, all others
        how similar unknown pictures are. A picture that is an example does not count.

        Args:
            folder: One sub-folder for each class; its name says whether the class is enrolled.
            false_accept_rate: New rate of the recogniser; None keeps it.
            display: Shows a bar.

        Returns:
            Results on these pictures, at the new threshold.

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
            raise InputError(f"{folder}: none of the {len(listing.samples)} pictures can be read")
        labels = np.array([listing.samples[row].label for row in good])
        vectors = found.vectors[good]
        if false_accept_rate is not None:
            self.gallery.false_accept_rate = false_accept_rate
        self._keep_trials(labels, vectors)
        # An example is certain to be recognised: it would make the shares look better than they are.
        others = (vectors @ self.gallery.examples.T < SAME).all(1)
        return self._trial(labels[others], vectors[others])

    def recognize(
        self,
        picture: Picture | Tensor,
        *,
        false_accept_rate: float | None = None,
        threshold: float | None = None,
        nearest: bool = False,
    ) -> Recognition:
        """Recognise one picture.

        Args:
            picture: A path, the contents of a file, an array, a tensor or a PIL image.
            false_accept_rate: For this picture, in place of the recogniser's own rate.
            threshold: The smallest similarity that is accepted, in place of a rate.
            nearest: Always name the nearest class.

        Raises:
            UnreadablePicture: If it cannot be read.
            InputError: If nothing is enrolled, or more than one of the three options is given.
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
        alone: bool = False,
    ) -> list[Recognition | UnreadablePicture]:
        """Recognise pictures, or all pictures below a folder. The options are those of `recognize`.

        alone: Run the encoder on one picture at a time, or on a GPU in batches of one size. Its answer is then bit for
        bit the same, whatever the other pictures are; otherwise its last digits depend on the size of the batch.

        Returns:
            For each picture, in order, the answer or the error that says why it cannot be read.
        """
        accepted_from = self._accepted_from(false_accept_rate, threshold, nearest)
        if isinstance(pictures, (str, Path)) and Path(pictures).is_dir():
            pictures = list_unlabelled([Path(pictures)])
        found = self.embedder.embed_all(pictures, alone=alone, display=display)
        readable = np.array([number not in found.unreadable for number in range(len(found.vectors))], bool)
        vectors = found.vectors[readable]
        parts = [vectors[at : at + 1] for at in range(len(vectors))] if alone else [vectors]
        compared = [self.gallery.likeness(part) for part in parts]
        shown = [pair for likeness in compared for pair in zip(likeness.similarity, likeness.score, strict=True)]
        known = iter([self._answer(similarity, score, accepted_from) for similarity, score in shown])
        return [
            next(known) if good else UnreadablePicture(_name(pictures, number), found.unreadable[number])
            for number, good in enumerate(readable)
        ]

    def save(self, folder: str | Path) -> None:
        """Save all but the encoder's weights to one file in `folder`, which is replaced as a whole."""
        write_gallery(Path(folder), self.gallery, fingerprint=self.embedder.fingerprint, origin=self.embedder.origin)

    @classmethod
    def load(cls, folder: str | Path, *, embedder: Embedder | None = None, device: str = "auto") -> Recognizer:
        """Load a saved recogniser.

        Args:
            folder: Where it was saved.
            embedder: Its embedder; loaded from its origin when None.
            device: "auto", "cpu" or "cuda", for an embedder that is loaded.

        Raises:
            InputError: If there is none, it is damaged, or `embedder` is a different one.
        """
        header, vectors = read_gallery(Path(folder))
        embedder = embedder or Embedder.of_origin(header.origin, device=device)
        if embedder.fingerprint != header.fingerprint:
            raise InputError(
                f"{folder} was made with the embedder {header.fingerprint}, not {embedder.fingerprint}: give its own "
                "embedder, or enrol again"
            )
        recognizer = cls(embedder, false_accept_rate=header.false_accept_rate)
        fill_gallery(recognizer.gallery, header, vectors, str(Path(folder) / GALLERY_FILE))
        return recognizer

    def _accepted_from(self, rate: float | None, threshold: float | None, nearest: bool) -> float | None:
        """The smallest similarity that is accepted; None if none is known."""
        if (rate is not None) + (threshold is not None) + nearest > 1:
            raise InputError("give only one of false_accept_rate, threshold and nearest")
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

    def _trial(self, labels: NDArray[np.str_], vectors: NDArray[np.float32]) -> Trial:
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


@contextmanager
def change_gallery(
    folder: Path,
    embedder: Embedder | None,
    *,
    false_accept_rate: float | None = None,
    device: str = "auto",
) -> Iterator[Recognizer]:
    """Open the recogniser saved in `folder`, or a new one, and save it at the end of the block unless that fails.

    One process at a time changes a gallery.

    Args:
        folder: Of the gallery; created if missing.
        embedder: Of a new recogniser, the encoder that ships when None; of a saved one it must be its own.
        false_accept_rate: New rate of the recogniser; None keeps it.
        device: "auto", "cpu" or "cuda", for an embedder that is loaded.

    Raises:
        InputError: If the folder holds something else.

    Returns:
        Context manager that gives the recogniser.

    Example:
        >>> from fewshot import change_gallery
        >>> with change_gallery(Path("gallery"), None, device="cpu") as recognizer:
        ...     _ = recognizer.enrol("stop", "sign.png")
        >>> Recognizer.load(Path("gallery"), device="cpu").labels
        ('stop',)
    """
    check_folder(folder)
    saved = (folder / GALLERY_FILE).exists()
    if not saved and folder.exists() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder} is not empty and holds no gallery; choose another folder")
    if embedder is None and not saved:
        embedder = Embedder.load(DEFAULT_ENCODER, device=device)  # before the folder is created
    with locked(folder):
        # Another process may have created the gallery in the meantime.
        if embedder is None or (folder / GALLERY_FILE).exists():
            recognizer = Recognizer.load(folder, embedder=embedder, device=device)
        else:
            recognizer = Recognizer(embedder)
        if false_accept_rate is not None:
            recognizer.gallery.false_accept_rate = false_accept_rate
        yield recognizer
        recognizer.save(folder)


def _several(pictures: Pictures) -> Any:
    """Pictures as the embedder takes them; a single one becomes a list."""
    if isinstance(pictures, (str, Path)):
        return pictures if Path(pictures).is_dir() else [pictures]
    single = isinstance(pictures, (bytes, Image.Image)) or (
        isinstance(pictures, (np.ndarray, Tensor)) and pictures.ndim < 4
    )
    return [pictures] if single else pictures


def _share(true: NDArray[np.bool_]) -> float | None:
    return float(true.mean()) if len(true) else None


def _different(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors without repeated pictures."""
    cosines = np.tril(vectors @ vectors.T, -1)
    return vectors[~(cosines >= SAME).any(1)]


def _name(pictures: Any, number: int) -> str:
    if isinstance(pictures, Sequence) and isinstance(pictures[number], (str, Path)):
        return str(pictures[number])
    return f"picture {number}"
