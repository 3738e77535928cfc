from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fake_omniglot import drawing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.evaluation.models import modified_hausdorff, pixel_distance
from fewshot.evaluation.protocols import lake
from fewshot.omniglot.dataset import OneShotRun, lake_runs
from finetune.errors import InputError


def glyphs(*seeds: int) -> Tensor:
    return torch.from_numpy(np.stack([drawing(seed)[::3, ::3] for seed in seeds])) * torch.tensor(
        255, dtype=torch.uint8
    )


def by_definition(one: Tensor, other: Tensor) -> float:
    """Dubuisson & Jain (1994), literally."""
    a, b = (picture.nonzero().double().numpy() for picture in (one, other))
    a, b = a - a.mean(0), b - b.mean(0)
    apart = np.sqrt(((a[:, None] - b) ** 2).sum(2))
    return max(float(apart.min(1).mean()), float(apart.min(0).mean()))


def test_hausdorff_matches_its_definition() -> None:
    test, train = glyphs(0, 1, 2), glyphs(3, 4, 5, 6)
    expected = [[by_definition(one, other) for other in train] for one in test]
    found = modified_hausdorff(test, train)
    assert found.dtype == torch.float64
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_hausdorff_is_the_larger_of_both_directions() -> None:
    dot, bar = torch.zeros(1, 9, 9, dtype=torch.uint8), torch.zeros(1, 9, 9, dtype=torch.uint8)
    dot[0, 4, 4] = bar[0, 4, 2:7] = 255
    # From the dot to the bar 0; from the bar to the dot (2 + 1 + 0 + 1 + 2) / 5.
    assert modified_hausdorff(dot, bar).item() == modified_hausdorff(bar, dot).item() == pytest.approx(1.2)


@settings(max_examples=20)
@given(st.integers(0, 1000), st.integers(-3, 3), st.integers(-3, 3))
def test_hausdorff_does_not_depend_on_the_position(seed: int, down: int, right: int) -> None:
    one, other = F.pad(glyphs(seed), (3, 3, 3, 3)), glyphs(seed + 1)
    moved = one.roll((down, right), (1, 2))
    assert modified_hausdorff(one, moved).item() == pytest.approx(0, abs=1e-9)
    assert modified_hausdorff(moved, other).item() == pytest.approx(modified_hausdorff(one, other).item())
    assert modified_hausdorff(other, one).item() == pytest.approx(modified_hausdorff(one, other).item())


def test_hausdorff_without_ink_is_refused() -> None:
    with pytest.raises(InputError, match="training picture 1 has no ink"):
        modified_hausdorff(glyphs(0), torch.cat([glyphs(0), torch.zeros(1, 35, 35, dtype=torch.uint8)]))


def test_pixel_distance_is_one_minus_the_cosine() -> None:
    test, train = glyphs(0, 1), glyphs(2, 0, 3)
    found = pixel_distance(test, train)
    a, b = (test > 0).flatten(1), (train > 0).flatten(1)
    for i, j in np.ndindex(2, 3):
        both = int((a[i] & b[j]).sum())
        assert found[i, j].item() == pytest.approx(1 - both / np.sqrt(int(a[i].sum()) * int(b[j].sum())), abs=1e-12)
    assert found[0].argmin() == 1
    assert found[0, 1].item() == pytest.approx(0, abs=1e-12)


def test_pixel_distance_to_an_empty_picture_is_one() -> None:
    empty = torch.zeros(1, 35, 35, dtype=torch.uint8)
    assert pixel_distance(torch.cat([glyphs(0), empty]), empty).tolist() == [[1.0], [1.0]]


# --- the published figures --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(real_data: Path) -> list[OneShotRun]:
    try:
        return lake_runs(real_data)
    except InputError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_hausdorff_has_the_error_of_the_official_demo(runs: list[OneShotRun]) -> None:
    result = lake(modified_hausdorff, runs)
    assert result.trials == 400
    assert round((1 - result.accuracy) * 400, 6) == 155  # 38.75 %, which the demo prints as 38.8
    assert f"{100 * (1 - result.accuracy):.1f}" == "38.8"


def test_pixels_have_the_published_accuracy(runs: list[OneShotRun]) -> None:
    result = lake(pixel_distance, runs)
    assert round(result.accuracy * 400, 6) == 87  # 21.75 %; published 21.7
