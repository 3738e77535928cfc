"""The training pictures of a run that are most similar to another picture, by the features that the run keeps."""

from __future__ import annotations

import hashlib

import torch

from finetune.app.page.page import Near
from finetune.classifier.classifier import Classifier
from finetune.data.images import read_content, read_image
from finetune.errors import UnreadablePicture
from finetune.features.forward import run_frozen
from finetune.kept.features import KeptFeatures
from finetune.models.pooled import PooledStages
from finetune.report.page import THUMBNAIL, thumbnail

SHOWN = 6


class NearestPictures:
    """Finds them. classifier, kept: Of one run."""

    def __init__(self, classifier: Classifier, kept: KeptFeatures):
        self._classifier, self._kept = classifier, kept
        self._stages = PooledStages(classifier.network.backbone)
        positions = kept.index.tolist()
        training = [row for row, position in enumerate(positions) if kept.splits[position] == "train"]
        self._positions = [positions[row] for row in training]
        self._features = kept.pooled[torch.tensor(training, dtype=torch.int64), -kept.widths[-1] :]
        self._lengths = self._features.norm(dim=1).clamp(min=1e-12)

    def find(self, picture: bytes) -> list[Near]:
        """The most similar ones first; none for a picture that cannot be read."""
        classifier = self._classifier
        outputs = run_frozen(
            classifier.fabric,
            self._stages,
            classifier.preprocessing,
            classifier.pictures([picture]),
            workers=classifier.config.workers,
            test_time=classifier.config.test_time,
        )
        if not len(outputs.index) or not self._positions:
            return []
        features = outputs.values[0, 0, -self._features.shape[1] :]
        cosines = self._features @ features / self._lengths / features.norm().clamp(min=1e-12)
        best = cosines.topk(min(SHOWN, len(cosines)))
        return [
            self._shown(row, cosine) for row, cosine in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _shown(self, row: int, cosine: float) -> Near:
        position = self._positions[row]
        sample, content = self._kept.listing.samples[position], self._kept.contents[position]
        return Near(sample.label, f"similarity {cosine:.2f}", self._thumbnail(sample.path, content.sha256))

    def _thumbnail(self, path: str, sha256: str) -> str | None:
        """The file must be the one that was learned from: a run of somebody else may name any file of this machine."""
        try:
            content = read_content(self._kept.listing.root / path)
            if hashlib.sha256(content).hexdigest() != sha256:
                return None
            most = self._classifier.config.max_pixels
            return thumbnail(read_image(content, at_least=THUMBNAIL, max_pixels=most))
        except UnreadablePicture:
            return None
