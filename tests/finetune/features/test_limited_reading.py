from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import MakeFolder
from hypothesis import given
from hypothesis import strategies as st

from finetune.config import Config
from finetune.data.folder import Listing, Sample, list_folder
from finetune.features.extraction import read_pictures
from finetune.features.forward import Outputs
from finetune.features.limited_reading import LEAST, SAMPLE, ReadingLimit, mixed_order, only, read_within
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages
from finetune.progress import Display


def listed(sizes: dict[tuple[str | None, str], int]) -> Listing:
    samples = [
        Sample(f"{split}/{label}/{number}.png", label, split, 1)
        for (split, label), count in sizes.items()
        for number in range(count)
    ]
    return Listing(Path("pictures"), tuple(samples), ())


@given(st.lists(st.integers(1, 60), min_size=2, max_size=8), st.floats(0, 1))
def test_every_beginning_of_the_order_has_about_the_same_share_of_every_class(sizes: list[int], share: float) -> None:
    listing = listed({(None, f"class {number}"): size for number, size in enumerate(sizes)})
    order, fewest = mixed_order(listing)
    assert sorted(order) == list(range(sum(sizes)))
    read = round(fewest + share * (len(order) - fewest))
    counts = Counter(listing.samples[position].label for position in order[:read])
    shares = []
    for number, size in enumerate(sizes):
        count = counts[f"class {number}"]
        assert count >= min(size, LEAST)
        if count > LEAST:
            shares += [(count - 0.5) / size]
    if shares:
        assert max(shares) - min(shares) <= 1.01 / min(size for size in sizes if size > LEAST)


def test_of_given_splits_one_picture_of_each_class_is_read_first() -> None:
    listing = listed({(split, label): 50 for split in ("train", "val", "test") for label in ("cat", "dog")})
    order, fewest = mixed_order(listing)
    first = Counter((listing.samples[position].split, listing.samples[position].label) for position in order[:fewest])
    assert first == {
        (split, label): 4 if split == "train" else 1 for split in ("train", "val", "test") for label in ("cat", "dog")
    }


@pytest.mark.slow
def test_reading_stops_at_the_limit_and_what_was_read_is_what_reading_all_gives(make_folder: MakeFolder) -> None:
    listing = list_folder(make_folder(classes={"blue": 300, "red": 300}, size=8))
    config = Config(backbone="fewtune_conv4", device="cpu", image_size=16, cache=False)
    fabric = open_engine("cpu", "float32")
    torch.manual_seed(0)
    stages = PooledStages(Backbone("fewtune_conv4", image_size=16))
    asked: list[int] = []

    def limit(sample: Outputs, seconds: float) -> ReadingLimit:
        asked.append(len(sample.contents))
        assert seconds > 0
        return ReadingLimit(time.monotonic() + 600, time.monotonic() + 600, 540)

    first = ReadingLimit(time.monotonic() + 600, time.monotonic() + 600, 600)
    found = read_within(fabric, stages, listing, config, Display(), first=first, limit=limit)
    assert asked == [SAMPLE]
    assert found.enough
    part, outputs = only(listing, found.outputs)
    assert len(part.samples) == len(outputs.contents) == 540
    assert Counter(sample.label for sample in part.samples) == {"blue": 270, "red": 270}
    every = read_pictures(fabric, stages, listing, config, Display())
    assert torch.equal(found.outputs.index, found.outputs.index.sort().values)
    torch.testing.assert_close(outputs.values, every.values[found.outputs.index])
    assert [outputs.contents[row].sha256 for row in range(540)] == [
        every.contents[position].sha256 for position in found.outputs.index.tolist()
    ]


@pytest.mark.slow
def test_a_time_that_is_over_reads_nothing(make_folder: MakeFolder) -> None:
    listing = list_folder(make_folder(classes={"blue": 10, "red": 10}, size=8))
    config = Config(backbone="fewtune_conv4", device="cpu", image_size=16, cache=False)
    stages = PooledStages(Backbone("fewtune_conv4", image_size=16))
    first = ReadingLimit(time.monotonic() - 1, time.monotonic() - 1, 20)
    fabric = open_engine("cpu", "float32")
    found = read_within(fabric, stages, listing, config, Display(), first=first, limit=lambda _outputs, _seconds: first)
    assert len(found.outputs.contents) == 0
    assert not found.enough
