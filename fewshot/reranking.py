"""The few nearest looked at again: a slow comparison of pictures added where a fast one has narrowed the choice."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fewshot.protocols import Distance
from finetune.errors import InputError

# Pictures (n, 105, 105) and as many others, uint8, ink 255 on 0, to (n,): of each and the other at its place.
PairDistance = Callable[[Tensor, Tensor], Tensor]

# Chosen on runs made like Lake's of the alphabets in splits.VALIDATION, by an encoder that was not trained on them.
NEAREST, WEIGHT = 5, 0.15


def reranked(fast: Distance, slow: PairDistance, *, nearest: int = NEAREST, weight: float = WEIGHT) -> Distance:
    """`fast`, with `weight` times `slow` added for the `nearest` training pictures of each test picture; those stay
    before all others, whatever comes out.

    The defaults are for the cosine distance of an encoder and for fewshot.affine.affine_alignment_of_pairs.
    """
    if nearest < 1:
        raise InputError(f"{nearest} nearest to look at again; at least 1 is wanted")

    def distance(test: Tensor, train: Tensor) -> Tensor:
        first = fast(test, train).double().cpu()
        rows = first.topk(min(nearest, len(train)), largest=False).indices
        again = slow(test.repeat_interleave(rows.shape[1], 0), train[rows.flatten()]).double().cpu().view(rows.shape)
        sums = first.gather(1, rows) + weight * again
        # Further ones begin after the last of these, in their own order.
        gap = (sums.max(1, keepdim=True).values - first.min(1, keepdim=True).values).clamp_min(0) + 1
        return (first + gap).scatter(1, rows, sums)

    return distance
