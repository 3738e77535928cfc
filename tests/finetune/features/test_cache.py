from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from made_activations import KEY, filled, keys_of, opened, values_of
from torch import Tensor

from finetune.features import cache as activation_cache
from finetune.features.cache import ActivationCache
from finetune.features.cache_files import shards_of
from finetune.features.cache_keys import FeatureKey

MB = 1 << 20


@pytest.mark.parametrize("memory", [0, MB], ids=["mapped", "in memory"])
@pytest.mark.parametrize("kept_as", ["float32", "bfloat16", "float16"])
def test_values_come_back_bit_for_bit(kept_as: str, memory: int, tmp_path: Path) -> None:
    key = replace(KEY, kept_as=kept_as)
    maps = torch.randn(9, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 0] = torch.tensor([float("nan"), -0.0, float("inf")])
    with opened(tmp_path) as cache:
        for start in range(0, 9, 3):  # one file each
            cache.put(key, keys_of(range(9))[start : start + 3], maps[start : start + 3])
            cache.flush()
    found = opened(tmp_path, memory=memory).get(key, keys_of([8, 0, 4, 0]))
    assert len(found) == 4
    expected = maps[[8, 0, 4, 0]].to(key.dtype)
    for picked in (slice(None), [0, 1, 2, 3], torch.arange(4), np.arange(4)):
        values = found[picked]
        assert values.dtype == key.dtype
        assert values.shape == expected.shape
        assert torch.equal(values.view(torch.uint8), expected.view(torch.uint8))
    assert torch.equal(found[torch.tensor([2])], maps[[4]].to(key.dtype))
    assert found[[]].shape == (0, 4, 3, 3)


def test_rows_are_found_at_once_and_are_not_replaced(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(KEY, keys_of([1, 2, 1]), values_of([1, 2, 9]))
    cache.put(KEY, keys_of([2, 3]), values_of([9, 3]))
    assert torch.equal(cache.get(KEY, keys_of([3, 2, 1]))[:], values_of([3, 2, 1]))
    assert not shards_of(tmp_path, KEY.name)
    held = cache.get(KEY, keys_of([1]))
    cache.close()
    assert torch.equal(held[:], values_of([1]))
    assert torch.equal(opened(tmp_path).get(KEY, keys_of([1, 2, 3]))[:], values_of([1, 2, 3]))


def test_files_are_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_cache, "SHARD_BYTES", 1000)
    filled(tmp_path, range(500))
    sizes = [shard.stat().st_size for shard in shards_of(tmp_path, KEY.name)]
    assert len(sizes) == 10
    assert max(sizes) < 4000
    assert torch.equal(opened(tmp_path).get(KEY, keys_of(range(500)))[:], values_of(range(500)))


def test_another_shape_and_too_large_numbers_are_refused(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(KEY, keys_of([1]), values_of([1]))
    with pytest.raises(ValueError, match="one shape"):
        cache.put(KEY, keys_of([2]), values_of([2], width=6))
    with pytest.raises(OverflowError, match=r"up to 70000 do not fit .*float16"):
        cache.put(replace(KEY, kept_as="float16"), keys_of([1]), torch.tensor([[7e4]]))


def test_nothing_is_written_without_disk_space(tmp_path: Path) -> None:
    with opened(tmp_path / "cache", disk=0) as cache:
        cache.put(KEY, keys_of([1]), values_of([1]))
        cache.flush()
        assert torch.equal(cache.get(KEY, keys_of([1]))[:], values_of([1]))
    assert not (tmp_path / "cache").exists()


class _AgainstADictionary(RuleBasedStateMachine):
    """Any order of puts, files and runs, under two keys, gives what a dictionary gives."""

    numbers = st.lists(st.integers(0, 12), max_size=8)
    either = st.sampled_from([KEY, replace(KEY, cut="stem")])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.model: dict[tuple[str, int], Tensor] = {}
        self.cache = self.reopened(MB)

    def reopened(self, memory: int) -> ActivationCache:
        return opened(Path(self.folder.name), memory=memory)

    @rule(key=either, numbers=numbers)
    def put(self, key: FeatureKey, numbers: list[int]) -> None:
        offset = float(len(self.model))  # not what would be put another time
        values = values_of(numbers) + offset if numbers else torch.empty(0, 5)
        self.cache.put(key, keys_of(numbers), values)
        for number, value in zip(numbers, values, strict=True):
            self.model.setdefault((key.cut, number), value)

    @rule()
    def flush(self) -> None:
        self.cache.flush()

    @rule(memory=st.sampled_from([0, MB]))
    def reopen(self, memory: int) -> None:
        self.cache.close()
        self.cache = self.reopened(memory)

    @rule(key=either, numbers=numbers)
    def get(self, key: FeatureKey, numbers: list[int]) -> None:
        there = [number for number in numbers if (key.cut, number) in self.model]
        found = self.cache.get(key, keys_of(there))[:]
        assert len(found) == len(there)
        for value, number in zip(found, there, strict=True):
            assert torch.equal(value, self.model[key.cut, number])

    @invariant()
    def knows(self) -> None:
        known = self.cache.known(KEY, keys_of(range(13)))
        assert known.tolist() == [(KEY.cut, number) in self.model for number in range(13)]

    def teardown(self) -> None:
        self.folder.cleanup()


TestAgainstADictionary = _AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(
    max_examples=40, stateful_step_count=12, suppress_health_check=list(HealthCheck)
)
