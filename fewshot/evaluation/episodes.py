"""N-way K-shot episodes over embeddings: sampled in large batches, scored by batched matrix products."""

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

# Largest difference between equal similarities, relative to the squared lengths. A matrix product sums in an order that
# depends on the column, so even equal vectors differ in the last bits of float32.
ROUNDING = 1e-6

# Numbers processed at once: what fits a CPU's cache, and what keeps a GPU busy (256 MiB in float32).
AT_ONCE, AT_ONCE_ACCELERATED = 1 << 19, 1 << 26


@dataclass(frozen=True, eq=False)
class Pool:
    """Rows by class and classes by group, as `arrange` makes them. Tables are padded with 0.

    Attributes:
        rows: Shape (classes, most), int64: the rows of each class.
        sizes: Shape (classes,): their number.
        members: Shape (groups, most), int64: the classes of each group.
        member_sizes: Shape (groups,): their number.
        labels: Shape (classes,): the label of each class, sorted.
        groups: Shape (groups,): the name of each group, sorted.
    """

    rows: Tensor
    sizes: Tensor
    members: Tensor
    member_sizes: Tensor
    labels: Tensor
    groups: Tensor

    def to(self, device: torch.device) -> Pool:
        return Pool(**{name: tensor.to(device) for name, tensor in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Episodes:
    """A batch of episodes, as int64 positions.

    Attributes:
        classes: Shape (episodes, way): positions in the pool.
        support: Shape (episodes, way, shot): rows of the examples of each class.
        query: Shape (episodes, way, queries): rows of the queries of each class.
    """

    classes: Tensor
    support: Tensor
    query: Tensor

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a batch of episodes, on the CPU.

    Attributes:
        credit: Shape (episodes, way, queries), float32: 1 for a query whose own class alone is nearest, 1/m if it ties
            with m - 1 others, else 0.
        taken: Shape (episodes, way), float32: credit that the queries of other classes would gain without this class.
    """

    credit: Tensor
    taken: Tensor


# --- drawing ----------------------------------------------------------------------------------------------------------


def arrange(labels: Tensor, groups: Tensor | None = None) -> Pool:
    """Arrange labelled rows for sampling.

    Args:
        labels: Shape (n,), int64.
        groups: Shape (n,), the group of each row; None for a single group.

    Returns:
        The pool, on the device of the labels.

    Raises:
        InputError: For no rows, other shapes, and a class in two groups.
    """
    if labels.ndim != 1 or not len(labels):
        raise InputError(f"labels must have shape (n,) with n >= 1, not {tuple(labels.shape)}")
    groups = torch.zeros_like(labels) if groups is None else groups
    if groups.shape != labels.shape:
        raise InputError(f"groups and labels must have one length, not {len(groups)} and {len(labels)}")
    names, owner = labels.unique(return_inverse=True)
    rows, sizes = _table(owner)
    group_names, group_of = groups[rows[:, 0]].unique(return_inverse=True)
    straddling = groups != group_names[group_of][owner]
    if straddling.any():
        raise InputError(f"class {int(labels[straddling][0])} is in two groups")
    members, member_sizes = _table(group_of)
    return Pool(rows, sizes, members, member_sizes, names, group_names)


def sample(pool: Pool, episodes: int, *, way: int, shot: int, queries: int = 1, generator: torch.Generator) -> Episodes:
    """Sample episodes, each within a random group.

    Args:
        pool: From `arrange`.
        episodes: Their number.
        way: Different classes of an episode, in random order.
        shot: Supports of a class.
        queries: Queries of a class; none of its rows occurs twice.
        generator: On the device of the pool; or on the CPU, so that a seed gives the same episodes on every device.

    Raises:
        InputError: If a group has too few classes, or a class too few rows.
    """
    if episodes < 1 or way < 2:
        raise InputError(f"episodes must be >= 1 and way >= 2, not {episodes} and {way}")
    small = pool.member_sizes < way
    if small.any():
        raise InputError(
            f"{way}-way: {int(small.sum())} of {len(small)} groups have fewer classes, the smallest "
            f"{int(pool.member_sizes.min())}; choose a smaller way, or leave these groups out"
        )
    many = torch.full((episodes,), len(pool.groups), device=pool.rows.device)
    group = _distinct(many, 1, generator)
    place = _distinct(pool.member_sizes[group[:, 0]], way, generator)
    return episodes_of_classes(pool, pool.members[group, place], shot=shot, queries=queries, generator=generator)


def episodes_of_classes(
    pool: Pool, classes: Tensor, *, shot: int, queries: int, generator: torch.Generator
) -> Episodes:
    """Sample supports and queries of given classes (episodes, way). Arguments and errors are those of `sample`."""
    if shot < 1 or queries < 1:
        raise InputError(f"shot and queries must be >= 1, not {shot} and {queries}")
    fewest = int(pool.sizes.min())
    if fewest < shot + queries:
        raise InputError(
            f"{shot}-shot with {queries} queries needs {shot + queries} pictures of every class, and one has {fewest}"
        )
    picked = _distinct(pool.sizes[classes.flatten()], shot + queries, generator)
    rows = pool.rows[classes[:, :, None], picked.view(*classes.shape, -1)]
    return Episodes(classes, rows[:, :, :shot], rows[:, :, shot:])


def _table(owner: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in `owner` (n,) for each of its values, (owners, most), padded with 0; and their numbers (owners,)."""
    sizes = owner.bincount()
    order = owner.argsort(stable=True)
    kept = owner[order]
    column = torch.arange(len(owner), device=owner.device) - (sizes.cumsum(0) - sizes)[kept]
    table = owner.new_zeros(len(sizes), int(sizes.max()))
    table[kept, column] = order
    return table, sizes


def _distinct(sizes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(m, count) int64: each row has `count` distinct numbers below its size (m,), all orders equally likely.

    A Fisher-Yates shuffle of all rows at once, without its tables: the number at a position follows from the earlier
    swaps, the latest first.
    """
    # float32 has too few steps for all numbers below a large size to be equally likely.
    chance = torch.rand(count, len(sizes), dtype=torch.float64, generator=generator, device=generator.device)
    chance = chance.to(sizes.device)
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
    """Classify every query by the nearest class mean, on the device of the vectors.

    Args:
        vectors: Shape (n, d), not necessarily normalised. With the cosine, only directions count, also in the mean; a
            vector of zeros has cosine 0 to all.
        episodes: Rows of the vectors.
        metric: "cosine" or "euclidean".

    Raises:
        InputError: For vectors that are not finite.

    Source: Snell, Swersky & Zemel (2017), section 2. With one shot it is the nearest support.
    """
    if metric not in METRICS:
        raise InputError(f"metric must be {' or '.join(METRICS)}, not {metric!r}")
    points = _points(vectors, metric)
    way = episodes.classes.shape[1]
    # They stay on the device until the end, so that no block waits for the one before.
    credit = torch.empty(episodes.query.shape, device=points.device)
    taken = torch.zeros(episodes.classes.shape, device=points.device)
    for block, slots in _blocks(episodes, points):
        support = points[episodes.support[block].to(points.device)].mean(2)
        query = points[episodes.query[block, :, slots].to(points.device)].flatten(1, 2)
        if metric == "cosine" and episodes.support.shape[2] > 1:
            support = F.normalize(support, dim=2)
        earned, lost_to = _credit(query, support, metric)
        credit[block, :, slots] = earned.unflatten(1, (way, -1))
        taken[block] += lost_to
    return Scores(credit.cpu(), taken.cpu())


def _points(vectors: Tensor, metric: Metric) -> Tensor:
    """The vectors in float32, normalised or centred so that their products are precise."""
    if vectors.ndim != 2:
        raise InputError(f"vectors must have shape (n, d), not {tuple(vectors.shape)}")
    bad = int((~vectors.float().square().sum(1).isfinite()).sum())
    if bad:
        raise InputError(
            f"{bad} of {len(vectors)} vectors have no finite length in float32; check that the weights are finite"
        )
    if metric == "cosine":
        return F.normalize(vectors.float(), dim=1)
    # Distances do not depend on the origin; far from it, rounding of the products would hide them.
    return (vectors - vectors.mean(0)).float()


def _credit(query: Tensor, support: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Credit of each query (episodes, way x queries), and credit taken by each class (episodes, way); see `Scores`.

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
    # Contains the own class, so there is at least one.
    no_further = (closeness >= (own - slack)[:, :, None]).to(query.dtype)
    before = ahead.sum(2)
    tied = no_further.sum(2) - before
    credit = (before == 0) / tied
    # Without the only class ahead, the query would win; without one of m tied classes, its credit would be 1/(m - 1).
    by_one_ahead = (before == 1) / tied
    by_one_tied = torch.where((before == 0) & (tied > 1), 1 / (tied - 1).clamp_min(1) - 1 / tied, 0)
    taken = torch.bmm((by_one_ahead - by_one_tied)[:, None], ahead) + torch.bmm(by_one_tied[:, None], no_further)
    # A class takes nothing from its own queries.
    return credit, taken[:, 0] - by_one_tied.unflatten(1, (way, queries)).sum(2)


def _blocks(episodes: Episodes, points: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of episodes and of queries that are processed at once, to bound the memory."""
    way, shot, queries = *episodes.support.shape[1:], episodes.query.shape[2]
    at_once = AT_ONCE if points.device.type == "cpu" else AT_ONCE_ACCELERATED
    slots = max(1, min(queries, at_once // (way * way)))
    height = max(1, at_once // (way * ((shot + slots) * points.shape[1] + slots * way)))
    for start in range(0, len(episodes), height):
        for slot in range(0, queries, slots):
            yield slice(start, start + height), slice(slot, slot + slots)
