"""N-way K-shot episodes over cached embeddings: drawn thousands at a time, scored as batched products."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import InputError

Metric = Literal["cosine", "euclidean"]
METRICS = ("cosine", "euclidean")

# What two closenesses may differ by, relative to the squared lengths, and still tie: a matrix product sums in an order
# that depends on the column, so that even equal vectors come out unequal in the last bits of float32.
ROUNDING = 1e-6

# Numbers handled at once: what a processor's cache holds, what keeps an accelerator busy (256 MiB in float32).
AT_ONCE, AT_ONCE_ACCELERATED = 1 << 19, 1 << 26


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled rows, arranged to draw episodes from; `arrange` makes it. Tables are padded with 0.

    rows: (classes, most) int64, the rows of each class, and sizes: (classes,), how many they are.
    members: (groups, most) int64, the classes of each group, and member_sizes: (groups,), how many they are.
    labels: (classes,), the label of each class, sorted. groups: (groups,), the name of each group, sorted.
    """

    rows: Tensor
    sizes: Tensor
    members: Tensor
    member_sizes: Tensor
    labels: Tensor
    groups: Tensor


@dataclass(frozen=True, eq=False)
class Episodes:
    """Questions as positions: classes (episodes, way) in the pool, support (episodes, way, shot) and query (episodes,
    way, queries) rows of the vectors, each of the class at its place. All int64."""

    classes: Tensor
    support: Tensor
    query: Tensor

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class Scores:
    """What a batch of episodes came to, on the CPU.

    credit: (episodes, way, queries) float32, 1 for a query whose own class alone is nearest, 1/m where it ties with
    m - 1 others, 0 otherwise. taken: (episodes, way) float32, the credit that other classes' queries would have more of
    without this class: where it alone is nearer than their own, or ties with it.
    """

    credit: Tensor
    taken: Tensor


# --- drawing ----------------------------------------------------------------------------------------------------------


def arrange(labels: Tensor, groups: Tensor | None = None) -> Pool:
    """Rows labelled with (n,) integers as a pool, on the labels' device; without `groups` (n,), all is one group.

    InputError for no rows, for another shape, and for a class that is in two groups.
    """
    if labels.ndim != 1 or not len(labels):
        raise InputError(f"labels of shape {tuple(labels.shape)}; one for each vector is wanted")
    groups = torch.zeros_like(labels) if groups is None else groups
    if groups.shape != labels.shape:
        raise InputError(f"{len(groups)} groups for {len(labels)} labels; one for each vector is wanted")
    names, owner = labels.unique(return_inverse=True)
    rows, sizes = _table(owner)
    group_names, group_of = groups[rows[:, 0]].unique(return_inverse=True)
    straddling = groups != group_names[group_of][owner]
    if straddling.any():
        raise InputError(f"class {int(labels[straddling][0])} is in two groups; its episodes would be in neither")
    members, member_sizes = _table(group_of)
    return Pool(rows, sizes, members, member_sizes, names, group_names)


def sample(pool: Pool, episodes: int, *, way: int, shot: int, queries: int = 1, generator: torch.Generator) -> Episodes:
    """Episodes, each within one group, all groups being equally likely: `way` of its classes in random order, no class
    twice, and of each class `shot` supports and `queries` queries, no row twice.

    The generator must be of the pool's device. InputError where a group has fewer classes, or a class fewer rows.
    """
    if episodes < 1 or way < 2:
        raise InputError(f"{episodes} episodes of {way} classes; at least 1 of at least 2 is wanted")
    small = pool.member_sizes < way
    if small.any():
        raise InputError(
            f"{way}-way: {int(small.sum())} of {len(small)} groups have fewer classes, the smallest "
            f"{int(pool.member_sizes.min())}; ask for fewer ways, or leave those groups out"
        )
    many = torch.full((episodes,), len(pool.groups), device=pool.rows.device)
    group = _distinct(many, 1, generator)
    place = _distinct(pool.member_sizes[group[:, 0]], way, generator)
    return deal(pool, pool.members[group, place], shot=shot, queries=queries, generator=generator)


def deal(pool: Pool, classes: Tensor, *, shot: int, queries: int, generator: torch.Generator) -> Episodes:
    """Supports and queries of given classes (episodes, way), drawn as `sample` does."""
    if shot < 1 or queries < 1:
        raise InputError(f"{shot}-shot with {queries} queries a class; at least 1 of each is wanted")
    fewest = int(pool.sizes.min())
    if fewest < shot + queries:
        raise InputError(
            f"{shot}-shot with {queries} queries needs {shot + queries} pictures of every class, and one has {fewest}"
        )
    picked = _distinct(pool.sizes[classes.flatten()], shot + queries, generator)
    rows = pool.rows[classes[:, :, None], picked.view(*classes.shape, -1)]
    return Episodes(classes, rows[:, :, :shot], rows[:, :, shot:])


def _table(owner: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in `owner` (n,) by what they hold, as (owners, most) padded with 0, and how many (owners,)."""
    sizes = owner.bincount()
    order = owner.argsort(stable=True)
    kept = owner[order]
    column = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[kept]
    table = owner.new_zeros(len(sizes), int(sizes.max()))
    table[kept, column] = order
    return table, sizes


def _distinct(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(m, count) int64: in each row `count` distinct numbers below that row's size (m,), every order equally likely.

    It is a shuffle that swaps what it took with the last, for all rows together, without the table that is shuffled:
    what stands at a place follows from the places taken before, the latest first.
    """
    # float64, because a float32 has too few steps for all the numbers below a size to be equally likely.
    chance = torch.rand(count, len(sizes), dtype=torch.float64, generator=generator, device=sizes.device)
    taken = [(chance[step] * (sizes - step)).long() for step in range(count)]
    found = []
    for step, number in enumerate(taken):
        for before in range(step - 1, -1, -1):
            number = torch.where(number == taken[before], sizes - (before + 1), number)
        found.append(number)
    return torch.stack(found, 1)


# --- scoring ----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def score_episodes(vectors: Tensor, episodes: Episodes, metric: Metric = "cosine") -> Scores:
    """Every query classified by the nearest class, a class being the mean of its supports (Snell et al. 2017, section
    2; with one shot the nearest support), computed on the vectors' device.

    vectors: (n, d) as given, not normalised before; with the cosine each counts by its direction alone, also in the
    mean. A vector of zeros has cosine 0 to all. InputError for vectors that are not finite numbers.
    """
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}; there are {' and '.join(METRICS)}")
    points = _points(vectors, metric)
    way = episodes.classes.shape[1]
    credit = torch.empty(episodes.query.shape)
    taken = torch.zeros(episodes.classes.shape)
    for block, slots in _blocks(episodes, points):
        support = points[episodes.support[block].to(points.device)].mean(2)
        query = points[episodes.query[block, :, slots].to(points.device)].flatten(1, 2)
        if metric == "cosine" and episodes.support.shape[2] > 1:
            support = F.normalize(support, dim=2)
        earned, lost_to = _judge(query, support, metric)
        credit[block, :, slots] = earned.unflatten(1, (way, -1)).cpu()
        taken[block] += lost_to.cpu()
    return Scores(credit, taken)


def _points(vectors: Tensor, metric: Metric) -> Tensor:
    """The vectors as float32 such that products of them are precise."""
    if vectors.ndim != 2:
        raise InputError(f"vectors of shape {tuple(vectors.shape)}; (n, d) is wanted")
    bad = int((~vectors.float().square().sum(1).isfinite()).sum())
    if bad:
        raise InputError(f"{bad} of {len(vectors)} vectors have no finite length in float32; are the weights finite?")
    if metric == "cosine":
        return F.normalize(vectors.float(), dim=1)
    # From afar, products would lose the distances in rounding; these are the same wherever the origin is.
    return (vectors - vectors.mean(0)).float()


def _judge(query: Tensor, support: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Credit of each query (episodes, way x queries) and what each class takes (episodes, way), as in Scores.

    query: (episodes, way x queries, d), those of the first class first. support: (episodes, way, d).
    """
    half = support.square().sum(2) / 2
    # |q - s|^2 / 2 = |q|^2 / 2 - closeness, and |q|^2 / 2 is the same for all classes.
    product = torch.bmm(query, support.transpose(1, 2))
    closeness = product - half[:, None] if metric == "euclidean" else product
    way, queries = support.shape[1], query.shape[1] // support.shape[1]
    own = closeness.unflatten(1, (way, queries)).diagonal(dim1=1, dim2=3).transpose(1, 2).flatten(1)
    slack = ROUNDING * (query.square().sum(2) / 2 + half.repeat_interleave(queries, 1))
    ahead = (closeness > (own + slack)[:, :, None]).to(query.dtype)
    # Its own class among them, so that there is at least one.
    no_further = (closeness >= (own - slack)[:, :, None]).to(query.dtype)
    before = ahead.sum(2)
    tied = no_further.sum(2) - before
    credit = (before == 0) / tied
    # Without the only one ahead, a query would be where it is first; without one of those it ties with, 1/(m - 1).
    by_one_ahead = (before == 1) / tied
    by_one_tied = torch.where((before == 0) & (tied > 1), 1 / (tied - 1).clamp_min(1) - 1 / tied, 0)
    taken = torch.bmm((by_one_ahead - by_one_tied)[:, None], ahead) + torch.bmm(by_one_tied[:, None], no_further)
    # No class takes from its own queries.
    return credit, taken[:, 0] - by_one_tied.unflatten(1, (way, queries)).sum(2)


def _blocks(episodes: Episodes, points: Tensor) -> Iterator[tuple[slice, slice]]:
    """Episodes, and queries of every class, that are handled at once: bounds the memory."""
    way, shot, queries = *episodes.support.shape[1:], episodes.query.shape[2]
    at_once = AT_ONCE if points.device.type == "cpu" else AT_ONCE_ACCELERATED
    slots = max(1, min(queries, at_once // (way * way)))
    height = max(1, at_once // (way * ((shot + slots) * points.shape[1] + slots * way)))
    for start in range(0, len(episodes), height):
        for slot in range(0, queries, slots):
            yield slice(start, start + height), slice(slot, slot + slots)
