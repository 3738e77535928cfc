from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_bars
from hypothesis import given
from hypothesis import strategies as st

import finetune
from finetune.training.selection import SHARES, between

SMALL: dict[str, Any] = {
    "backbone": "fewtune_conv4", "image_size": 20, "device": "cpu", "workers": 0, "batch_size": 8,
    "trivial_augment": False, "crop_scale": 1.0,
}  # fmt: skip
TRAINED: dict[str, Any] = {
    "strategy": "full", "drop_above": "stem", "epochs": 4, "lr": 1e-2, "val_fraction": 0.5, "test_fraction": 0,
}  # fmt: skip


@given(st.floats(0, 1), st.integers(0, 1000))
def test_interpolated_weights_lie_on_the_line_and_integers_are_the_trained_ones(share: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    start, trained = ({"weight": torch.randn(3, 2, generator=random), "count": torch.tensor(n)} for n in (1, 7))
    found = between(start, trained, share)
    wanted = start["weight"] * (1 - share) + trained["weight"] * share
    torch.testing.assert_close(found["weight"], wanted, atol=1e-5, rtol=1e-5)
    assert found["count"] == 7


@pytest.mark.slow
def test_interpolated_weights_are_at_least_as_good_on_validation(tmp_path: Path) -> None:
    """The recorded share is that of the kept weights, and no epoch was better."""
    classifier = finetune.fit(write_bars(tmp_path / "bars"), tmp_path / "run", **TRAINED, **SMALL)
    metrics, lines = classifier.metrics, (tmp_path / "run" / "history.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, map(float, line.split(",")), strict=True)) for line in lines[1:]]
    assert metrics["share_of_the_way"] in (1.0, *SHARES)
    assert metrics["kept"] == "full", "enough validation pictures, and classes that a frozen stem cannot tell"
    assert metrics["val"]["accuracy"] >= max(row["val_accuracy"] for row in rows) - 1e-9
