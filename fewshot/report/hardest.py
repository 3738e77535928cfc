"""Where an encoder errs: accuracy by number of ways, hardest alphabets and classes, nearest wrong neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshot.evaluation.embedded import EmbeddedDrawings
from fewshot.evaluation.episodes import Pool, arrange, episodes_of_classes, sample, score_episodes
from fewshot.evaluation.intervals import class_parts, parts_interval
from fewshot.evaluation.measure import Result
from fewshot.evaluation.protocols import ProtocolResult, all_way, vinyals, within

WAYS = (2, 3, 5, 10, 20, 50, 100, 200, 400)
# The last point of a curve has all classes; a way before it is smaller by this factor at least.
_CLEAR = 1.2
# Approximate number of questions for a point of a curve, and smallest number of episodes.
_QUESTIONS, _LEAST = 100_000, 50
# Draws of the examples of every class: among all classes, and within an alphabet.
_DRAWS, _DRAWS_INSIDE = 5, 20
_EPISODES_INSIDE = 2_000
# Drawings compared with all others at once, to bound the memory.
_BLOCK = 1024


# --- number of ways ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WayCurve:
    """Accuracies with `shot` examples a class, by rising way; `inside`: classes of one alphabet at a time."""

    shot: int
    inside: bool
    points: tuple[ProtocolResult, ...]


def way_curves(embedded: EmbeddedDrawings, seed: int = 0, known: Sequence[Result] = ()) -> list[WayCurve]:
    """Curves for one and for five examples a class, and, with several alphabets, one within alphabets.

    known: Results on the same vectors; those with all classes are not measured again.
    """
    sizes = embedded.label.bincount()
    classes, fewest = len(sizes), int(sizes.min())
    found = []
    for shot in (1, 5):
        if fewest > shot:
            points = [
                vinyals(embedded, way=way, shot=shot, episodes=max(_LEAST, _QUESTIONS // way // shot), seed=seed)
                for way in WAYS
                if way * _CLEAR <= classes
            ]
            found.append(WayCurve(shot, False, (*points, _whole(embedded, shot, seed, known))))
    smallest = int(arrange(embedded.label, embedded.alphabet).member_sizes.min())
    if len(embedded.alphabet.unique()) > 1 and smallest > 1 and fewest > 1:
        ways = sorted({way for way in WAYS if way * _CLEAR <= smallest} | {smallest})
        inside = [within(embedded, way=way, episodes=_EPISODES_INSIDE, seed=seed) for way in ways]
        found.append(WayCurve(1, True, tuple(inside)))
    return found


def _whole(embedded: EmbeddedDrawings, shot: int, seed: int, known: Sequence[Result]) -> ProtocolResult:
    way = len(embedded.label.unique())
    measured = (result for result in known if isinstance(result, ProtocolResult))
    for result in measured:
        if result.protocol.startswith("all-way") and (result.way, result.shot) == (way, shot):
            return result
    return all_way(embedded, shot=shot, draws=_DRAWS, seed=seed)


# --- hardest alphabets and classes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HardAlphabet:
    """An alphabet by its number: accuracy of `way`-way one-shot questions within it, and its number of characters."""

    group: int
    accuracy: float
    interval: tuple[float, float]
    way: int
    classes: int


@dataclass(frozen=True)
class HardClass:
    """A class that is often confused.

    Attributes:
        label: The class.
        accuracy: Of one-shot questions among the `way` classes of its alphabet.
        taken_for: The class that it is most often confused with.
        taken: Share of its questions with that answer.
    """

    label: int
    accuracy: float
    way: int
    taken_for: int
    taken: float


def hardest_alphabets(embedded: EmbeddedDrawings, *, way: int = 20, seed: int = 0) -> list[HardAlphabet]:
    """Alphabets with at least `way` characters, or as many as the largest has; the hardest first."""
    sizes = arrange(embedded.label, embedded.alphabet).member_sizes
    way = min(way, int(sizes.max()))
    if way < 2:
        return []
    found = []
    for group in (sizes >= way).nonzero()[:, 0].tolist():
        part, _ = _inside(embedded, group)
        drawn = sample(arrange(part.label), _EPISODES_INSIDE // 4, way=way, shot=1, generator=_generator(seed))
        scores = score_episodes(part.vectors, drawn)
        interval = parts_interval(class_parts(scores, drawn.classes), seed)
        found.append(HardAlphabet(group, float(scores.credit.double().mean()), interval, way, int(sizes[group])))
    return sorted(found, key=lambda alphabet: alphabet.accuracy)


def hardest_classes(embedded: EmbeddedDrawings, *, most: int = 8, seed: int = 0) -> list[HardClass]:
    """Classes that are most often confused in one-shot questions within their alphabet, the hardest first.

    Classes that are never confused are left out.
    """
    found: list[HardClass] = []
    for group in embedded.alphabet.unique().tolist():
        part, rows = _inside(embedded, group)
        pool = arrange(part.label)
        if len(pool.labels) > 1:
            found += [
                replace(hard, label=int(embedded.label[rows[pool.rows[hard.label, 0]]]),
                        taken_for=int(embedded.label[rows[pool.rows[hard.taken_for, 0]]]))
                for hard in _confused(part, pool, seed)
            ]  # fmt: skip
    return sorted(found, key=lambda hard: (hard.accuracy, -hard.taken))[:most]


def _confused(part: EmbeddedDrawings, pool: Pool, seed: int) -> list[HardClass]:
    """The confused classes of one alphabet, as positions in its pool."""
    classes = len(pool.labels)
    drawn = episodes_of_classes(
        pool,
        torch.arange(classes).expand(_DRAWS_INSIDE, -1),
        shot=1,
        queries=int(pool.sizes.min()) - 1,
        generator=_generator(seed),
    )
    credit = score_episodes(part.vectors, drawn).credit.double().mean((0, 2))
    unit = F.normalize(part.vectors.float(), dim=1).cpu()
    confused = torch.zeros(classes, classes)
    for support, query in zip(drawn.support[:, :, 0], drawn.query, strict=True):
        nearest = (unit[query.flatten()] @ unit[support].T).argmax(1).view(query.shape)
        confused.scatter_add_(1, nearest, torch.ones(nearest.shape))
    asked = confused.sum(1)
    confused.fill_diagonal_(0)
    return [
        HardClass(label, float(credit[label]), classes, int(others.argmax()), float(others.max() / asked[label]))
        for label, others in enumerate(confused)
        if others.max()
    ]


def _inside(embedded: EmbeddedDrawings, group: int) -> tuple[EmbeddedDrawings, Tensor]:
    """The drawings of one alphabet, and their rows."""
    rows = (embedded.alphabet == group).nonzero()[:, 0]
    part = replace(
        embedded,
        vectors=embedded.vectors[rows.to(embedded.vectors.device)],
        character=embedded.character[rows],
        drawer=embedded.drawer[rows],
        turn=embedded.turn[rows],
    )
    return part, rows


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- nearest wrong neighbours -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WrongNeighbour:
    """Rows of a picture, of the nearest other one of its class and of a nearer wrong one; and their cosines."""

    row: int
    own: int
    other: int
    own_similarity: float
    other_similarity: float


def wrong_neighbours(embedded: EmbeddedDrawings, most: int = 24) -> tuple[int, int, list[WrongNeighbour]]:
    """Pictures that have a picture of another class nearer than all of their own.

    Pictures that are alone in their class do not count.

    Returns:
        Their number; the number of pictures compared; and the worst ones, at most one for two classes.
    """
    unit = F.normalize(embedded.vectors.float(), dim=1).cpu()
    label = embedded.label
    parts = []
    for rows in torch.arange(len(unit)).split(_BLOCK):
        similar = unit[rows] @ unit.T
        alike = label[rows, None] == label
        theirs = similar.masked_fill(alike, -torch.inf).max(1)
        similar[torch.arange(len(rows)), rows] = -torch.inf
        ours = similar.masked_fill(~alike, -torch.inf).max(1)
        parts.append((ours.values, ours.indices, theirs.values, theirs.indices))
    near, own, far, other = (torch.cat(part) for part in zip(*parts, strict=True))
    asked = near.isfinite() & far.isfinite()
    gap = torch.where(asked, far - near, -torch.inf)
    found: dict[tuple[int, int], WrongNeighbour] = {}
    for row in gap.argsort(descending=True, stable=True).tolist():
        if gap[row] <= 0 or len(found) == most:
            break
        between = int(label[row]), int(label[other[row]])
        between = min(between), max(between)
        wrong = WrongNeighbour(row, int(own[row]), int(other[row]), float(near[row]), float(far[row]))
        found.setdefault(between, wrong)
    return int((gap > 0).sum()), int(asked.sum()), list(found.values())
