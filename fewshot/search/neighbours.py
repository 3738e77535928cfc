"""The result of a search: for each query, the keys found and their similarity."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewshot.notebook import neighbours_html


class Neighbour(NamedTuple):
    """A key found by a search, and the cosine similarity of its vector, 1 for the same direction.

    Example:
        >>> from fewshot import Neighbour
        >>> Neighbour("cat.png", 0.9).key
        'cat.png'
    """

    key: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Result of a search; iterating gives a list of `Neighbour` for each query, the most similar first.

    Attributes:
        similarity: Shape (m, k), float32; -inf where `at_least` left a place empty.
        keys: Shape (m, k), str objects; None there.
    """

    similarity: NDArray[np.float32]
    keys: NDArray[np.object_]

    def _repr_html_(self) -> str:
        return neighbours_html(self)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, query: int) -> list[Neighbour]:
        found = zip(self.keys[query].tolist(), self.similarity[query].tolist(), strict=True)
        return [Neighbour(key, similarity) for key, similarity in found if key is not None]

    def __iter__(self) -> Iterator[list[Neighbour]]:
        return (self[query] for query in range(len(self)))
