from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.embedding.distortions import SYMMETRIES
from fewshot.evaluation.episodes import Pool, arrange
from fewshot.training.batches import Draw, draw

ALLOWED = {1: {0}, 4: {0, 1, 2, 3}, 8: set(range(8))}

# Groups, each with the number of pictures of each of its classes.
groups_of_sizes = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=7), min_size=1, max_size=4)


def pooled(sizes: list[list[int]]) -> tuple[Pool, torch.Tensor, list[int]]:
    """A pool, its labels, and the group of each label; the pictures of a class do not lie together."""
    counts = [count for group in sizes for count in group]
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = 3 * labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    group_of = [number for number, group in enumerate(sizes) for _ in group]
    groups = torch.tensor(group_of)[labels // 3]
    return arrange(labels, groups), labels, group_of


def drawn(pool: Pool, *, seed: int = 0, **options: int) -> Draw:
    usual = {"groups": 3, "ways": 4, "shots": 2, "symmetries": 8}
    return draw(pool, **{**usual, **options}, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
@settings(max_examples=150)
@given(
    groups_of_sizes,
    st.integers(1, 5),
    st.integers(2, 6),
    st.integers(2, 5),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 2**32 - 1),
)
def test_batches_are_groups_of_classes_with_one_symmetry(
    sizes: list[list[int]], groups: int, ways: int, shots: int, symmetries: int, seed: int
) -> None:
    pool, labels, group_of = pooled(sizes)
    batch = drawn(pool, groups=groups, ways=ways, shots=shots, symmetries=symmetries, seed=seed)
    assert batch.rows.shape == batch.labels.shape == batch.symmetry.shape
    assert batch.rows.dtype == batch.labels.dtype == batch.symmetry.dtype == torch.int64
    # Of its own class, and a class that is laid otherwise is another.
    assert torch.equal(batch.labels, labels[batch.rows] * SYMMETRIES + batch.symmetry)
    assert set(batch.symmetry.tolist()) <= ALLOWED[symmetries]
    at = 0
    for _ in range(groups):
        group = group_of[int(labels[batch.rows[at]]) // 3]
        classes = min(ways, len(sizes[group]))
        part = slice(at, at + classes * shots)
        shown = labels[batch.rows[part]].view(classes, shots)
        assert (shown == shown[:, :1]).all()
        assert len(shown[:, 0].unique()) == classes
        assert {group_of[int(label) // 3] for label in shown[:, 0]} == {group}
        assert len(batch.symmetry[part].unique()) == 1
        for rows, label in zip(batch.rows[part].view(classes, shots).tolist(), shown[:, 0].tolist(), strict=True):
            has = int((labels == label).sum())
            times = Counter(rows)
            assert len(times) == min(has, shots)
            assert max(times.values()) == -(-shots // has)  # as few times as can be
        at += classes * shots
    assert at == len(batch.rows)


def test_single_pictures_are_repeated() -> None:
    pool = arrange(torch.arange(30))
    batch = drawn(pool, groups=2, ways=5, shots=4)
    assert (batch.rows.view(10, 4) == batch.rows.view(10, 4)[:, :1]).all()
    assert len(batch.rows) == 40


def test_the_generator_alone_determines_the_batch() -> None:
    pool, _, _ = pooled([[4] * 9, [3] * 5])
    one, same, other = (drawn(pool, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.rows, same.rows)
    assert torch.equal(one.labels, same.labels)
    assert not torch.equal(one.rows, other.rows)


@pytest.mark.parametrize("symmetries", [1, 4, 8])
def test_every_symmetry_class_and_picture_is_drawn(symmetries: int) -> None:
    pool, labels, _ = pooled([[4] * 9, [1, 2, 3]])
    batch = drawn(pool, groups=400, symmetries=symmetries)
    assert set(batch.symmetry.tolist()) == ALLOWED[symmetries]
    assert set(batch.rows.tolist()) == set(range(len(labels)))
    per_symmetry = batch.symmetry.bincount().double()
    assert float(per_symmetry[per_symmetry > 0].min()) > 0.5 * len(batch.rows) / symmetries


def test_groups_are_drawn_in_proportion_to_their_classes() -> None:
    pool, labels, _ = pooled([[2] * 4, [2] * 12])
    batch = drawn(pool, groups=2000, ways=2, shots=2)
    first = (labels[batch.rows.view(2000, 4)[:, 0]] < 12).double().mean()
    assert float(first) == pytest.approx(0.25, abs=0.04)
