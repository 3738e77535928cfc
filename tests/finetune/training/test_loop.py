from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Config
from finetune.data.loader import Shuffle, batches_per_epoch, epoch_order
from finetune.data.transforms import view_seed
from finetune.models.backbone import Backbone, Network
from finetune.strategies import FULL, PARTIAL, TRAIN
from finetune.training.plan import LEAST_STEPS, Plan, epochs_for, plan_for
from finetune.training.step import mixup, optimizer_for, schedule


@given(st.integers(2, 500), st.floats(0, 0.9))
def test_schedule_rises_to_one_then_falls_to_nearly_nothing(steps: int, share: float) -> None:
    warmup = round(share * steps)
    rates = [schedule(step, steps, warmup) for step in range(steps)]
    assert max(rates) == pytest.approx(1)
    assert all(a < b for a, b in itertools.pairwise(rates[:warmup]))
    assert all(a > b for a, b in itertools.pairwise(rates[max(0, warmup - 1) :] if warmup == 0 else rates[warmup:]))
    assert all(0 < rate <= 1 for rate in rates)


def test_learning_rates_fall_towards_the_stem_and_norms_and_biases_are_not_decayed() -> None:
    backbone = Backbone("fewtune_conv4")
    network = Network(backbone, torch.nn.Linear(backbone.width, 3))
    plan = plan_for(FULL, Config(strategy="full", lr=1.0, stage_decay=0.5), network, 100)
    optimizer = optimizer_for(network, plan, Config(weight_decay=0.1))
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert rate[id(network.head.weight)] == 1.0
    assert [rate[id(block[0].weight)] for block in backbone.model.blocks] == [0.5**4, 0.5**3, 0.5**2, 0.5]
    for parameter in network.parameters():
        assert decay[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)
    assert len(rate) == len(list(network.parameters()))


def test_frozen_parameters_are_not_given_to_the_optimizer() -> None:
    backbone = Backbone("fewtune_conv4")
    network = Network(backbone, torch.nn.Linear(backbone.width, 3))
    plan = plan_for(PARTIAL, Config(), network, 100)
    backbone.freeze_below(plan.lowest)
    given_away = {id(p) for group in optimizer_for(network, plan, Config()).param_groups for p in group["params"]}
    assert given_away == {id(p) for p in network.parameters() if p.requires_grad}


def test_the_strategy_train_has_one_rate_for_all_stages() -> None:
    backbone = Backbone("fewtune_conv4")
    network = Network(backbone, torch.nn.Linear(backbone.width, 3))
    optimizer = optimizer_for(network, plan_for(TRAIN, Config(), network, 100), Config())
    assert {group["lr"] for group in optimizer.param_groups} == {TRAIN.learning_rate}


@given(st.integers(1, 10_000))
def test_small_folders_get_more_epochs_up_to_a_bound(steps_per_epoch: int) -> None:
    epochs = epochs_for(FULL, steps_per_epoch)
    assert FULL.epochs <= epochs <= 40
    assert epochs * steps_per_epoch >= LEAST_STEPS["pretrained"] or epochs == 40


@given(st.integers(0, 2**32 - 1), st.integers(0, 100), st.integers(1, 200))
def test_the_order_is_a_permutation_determined_by_seed_and_epoch(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n)
    assert sorted(order.tolist()) == list(range(n))
    assert torch.equal(order, epoch_order(seed, epoch, n))
    if n > 20:
        assert not torch.equal(order, epoch_order(seed, epoch + 1, n))


@given(st.integers(1, 300), st.integers(1, 40))
def test_an_epoch_has_every_picture_once_and_no_batch_of_one(n: int, batch_size: int) -> None:
    batches = list(Shuffle(seed=0, indices=range(100, 100 + n), batch_size=batch_size, first_epoch=2, epochs=3))
    assert len(batches) == batches_per_epoch(n, batch_size)
    assert sorted(index for batch in batches for _, index in batch) == list(range(100, 100 + n))
    assert {epoch for batch in batches for epoch, _ in batch} == {2}
    if batch_size > 1 and n > 1:
        assert min(len(batch) for batch in batches) > 1


def test_view_seeds_depend_on_where_their_parts_end() -> None:
    assert view_seed(1, 23) != view_seed(12, 3)
    assert 0 <= view_seed(0, 0, 0) < 2**63


def test_mixup_blends_pictures_and_targets_alike() -> None:
    torch.manual_seed(0)
    pictures = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    mixed, targets, counts = mixup(pictures, torch.tensor([0, 1]), torch.tensor([1.0, 3.0]), 2, 1.0)
    share = float(mixed[1, 0, 0, 0])
    assert 0 < share < 1
    torch.testing.assert_close(targets, torch.tensor([[share, 1 - share], [1 - share, share]]))
    torch.testing.assert_close(counts, torch.tensor([3 - 2 * share, 1 + 2 * share]))


def test_a_plan_counts_its_steps() -> None:
    rates = {"lr": 1, "stage_decay": 1, "lowest": 0, "batch_norm_trains": False}
    assert Plan(epochs=3, patience=2, steps_per_epoch=7, **rates).steps == 21
