"""Losses of a Siamese network: the contrastive loss, and those of pytorch-metric-learning by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot.training.config import SiameseConfig
from finetune.errors import InputError
from finetune.ranks.exchange import gathered_rows

# Added under the root: the slope of a distance is infinite where it is 0.
_TINY = 1e-6


class Contrastive(nn.Module):
    """Contrastive loss over the pairs of a batch, on unit vectors.

    A pair of one class costs D**2 / 2, where D is its Euclidean distance; a pair of different classes costs
    max(0, margin - D)**2 / 2. Same and different pairs are averaged separately. Only the `hardest` nearest pictures of
    other classes count for each picture: most others are already beyond the margin and would dilute the mean.

    Args:
        margin: Distance beyond which a different pair costs nothing, in (0, 2].
        hardest: Number of different pairs per picture. 0 counts all that are nearer than the margin.

    Source: Hadsell, Chopra & LeCun (2006), eq. 4.
    """

    def __init__(self, margin: float = 1.0, hardest: int = 8):
        super().__init__()
        self.margin, self.hardest = margin, hardest
        # Whether all intermediate tensors have shapes that the number of pictures alone decides, as CUDA graphs need.
        # The sums are then over all pairs, in another order.
        self.fixed_shapes = False

    def forward(self, vectors: Tensor, labels: Tensor, pairs: tuple[Tensor, ...] | None = None) -> Tensor:
        """Loss of embeddings (n, d) of any length with labels (n,).

        pairs: pairs that a miner selects, instead of all: positions of both pictures of the same pairs, then of the
        different ones.
        """
        unit = F.normalize(vectors, dim=1)
        distance = (2 - 2 * unit @ unit.T).clamp_min(_TINY).sqrt()
        same_class = labels[:, None] == labels
        if self.fixed_shapes and pairs is None:
            return self._of_fixed_shapes(distance, same_class)
        if pairs is not None:
            same, different = distance[pairs[0], pairs[1]], distance[pairs[2], pairs[3]]
        else:
            same = distance[same_class.triu(1)]
            if self.hardest:
                count = min(self.hardest, len(labels))
                different = distance.masked_fill(same_class, torch.inf).topk(count, largest=False).values
            else:
                different = distance[(~same_class).triu(1)]
        short = (self.margin - different).clamp_min(0)
        # The mean is over all hardest pairs that exist, or over those of all pairs that cost something.
        counted = different.isfinite() if self.hardest and pairs is None else short > 0
        return (same.square().sum() / max(1, len(same)) + short.square().sum() / counted.sum().clamp_min(1)) / 2

    def _of_fixed_shapes(self, distance: Tensor, same_class: Tensor) -> Tensor:
        """As `forward`, from distances (n, n) of all pairs, without choosing some of them by a mask."""
        same = same_class.triu(1)
        if self.hardest:
            count = min(self.hardest, len(distance))
            short = self.margin - distance.masked_fill(same_class, torch.inf).topk(count, largest=False).values
            counted = short > -torch.inf
        else:
            short = (self.margin - distance) * (~same_class).triu(1)
            counted = short > 0
        near = short.clamp_min(0).square().sum() / counted.sum().clamp_min(1)
        return ((distance.square() * same).sum() / same.sum().clamp_min(1) + near) / 2


class Siamese(nn.Module):
    """An encoder and the loss of its embeddings; a miner selects the pairs that count, without one all do."""

    def __init__(self, encoder: nn.Module, loss: nn.Module, miner: nn.Module | None = None):
        super().__init__()
        self.encoder, self.loss, self.miner = encoder, loss, miner

    def forward(self, pictures: Tensor, labels: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Loss of pictures (n, channels, h, w) with labels (n,), in float32.

        counts: Number of pictures of each of several processes. `labels` are then those of all pictures, and the loss
        is over pairs of all of them; gradients reach the pictures of every process.
        """
        vectors = self.encoder(pictures)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = vectors.float() if counts is None else gathered_rows(vectors.float(), counts)
            pairs = None if self.miner is None else self.miner(vectors, labels)
            loss: Tensor = self.loss(vectors, labels, pairs)
            return loss


def siamese(encoder: nn.Module, width: int, classes: int, config: SiameseConfig) -> Siamese:
    """`encoder` with the loss, miner and distance that `config` names; InputError if they cannot be combined.

    width: size of an embedding. classes: number of labels, for losses with weights of each class.
    """
    # Imported here: it takes a second that only training needs.
    from pytorch_metric_learning import distances, losses, miners

    by_name: dict[str, Any] = {
        "euclidean": distances.LpDistance,
        "cosine": distances.CosineSimilarity,
        "signal-to-noise": distances.SNRDistance,
    }
    distance: dict[str, Any] = {} if config.distance is None else {"distance": by_name[config.distance]()}
    loss: nn.Module
    miner: nn.Module | None
    try:
        match config.loss:
            case "contrastive":
                loss = Contrastive(config.margin, config.hardest)
            case "triplet":
                loss = losses.TripletMarginLoss(**distance)
            case "multi-similarity":
                loss = losses.MultiSimilarityLoss(**distance)
            case "supcon":
                loss = losses.SupConLoss(**distance)
            case _:
                loss = losses.ArcFaceLoss(classes, width, **distance)
        match config.miner:
            case "none":
                miner = None
            case "batch-hard":
                miner = miners.BatchHardMiner(**distance)
            case "multi-similarity":
                miner = miners.MultiSimilarityMiner()
            case _:
                miner = miners.PairMarginMiner(**distance)
    except AssertionError as error:
        raise InputError(f"--loss {config.loss} cannot be used with --distance {config.distance} ({error})") from error
    if config.loss == "contrastive" and config.miner == "batch-hard":
        raise InputError("--miner batch-hard gives triplets, but --loss contrastive needs pairs: use another miner")
    return Siamese(encoder, loss, miner)
