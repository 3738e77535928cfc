from __future__ import annotations

import torch

from finetune.linear.comparison import BackboneFigures, best_for_its_cost, reason_for


def test_a_faster_network_is_taken_where_it_is_as_good() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(100, generator=generator, dtype=torch.float64)
    good, bad = noise + 0.2, noise + 0.5
    almost = good + torch.where(torch.arange(100) % 2 == 0, 0.3, -0.2999)  # on average as good as `good`
    assert best_for_its_cost([good, bad]) == (0, 0)
    assert best_for_its_cost([bad, good]) == (1, 1)
    assert best_for_its_cost([almost, good]) == (0, 1)
    assert best_for_its_cost([good, almost]) == (0, 0)
    assert best_for_its_cost([bad, almost, good]) == (1, 2)


def test_paired_differences_count_not_the_spread_of_the_pictures() -> None:
    hard = torch.linspace(0, 10, 50, dtype=torch.float64)  # pictures differ far more than networks
    assert best_for_its_cost([hard + 0.005, hard]) == (1, 1)


def test_a_large_difference_counts_where_pictures_are_too_few_to_show_it() -> None:
    noisy = torch.tensor([0.5, 0.1, 0.6, 0.2], dtype=torch.float64)
    worse = noisy + torch.tensor([0.5, -0.2, 0.4, -0.3], dtype=torch.float64)  # by 0.1, within chance
    assert best_for_its_cost([worse, noisy]) == (1, 1)


def test_one_picture_decides_without_a_division_by_zero() -> None:
    assert best_for_its_cost([torch.tensor([0.5]), torch.tensor([0.4])]) == (1, 1)


def test_the_reason_names_the_network_and_what_it_was_compared_with() -> None:
    fast = BackboneFigures(name="fast", weights="published", ms=1.0, accuracy=0.9, error=0.2)
    slow = BackboneFigures(name="slow", weights="published", ms=9.0, accuracy=0.91, error=0.19)
    assert reason_for([fast, slow], 0, 1).startswith("fast: as good as slow within chance, and faster")
    assert "no faster one" in reason_for([fast, slow], 1, 1)
    assert "only network" in reason_for([fast], 0, 0)
