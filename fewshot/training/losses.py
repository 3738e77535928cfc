"""What a Siamese network learns by: the contrastive loss, and those of pytorch-metric-learning by name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune.errors import InputError

# Added under the root: the slope of a distance is infinite where it is 0.
_TINY = 1e-6


class Contrastive(nn.Module):
    """The contrastive loss of Hadsell, Chopra & LeCun 2006 (equation 4) over the pairs of a batch, on unit vectors.

    Half the squared Euclidean distance D of a pair of one class, half of max(0, margin - D) squared of a pair of two.
    Each kind is averaged by itself. Of the pairs of two classes each picture's `hardest` nearest count: nearly all
    others are further apart than the margin early on, and would only dilute the rest. With 0 all count that are nearer
    than the margin.
    """

    def __init__(self, margin: float = 1.0, hardest: int = 8):
        super().__init__()
        self.margin, self.hardest = margin, hardest

    def forward(self, vectors: Tensor, labels: Tensor, pairs: tuple[Tensor, ...] | None = None) -> Tensor:
        """vectors: (n, d), of any length. labels: (n,). pairs: positions of the pairs that count, as a miner gives them
        (one, other of the same class; one, other of two), in place of those of the batch."""
        unit = F.normalize(vectors, dim=1)
        distance = (2 - 2 * unit @ unit.T).clamp_min(_TINY).sqrt()
        alike = labels[:, None] == labels
        if pairs is not None:
            same, different = distance[pairs[0], pairs[1]], distance[pairs[2], pairs[3]]
        else:
            same = distance[alike.triu(1)]
            if self.hardest:
                fewest = min(self.hardest, len(labels))
                different = distance.masked_fill(alike, torch.inf).topk(fewest, largest=False).values
            else:
                different = distance[(~alike).triu(1)]
        short = (self.margin - different).clamp_min(0)
        # Of the hardest all count that there are; of all pairs, those that are pushed.
        counted = different.isfinite() if self.hardest and pairs is None else short > 0
        return (same.square().sum() / max(1, len(same)) + short.square().sum() / counted.sum().clamp_min(1)) / 2


class Siamese(nn.Module):
    """An encoder and the loss on its vectors: pictures (n, channels, h, w) and labels (n,) in, the loss out."""

    def __init__(self, encoder: nn.Module, loss: nn.Module, miner: Any = None):
        super().__init__()
        self.encoder, self.loss, self.miner = encoder, loss, miner

    def forward(self, pictures: Tensor, labels: Tensor) -> Tensor:
        vectors = self.encoder(pictures)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float()
            pairs = None if self.miner is None else self.miner(vectors, labels)
            return self.loss(vectors, labels, pairs)  # type: ignore[no-any-return]


def siamese(
    encoder: nn.Module,
    width: int,
    classes: int,
    *,
    loss: str,
    margin: float,
    hardest: int,
    miner: str,
    distance: str | None,
) -> Siamese:
    """`encoder`, which gives `width` numbers, with a loss, a miner and a distance by their names.

    classes: how many labels there are, which the losses with a weight for each class need. InputError for names that do
    not go together.
    """
    # Here, because importing it takes a second that training alone has.
    from pytorch_metric_learning import distances, losses, miners

    made: dict[str, Any] = {
        "euclidean": distances.LpDistance,
        "cosine": distances.CosineSimilarity,
        "signal-to-noise": distances.SNRDistance,
    }
    options: dict[str, Any] = {} if distance is None else {"distance": made[distance]()}
    try:
        chosen: nn.Module
        if loss == "contrastive":
            chosen = Contrastive(margin, hardest)
        elif loss == "triplet":
            chosen = losses.TripletMarginLoss(**options)
        elif loss == "multi-similarity":
            chosen = losses.MultiSimilarityLoss(**options)
        elif loss == "supcon":
            chosen = losses.SupConLoss(**options)
        else:
            chosen = losses.ArcFaceLoss(classes, width, **options)
        mined = {
            "none": None,
            "batch-hard": miners.BatchHardMiner,
            "multi-similarity": miners.MultiSimilarityMiner,
            "pair-margin": miners.PairMarginMiner,
        }[miner]
        chosen_miner = None if mined is None else mined(**({} if miner == "multi-similarity" else options))
    except AssertionError as error:
        raise InputError(f"--loss {loss} does not go with --distance {distance} ({error})") from error
    if loss == "contrastive" and miner == "batch-hard":
        raise InputError("--miner batch-hard gives triplets, the contrastive loss is one of pairs: take another miner")
    return Siamese(encoder, chosen, chosen_miner)
