"""Verification of two pictures: do they show one class?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.threshold import Calibration, OperatingPoint, calibrate
from fewshot.evaluation.verification import labelled_pairs, similarity
from finetune.data.folder import list_folder
from finetune.data.images import Picture
from finetune.errors import InputError
from finetune.progress import Display


@dataclass(frozen=True)
class Verification:
    """Answer of a verifier for two pictures.

    Attributes:
        same: Whether they show one class: `similarity` is at least `threshold`.
        similarity: Their cosine.
        threshold: The smallest similarity of "same".
        false_accept_rate, false_reject_rate: Of the threshold, on the pairs that it was chosen on.
        score: Share of different pairs there that are less similar, from 0 to 1.

    Example:
        >>> from fewshot import Embedder, Verifier
        >>> answer = Verifier(Embedder.load("omniglot", device="cpu")).verify("sign.png", "signs/class01/00.png")
        >>> answer.same == (answer.similarity >= answer.threshold)
        True
    """

    same: bool
    similarity: float
    threshold: float
    false_accept_rate: float
    false_reject_rate: float
    score: float


class Verifier:
    """Compares two pictures by an embedder and a threshold.

    A threshold holds for pictures like those that it was chosen on; calibrate it on your own.

    Args:
        embedder: Makes the vectors.
        calibration: The threshold; that of the embedder when None.

    Example:
        >>> from fewshot import Embedder, Verifier
        >>> verifier = Verifier(Embedder.load("omniglot", device="cpu"))
        >>> verifier.verify("sign.png", "signs/class01/00.png").same
        False
    """

    def __init__(self, embedder: Embedder, calibration: Calibration | None = None):
        self.embedder = embedder
        if calibration is None and embedder.verification is not None:
            calibration = Calibration.from_dict(embedder.verification)
        self.calibration = calibration
        self._point: OperatingPoint | None = None  # if `accept` moved the threshold

    def calibrate(
        self, pairs: Sequence[tuple[Picture | Tensor, Picture | Tensor, bool]], *, false_accept_rate: float = 0.01
    ) -> Calibration:
        """Choose the threshold on pairs.

        Args:
            pairs: Two pictures, and whether they show one class.
            false_accept_rate: Largest share of different pairs to accept, in (0, 1).

        Raises:
            InputError: For pairs of one kind alone.
            UnreadablePicture: If a picture cannot be read.
        """
        vectors = torch.from_numpy(
            self.embedder.embed([picture for one, other, _ in pairs for picture in (one, other)])
        )
        rows = torch.arange(2 * len(pairs)).reshape(-1, 2)
        same = np.array([same for _, _, same in pairs], bool)
        return self._keep(calibrate(similarity(vectors, rows), same, false_accept_rate=false_accept_rate))

    def calibrate_on(
        self, folder: str | Path, *, false_accept_rate: float = 0.01, seed: int = 0, display: Display | None = None
    ) -> Calibration:
        """Choose the threshold on a folder of pictures.

        Args:
            folder: One sub-folder for each class.
            false_accept_rate: Largest share of different pairs to accept, in (0, 1).
            seed: Of the sample of pairs, if there are many.
            display: Shows a bar.

        Raises:
            InputError: If no class has two pictures, or there is a single class.
        """
        listing = list_folder(Path(folder))
        found = self.embedder.embed_all([listing.root / sample.path for sample in listing.samples], display=display)
        good = [row for row in range(len(listing.samples)) if row not in found.unreadable]
        rows, same = labelled_pairs([listing.samples[row].label for row in good], seed=seed)
        scores = similarity(torch.from_numpy(found.vectors[good]), rows)
        return self._keep(calibrate(scores, same, false_accept_rate=false_accept_rate))

    def accept(self, false_accept_rate: float) -> OperatingPoint:
        """Move the threshold to another rate of false accepts on the measured curve. InputError without a curve."""
        self._point = self._known().at(false_accept_rate)
        return self._point

    def verify(self, one: Picture | Tensor, other: Picture | Tensor) -> Verification:
        """Compare two pictures.

        Raises:
            InputError: If no threshold is known.
            UnreadablePicture: If a picture cannot be read.
        """
        by = self._known()
        threshold, accepted, rejected = self._point or (by.threshold, by.false_accept_rate, by.false_reject_rate)
        first, second = self.embedder.embed([one, other]).astype(np.float64)
        cosine = float(first @ second)
        score = 1 - float(np.interp(cosine, by.thresholds, by.false_accept, left=1.0, right=0.0))
        return Verification(cosine >= threshold, cosine, threshold, accepted, rejected, score)

    def _keep(self, calibration: Calibration) -> Calibration:
        self.calibration, self._point = calibration, None
        return calibration

    def _known(self) -> Calibration:
        if self.calibration is None:
            raise InputError(
                "the encoder carries no threshold of similarity: calibrate it on a folder of pictures with one "
                "sub-folder for each class (--calibrate FOLDER)"
            )
        return self.calibration
