"""Which pictures a two-dimensional map of the embedding shows, and the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup
from torch import Tensor

from fewshot.projection import Projection, project
from fewshot.report_questions import HardAlphabet
from fewshot.report_tested import Tested
from finetune.report.charts import Point, scatter

# As many as the page has colours for that a person still tells apart, and pictures such that each can be pointed at.
_GROUPS, _MOST = 6, 600


@dataclass(frozen=True, eq=False)
class Map:
    """rows: of what is shown. groups: their names, in the order of their colours."""

    projection: Projection
    rows: Tensor
    groups: tuple[str, ...]
    chart: Markup


def draw_map(tested: Tested, by_difficulty: Sequence[HardAlphabet] = (), seed: int = 0) -> Map:
    """Alphabets from the hardest to the easiest, evenly spaced, coloured by alphabet; or classes, coloured by class.

    Of each class as many pictures, the first ones, as keep the map within its bound.
    """
    embedded = tested.embedded
    if tested.grouped:
        order = [alphabet.group for alphabet in by_difficulty] or embedded.alphabet.unique().tolist()
        chosen = _spaced(order)
        groups, of = tuple(tested.groups[group] for group in chosen), embedded.alphabet
        names = tested.groups
    else:
        chosen = _spaced(embedded.character.unique().tolist())
        groups, of, names = tuple(tested.names[number] for number in chosen), embedded.character, tested.names
    rows = _first(torch.isin(of, torch.tensor(chosen)).nonzero()[:, 0], embedded.character)
    projection = project(embedded.vectors[rows.to(embedded.vectors.device)].float().cpu().numpy(), seed=seed)
    points = [
        Point(float(x), float(y), tested.described(row), names[int(of[row])], tested.picture(row))
        for (x, y), row in zip(projection.places.tolist(), rows.tolist(), strict=True)
    ]
    title = "Map of the embedding: near means similar"
    return Map(projection, rows, groups, scatter(points, title=title, groups=groups))


def _spaced(order: Sequence[int]) -> list[int]:
    count = min(_GROUPS, len(order))
    places = torch.linspace(0, len(order) - 1, count).round().long().tolist() if count else []
    return [order[place] for place in places]


def _first(rows: Tensor, label: Tensor) -> Tensor:
    """The first pictures of each class among `rows`, as many of each as the bound allows."""
    each = max(1, _MOST // max(1, len(label[rows].unique())))
    seen: dict[int, int] = {}
    kept = []
    for row in rows.tolist():
        number = int(label[row])
        seen[number] = seen.get(number, 0) + 1
        if seen[number] <= each:
            kept.append(row)
    return torch.tensor(kept[:_MOST], dtype=torch.int64)
