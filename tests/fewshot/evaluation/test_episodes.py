from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewshot.evaluation import episodes as module
from fewshot.evaluation.episodes import Episodes, Metric, arrange, episodes_of_classes, sample, score_episodes
from finetune.errors import InputError

METRICS: tuple[Metric, ...] = ("cosine", "euclidean")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(classes: int, each: int, count: int, way: int, shot: int = 1, queries: int = 1, seed: int = 0) -> Episodes:
    """A pool of rows whose class is row // each."""
    pool = arrange(torch.arange(classes).repeat_interleave(each))
    return sample(pool, count, way=way, shot=shot, queries=queries, generator=seeded(seed))


def one_by_one(vectors: Tensor, episodes: Episodes, metric: Metric) -> list[list[list[float]]]:
    """Snell et al. (2017), section 2, literally, in float64."""
    found = []
    for support, query in zip(episodes.support.tolist(), episodes.query.tolist(), strict=True):
        prototypes = []
        for rows in support:
            members = [vectors[row].double() for row in rows]
            if metric == "cosine":
                members = [member / member.norm() for member in members]
            prototypes.append(torch.stack(members).mean(0))
        credit = []
        for place, rows in enumerate(query):
            credit.append([])
            for row in rows:
                asked = vectors[row].double()
                if metric == "cosine":
                    distances = [1 - float(F.cosine_similarity(asked, prototype, dim=0)) for prototype in prototypes]
                else:
                    distances = [float((asked - prototype).square().sum()) for prototype in prototypes]
                nearest = [other for other, distance in enumerate(distances) if distance <= min(distances) + 1e-9]
                credit[-1].append(1 / len(nearest) if place in nearest else 0.0)
        found.append(credit)
    return found


# --- drawing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    counts=st.lists(st.integers(6, 9), min_size=6, max_size=12),
    way=st.integers(2, 6),
    shot=st.integers(1, 3),
    queries=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_an_episode_has_no_class_twice_and_no_row_twice(
    counts: list[int], way: int, shot: int, queries: int, seed: int
) -> None:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)) * 7 - 3
    labels = labels[torch.randperm(len(labels), generator=seeded(seed))]
    pool = arrange(labels)
    episodes = sample(pool, 20, way=way, shot=shot, queries=queries, generator=seeded(seed))
    assert episodes.support.shape == (20, way, shot)
    assert episodes.query.shape == (20, way, queries)
    for classes, support, query in zip(episodes.classes, episodes.support, episodes.query, strict=True):
        assert len(classes.unique()) == way
        rows = torch.cat([support, query], 1)
        assert len(rows.unique()) == way * (shot + queries)
        assert torch.equal(labels[rows], pool.labels[classes][:, None].expand_as(rows))


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_an_episode_lies_within_one_group(seed: int) -> None:
    labels = torch.arange(12).repeat_interleave(3)
    groups = torch.tensor([0, 1, 2]).repeat(4).repeat_interleave(3)
    episodes = sample(arrange(labels, groups), 30, way=4, shot=1, generator=seeded(seed))
    within = groups[torch.cat([episodes.support, episodes.query], 2)].flatten(1)
    assert torch.equal(within, within[:, :1].expand_as(within))
    assert set(within.flatten().tolist()) == {0, 1, 2}


def test_every_class_row_and_place_is_equally_likely() -> None:
    many = 20_000
    episodes = drawn(classes=6, each=4, count=many, way=3)
    for place in range(3):
        shares = episodes.classes[:, place].bincount(minlength=6) / many
        assert shares.tolist() == pytest.approx([1 / 6] * 6, abs=0.015)
    for rows in (episodes.support, episodes.query):
        assert (rows.flatten().bincount(minlength=24) / (3 * many)).tolist() == pytest.approx([1 / 24] * 24, abs=0.005)
    ordered = episodes.support[:, 0, 0] % 4 * 4 + episodes.query[:, 0, 0] % 4
    shares = ordered.bincount(minlength=16).double() / many
    assert shares.tolist() == pytest.approx([0 if pair % 5 == 0 else 1 / 12 for pair in range(16)], abs=0.015)


def test_groups_are_equally_likely_whatever_their_size() -> None:
    labels = torch.arange(12).repeat_interleave(2)
    groups = (labels >= 3).long()
    episodes = sample(arrange(labels, groups), 10_000, way=2, shot=1, generator=seeded())
    assert float(groups[episodes.support[:, 0, 0]].double().mean()) == pytest.approx(0.5, abs=0.02)


def test_the_same_seed_gives_the_same_episodes() -> None:
    one, again, other = (drawn(30, 5, 50, 10, shot=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.support, again.support)
    assert torch.equal(one.query, again.query)
    assert not torch.equal(one.support, other.support)


def test_impossible_episodes_are_refused() -> None:
    labels = torch.arange(4).repeat_interleave(3)
    pool = arrange(labels)
    with pytest.raises(InputError, match="5-way: 1 of 1 groups have fewer classes, the smallest 4"):
        sample(pool, 1, way=5, shot=1, generator=seeded())
    with pytest.raises(InputError, match="needs 4 pictures of every class, and one has 3"):
        sample(pool, 1, way=2, shot=3, generator=seeded())
    with pytest.raises(InputError, match="episodes must be >= 1"):
        sample(pool, 0, way=2, shot=1, generator=seeded())
    with pytest.raises(InputError, match="shot and queries must be >= 1"):
        sample(pool, 1, way=2, shot=0, generator=seeded())
    with pytest.raises(InputError, match="class 3 is in two groups"):
        arrange(labels, torch.tensor([0] * 11 + [1]))
    with pytest.raises(InputError, match="groups and labels must have one length, not 2 and 12"):
        arrange(labels, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="labels must have shape"):
        arrange(labels[:0])


def test_the_least_that_can_be_asked_is_allowed() -> None:
    pool = arrange(torch.tensor([7, 7, 3, 3]))
    episodes = sample(pool, 1, way=2, shot=1, generator=seeded())
    assert episodes.query.shape == (1, 2, 1)
    assert len(episodes) == 1
    assert (pool.labels.tolist(), pool.groups.tolist(), pool.sizes.tolist()) == ([3, 7], [0], [2, 2])
    for way, shot, queries, message in (
        (1, 1, 1, "episodes must be >= 1 and way >= 2, not 1 and 1"),
        (2, 1, 0, "shot and queries must be >= 1, not 1 and 0"),
        (2, 2, 1, "2-shot with 1 queries needs 3 pictures of every class, and one has 2"),
        (3, 1, 1, "3-way: 1 of 1 groups have fewer classes, the smallest 2"),
    ):
        with pytest.raises(InputError, match=message):
            sample(pool, 1, way=way, shot=shot, queries=queries, generator=seeded())
    with pytest.raises(InputError, match=r"labels must have shape \(n,\) with n >= 1, not \(2, 2\)"):
        arrange(torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="3-way: 1 of 2 groups have fewer classes, the smallest 2"):
        sample(arrange(torch.arange(5), torch.tensor([0, 0, 0, 1, 1])), 1, way=3, shot=1, generator=seeded())


# --- scoring ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    metric=st.sampled_from(METRICS),
    way=st.integers(2, 8),
    shot=st.integers(1, 3),
    queries=st.integers(1, 3),
    at_once=st.sampled_from([1, 300, module.AT_ONCE]),
    whole=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_scores_are_those_of_a_slow_loop(
    metric: Metric, way: int, shot: int, queries: int, at_once: int, whole: bool, seed: int
) -> None:
    vectors = torch.randn(8 * 6, 5, generator=seeded(seed))
    if whole:  # many ties, but no vector without a direction
        vectors = vectors.round() + torch.tensor([3.0, 0, 0, 0, 0]) * (vectors.round().abs().sum(1) == 0)[:, None]
    episodes = drawn(8, 6, 6, way, shot, queries, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", at_once)
        scores = score_episodes(vectors, episodes, metric)
    expected = torch.tensor(one_by_one(vectors, episodes, metric))
    # Prototypes of directions may point nowhere, so that ties of their cosines hang on rounding; those are left out.
    if not (whole and metric == "cosine" and shot > 1):
        assert torch.allclose(scores.credit, expected, atol=1e-6)


@settings(max_examples=20)
@given(st.sampled_from(METRICS), st.integers(2, 40), st.integers(1, 3), st.floats(-1e3, 1e3, width=32))
def test_equal_vectors_score_exactly_as_chance(metric: Metric, way: int, shot: int, value: float) -> None:
    vectors = torch.full((40 * 5, 37), value) * torch.linspace(-1, 1, 37)
    scores = score_episodes(vectors, drawn(40, 5, 10, way, shot, 2), metric)
    assert torch.equal(scores.credit, torch.full((10, way, 2), 1 / way))
    # Each of the 2 (way - 1) other queries would have 1/(way - 1) for its 1/way.
    assert torch.allclose(scores.taken, torch.full((10, way), 2 / way))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shot", [1, 3])
def test_one_vector_for_each_class_is_perfect(metric: Metric, shot: int) -> None:
    vectors = torch.eye(30).repeat_interleave(5, 0)
    scores = score_episodes(vectors, drawn(30, 5, 50, 20, shot, 2), metric)
    assert torch.equal(scores.credit, torch.ones(50, 20, 2))


@pytest.mark.parametrize("metric", METRICS)
def test_random_vectors_score_about_as_chance(metric: Metric) -> None:
    vectors = torch.randn(100 * 20, 16, generator=seeded())
    credit = score_episodes(vectors, drawn(100, 20, 2000, 5), metric).credit
    assert float(credit.mean()) == pytest.approx(0.2, abs=0.02)


@settings(max_examples=20)
@given(st.permutations(range(7)), st.sampled_from(METRICS))
def test_the_order_of_the_classes_does_not_matter(order: list[int], metric: Metric) -> None:
    vectors = torch.randn(7 * 4, 3, generator=seeded()).round()
    vectors[:, 0] += 5
    pool = arrange(torch.arange(7).repeat_interleave(4))
    episodes = episodes_of_classes(pool, torch.arange(7).expand(9, -1), shot=2, queries=2, generator=seeded(1))
    moved = Episodes(*(part[:, order] for part in (episodes.classes, episodes.support, episodes.query)))
    scores, other = (score_episodes(vectors, part, metric) for part in (episodes, moved))
    assert torch.allclose(other.credit, scores.credit[:, order])
    assert torch.allclose(other.taken, scores.taken[:, order], atol=1e-6)


@settings(max_examples=30)
@given(st.integers(3, 6), st.sampled_from(METRICS), st.integers(0, 2**32))
def test_taken_credit_is_what_others_gain_without_the_class(way: int, metric: Metric, seed: int) -> None:
    vectors = torch.randn(6 * 4, 3, generator=seeded(seed)).round()
    vectors[:, 0] += 6
    episodes = drawn(6, 4, 5, way, 1, 2, seed)
    scores = score_episodes(vectors, episodes, metric)
    for place in range(way):
        others = [other for other in range(way) if other != place]
        rest = Episodes(*(part[:, others] for part in (episodes.classes, episodes.support, episodes.query)))
        more = score_episodes(vectors, rest, metric).credit - scores.credit[:, others]
        assert torch.allclose(scores.taken[:, place], more.sum((1, 2)), atol=1e-5)


def test_distances_far_from_the_origin_are_precise() -> None:
    vectors = torch.randn(10 * 4, 8, generator=seeded())
    episodes = drawn(10, 4, 50, 5)
    far = score_episodes((vectors.double() + 1e5), episodes, "euclidean")
    assert torch.equal(far.credit, score_episodes(vectors, episodes, "euclidean").credit)


def test_the_cosine_ignores_lengths() -> None:
    vectors = torch.randn(10 * 6, 8, generator=seeded())
    episodes = drawn(10, 6, 50, 5, shot=3)
    longer = vectors * torch.rand(60, 1, generator=seeded()).add(0.1) * 1e3
    assert torch.equal(score_episodes(longer, episodes).credit, score_episodes(vectors, episodes).credit)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_vectors_that_are_not_finite_are_refused(bad: float) -> None:
    vectors = torch.ones(10, 3)
    vectors[4, 1] = bad
    for metric in METRICS:
        with pytest.raises(InputError, match="1 of 10 vectors have no finite length"):
            score_episodes(vectors, drawn(5, 2, 1, 2), metric)
    with pytest.raises(InputError, match="metric must be cosine or euclidean, not 'manhattan'"):
        score_episodes(torch.ones(10, 3), drawn(5, 2, 1, 2), "manhattan")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"must have shape \(n, d\)"):
        score_episodes(torch.ones(10), drawn(5, 2, 1, 2))


class Largest(TorchDispatchMode):
    """Records the size of the largest floating-point tensor that is made, and the number of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.is_floating_point():
            self.numbers = max(self.numbers, made.numel())
        self.products += "bmm" in str(func)
        return made


@pytest.mark.parametrize(("way", "shot", "queries", "width"), [(4, 2, 30, 8), (30, 1, 5, 4), (3, 5, 2, 50)])
def test_many_episodes_are_scored_in_blocks_of_bounded_size(
    way: int, shot: int, queries: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = shot + queries + 1
    vectors = torch.randn(30 * each, width, generator=seeded())
    episodes = drawn(30, each, 64, way, shot, queries)
    monkeypatch.setattr(module, "AT_ONCE", 20_000)
    with Largest() as largest:
        scores = score_episodes(vectors, episodes)
    # Vectors of supports and queries, and the similarities of all queries to all classes, in each block.
    whole = 64 * way * ((shot + queries) * width + queries * way)
    assert max(vectors.numel(), 5000) <= largest.numbers <= 20_000
    assert whole / 20_000 <= largest.products / 3 <= 4 * whole / 20_000
    monkeypatch.setattr(module, "AT_ONCE", 1 << 24)
    torch.testing.assert_close(score_episodes(vectors, episodes).taken, scores.taken)


@pytest.mark.parametrize("metric", METRICS)
def test_similarities_that_differ_by_rounding_alone_are_ties(metric: Metric) -> None:
    """Two supports on a circle, the query between them, nearer to its own by an angle, or further."""
    one = Episodes(torch.tensor([[0, 1]]), torch.tensor([[[0], [1]]]), torch.tensor([[[2], [3]]]))
    for by, expected in ((4e-6, 1.0), (1e-7, 0.5), (-1e-7, 0.5), (-4e-6, 0.0)):
        near = math.pi / 4 - by / (2 * math.sin(math.pi / 4))  # cosines differ by `by`
        angles = torch.tensor([0.0, math.pi / 2, near, 1.5], dtype=torch.float64)
        vectors = torch.stack([angles.cos(), angles.sin()], 1)
        found = score_episodes(vectors, one, metric).credit
        assert found.tolist() == [[[expected], [1.0]]]


def test_ties_allow_for_rounding_relative_to_the_lengths() -> None:
    one = Episodes(torch.tensor([[0, 1]]), torch.tensor([[[0], [1]]]), torch.tensor([[[2], [3]]]))
    for nearer, expected in ((5e-5, 1.0), (1e-5, 0.5), (-1e-5, 0.5), (-5e-5, 0.0)):
        vectors = torch.tensor([[100.0, 0], [-100.0, 0], [nearer, 0], [-50, 0]], dtype=torch.float64)
        vectors = torch.cat([vectors, -vectors])  # the mean is 0
        assert score_episodes(vectors, one, "euclidean").credit.tolist() == [[[expected], [1.0]]]


def test_distances_far_from_the_origin_in_another_way_in_each_direction_are_precise() -> None:
    vectors = torch.randn(40, 8, generator=seeded())
    far = vectors.double() + 1e5 * torch.linspace(-1, 1, 8)
    episodes = drawn(10, 4, 50, 5)
    found = score_episodes(far, episodes, "euclidean").credit
    assert torch.equal(found, score_episodes(vectors, episodes, "euclidean").credit)
