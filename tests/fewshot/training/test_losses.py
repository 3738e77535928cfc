from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fewshot.training.config import DISTANCES, LOSSES, MINERS, SiameseConfig
from fewshot.training.losses import Contrastive, Siamese, siamese
from finetune.errors import InputError


def random(classes: int, each: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Vectors that lie nearer to those of their class, in no order."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(classes, 6, generator=generator).repeat_interleave(each, 0)
    vectors = centre + 0.8 * torch.randn(classes * each, 6, generator=generator)
    order = torch.randperm(classes * each, generator=generator)
    return vectors[order], torch.arange(classes).repeat_interleave(each)[order]


def distance(one: Tensor, other: Tensor) -> float:
    one, other = one.double(), other.double()
    return float((one / one.norm() - other / other.norm()).norm())


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def by_hand(vectors: Tensor, labels: Tensor, margin: float, hardest: int) -> float:
    """Equation 4 of Hadsell et al. 2006, pair by pair: the mean over each kind of the pairs that count."""
    same, different = [], []
    for one, other in combinations(range(len(labels)), 2):
        apart = distance(vectors[one], vectors[other])
        if labels[one] == labels[other]:
            same.append(apart**2 / 2)
        elif not hardest and apart < margin:
            different.append((margin - apart) ** 2 / 2)
    for one in range(len(labels) if hardest else 0):
        others = sorted(distance(vectors[one], other) for other in vectors[labels != labels[one]])
        different += [max(0.0, margin - apart) ** 2 / 2 for apart in others[:hardest]]
    return mean(same) + mean(different)


@settings(max_examples=60)
@given(
    st.integers(2, 5), st.integers(1, 4), st.sampled_from([0, 1, 2, 3]), st.floats(0.2, 2), st.integers(0, 2**32 - 1)
)
def test_the_contrastive_loss_is_that_of_the_paper(
    classes: int, each: int, hardest: int, margin: float, seed: int
) -> None:
    hardest = min(hardest, (classes - 1) * each)
    vectors, labels = random(classes, each, seed)
    found = Contrastive(margin, hardest)(vectors, labels)
    assert float(found) == pytest.approx(by_hand(vectors, labels, margin, hardest), abs=1e-4)


@pytest.mark.parametrize(("classes", "each", "hardest"), [(2, 2, 8), (2, 4, 5), (3, 1, 4)])
def test_only_existing_pairs_are_averaged(classes: int, each: int, hardest: int) -> None:
    """Fewer pictures of other classes than are asked for: all of them count, and nothing else does."""
    vectors, labels = random(classes, each)
    found = Contrastive(2.0, hardest)(vectors, labels)
    assert float(found) == pytest.approx(by_hand(vectors, labels, 2.0, hardest), abs=1e-4)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 8))
def test_mined_pairs_replace_all_pairs(seed: int, same: int, different: int) -> None:
    vectors, labels = random(3, 4, seed)
    pairs = list(combinations(range(12), 2))
    alike = [pair for pair in pairs if labels[pair[0]] == labels[pair[1]]][:same]
    apart = [pair for pair in pairs if labels[pair[0]] != labels[pair[1]]][:different]
    given_pairs = tuple(
        torch.tensor([pair[place] for pair in kind], dtype=torch.int64) for kind in (alike, apart) for place in (0, 1)
    )
    pulled = mean([distance(vectors[one], vectors[other]) ** 2 / 2 for one, other in alike])
    short = [1.5 - distance(vectors[one], vectors[other]) for one, other in apart]
    pushed = mean([value**2 / 2 for value in short if value > 0])
    for hardest in (0, 3):
        found = Contrastive(1.5, hardest)(vectors, labels, given_pairs)
        assert float(found) == pytest.approx(pulled + pushed, abs=1e-4)


@pytest.mark.parametrize("hardest", [0, 2])
def test_the_loss_is_zero_for_separate_classes(hardest: int) -> None:
    vectors, labels = torch.eye(4).repeat_interleave(3, 0), torch.arange(4).repeat_interleave(3)
    assert float(Contrastive(1.0, hardest)(vectors, labels)) == pytest.approx(0, abs=1e-5)
    assert float(Contrastive(1.5, hardest)(vectors, labels)) == pytest.approx((1.5 - math.sqrt(2)) ** 2 / 2, abs=1e-5)


@pytest.mark.parametrize("hardest", [0, 2, 50])
def test_gradients_are_finite_for_equal_vectors(hardest: int) -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    for vectors in (torch.ones(5, 3), torch.zeros(5, 3), torch.tensor([[1.0, 0, 0]] * 4 + [[0, 1.0, 0]])):
        moving = vectors.clone().requires_grad_()
        loss = Contrastive(1.0, hardest)(moving, labels)
        loss.backward()
        assert loss.isfinite()
        assert moving.grad is not None
        assert moving.grad.isfinite().all()


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]])
@pytest.mark.parametrize("hardest", [0, 2])
def test_a_batch_of_one_kind_of_pairs_has_a_finite_loss(labels: list[int], hardest: int) -> None:
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = Contrastive(1.0, hardest)(vectors, torch.tensor(labels))
    loss.backward()
    assert loss.isfinite()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_the_length_of_a_vector_does_not_matter() -> None:
    vectors, labels = random(3, 3)
    longer = vectors * torch.linspace(0.1, 9, 9)[:, None]
    assert float(Contrastive()(longer, labels)) == pytest.approx(float(Contrastive()(vectors, labels)), abs=1e-5)


# --- losses and miners by name ----------------------------------------------------------------------------------------


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8))


def batch() -> tuple[Tensor, Tensor]:
    vectors, labels = random(5, 4)
    return vectors.repeat(1, 6).view(-1, 1, 6, 6), labels


def made(loss: str, miner: str = "none", distance: str | None = None) -> Siamese:
    return siamese(encoder(), 8, 5, SiameseConfig(loss=loss, miner=miner, distance=distance, margin=1.0, hardest=3))


@pytest.mark.parametrize(("loss", "miner"), list(product(LOSSES, MINERS)))
def test_every_loss_and_miner_learns_or_is_refused(loss: str, miner: str) -> None:
    if (loss, miner) == ("contrastive", "batch-hard"):
        with pytest.raises(InputError, match="batch-hard gives triplets"):
            made(loss, miner)
        return
    found = made(loss, miner)
    optimizer = torch.optim.SGD(found.parameters(), lr=1e-2)
    pictures, labels = batch()
    before = found(pictures, labels)
    before.backward()
    slopes = [parameter.grad for parameter in found.parameters()]
    assert all(slope is not None and slope.isfinite().all() for slope in slopes)
    assert sum(float(slope.abs().sum()) for slope in slopes if slope is not None) > 0
    optimizer.step()
    assert found(pictures, labels).isfinite()
    assert before.ndim == 0


@pytest.mark.parametrize(("loss", "distance"), list(product(LOSSES, DISTANCES)))
def test_every_distance_learns_or_is_refused_in_one_line(loss: str, distance: str) -> None:
    needed = {"arcface": "cosine", "contrastive": "euclidean"}.get(loss, distance)
    if distance != needed:
        with pytest.raises(InputError, match=f"--distance {distance}") as caught:
            made(loss, distance=distance)
        assert "\n" not in str(caught.value)
        return
    found = made(loss, distance=distance)
    found(*batch()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in found.parameters())


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_falls_in_gradient_descent(loss: str) -> None:
    found = made(loss)
    optimizer = torch.optim.Adam(found.parameters(), lr=1e-2)
    pictures, labels = batch()
    losses = []
    for _ in range(25):
        value = found(pictures, labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.9 * losses[0]


def test_the_class_weights_of_a_loss_are_parameters() -> None:
    assert any(parameter.shape == (8, 5) for parameter in made("arcface").loss.parameters())
    assert not list(made("contrastive").loss.parameters())


def test_losses_are_computed_in_full_precision() -> None:
    pictures, labels = batch()
    found = made("contrastive")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = found(pictures, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(found(pictures, labels).item(), rel=0.05)
