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
from made_activations import FAMILY, filled, keys_of, opened, values_of
from torch import Tensor

from finetune.features import cache as activation_cache
from finetune.features.cache import ActivationCache
from finetune.features.cache_files import shards_of
from finetune.features.cache_keys import FeatureKey

MB = 1 << 20


@pytest.mark.parametrize("memory", [0, MB], ids=["mapped", "in memory"])
@pytest.mark.parametrize("kept_as", ["float32", "bfloat16", "float16"])
def test_values_come_back_bit_for_bit(kept_as: str, memory: int, tmp_path: Path) -> None:
    family = replace(FAMILY, kept_as=kept_as)
    maps = torch.randn(9, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    maps[0, 0, 0] = torch.tensor([float("nan"), -0.0, float("inf")])
    tokens = torch.arange(9.0)
    with opened(tmp_path) as cache:
        for start in range(0, 9, 3):  # a file for each
            cache.put(
                family, keys_of(range(9))[start : start + 3], (maps[start : start + 3], tokens[start : start + 3])
            )
            cache.flush()
    found = opened(tmp_path, memory=memory).get(family, keys_of([8, 0, 4, 0]))
    assert len(found) == 4
    for picked in (slice(None), [0, 1, 2, 3], torch.arange(4), np.arange(4)):
        for values, given in zip(found[picked], (maps, tokens), strict=True):
            expected = given[[8, 0, 4, 0]].to(family.dtype)
            assert values.dtype == family.dtype
            assert values.shape == expected.shape
            assert torch.equal(values.unsqueeze(-1).view(torch.uint8), expected.unsqueeze(-1).view(torch.uint8))
    assert torch.equal(found[torch.tensor([2, 1])][1], tokens[[4, 0]].to(family.dtype))
    assert len(found[[]][0]) == 0


def test_what_is_put_is_there_at_once_and_stays_as_it_was_first_put(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(FAMILY, keys_of([1, 2, 1]), values_of([1, 2, 9]))
    cache.put(FAMILY, keys_of([2, 3]), values_of([9, 3]))
    assert torch.equal(cache.get(FAMILY, keys_of([3, 2, 1]))[:], values_of([3, 2, 1]))
    assert not shards_of(tmp_path, FAMILY.name)
    held = cache.get(FAMILY, keys_of([1]))
    cache.close()
    assert torch.equal(held[:], values_of([1]))
    assert torch.equal(opened(tmp_path).get(FAMILY, keys_of([1, 2, 3]))[:], values_of([1, 2, 3]))


def test_files_are_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_cache, "SHARD_BYTES", 1000)
    filled(tmp_path, range(500))
    sizes = [shard.stat().st_size for shard in shards_of(tmp_path, FAMILY.name)]
    assert len(sizes) == 10
    assert max(sizes) < 4000
    assert torch.equal(opened(tmp_path).get(FAMILY, keys_of(range(500)))[:], values_of(range(500)))


def test_what_a_family_cannot_hold_is_refused(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    cache.put(FAMILY, keys_of([1]), values_of([1]))
    with pytest.raises(ValueError, match="one shape"):
        cache.put(FAMILY, keys_of([2]), values_of([2], width=6))
    with pytest.raises(OverflowError, match=r"up to 70000 do not fit .*float16"):
        cache.put(replace(FAMILY, kept_as="float16"), keys_of([1]), torch.tensor([[7e4]]))


def test_nothing_is_written_where_no_disk_may_be_used(tmp_path: Path) -> None:
    with opened(tmp_path / "cache", disk=0) as cache:
        cache.put(FAMILY, keys_of([1]), values_of([1]))
        cache.flush()
        assert torch.equal(cache.get(FAMILY, keys_of([1]))[:], values_of([1]))
    assert not (tmp_path / "cache").exists()


class _AgainstADictionary(RuleBasedStateMachine):
    """Any order of puts, files and runs, in two families, gives what a dictionary gives."""

    numbers = st.lists(st.integers(0, 12), max_size=8)
    either = st.sampled_from([FAMILY, replace(FAMILY, cut="stem")])

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.model: dict[tuple[str, int], Tensor] = {}
        self.cache = self.reopened(MB)

    def reopened(self, memory: int) -> ActivationCache:
        return opened(Path(self.folder.name), memory=memory)

    @rule(family=either, numbers=numbers)
    def put(self, family: FeatureKey, numbers: list[int]) -> None:
        offset = float(len(self.model))  # not what would be put another time
        values = values_of(numbers) + offset if numbers else torch.empty(0, 5)
        self.cache.put(family, keys_of(numbers), values)
        for number, value in zip(numbers, values, strict=True):
            self.model.setdefault((family.cut, number), value)

    @rule()
    def flush(self) -> None:
        self.cache.flush()

    @rule(memory=st.sampled_from([0, MB]))
    def reopen(self, memory: int) -> None:
        self.cache.close()
        self.cache = self.reopened(memory)

    @rule(family=either, numbers=numbers)
    def get(self, family: FeatureKey, numbers: list[int]) -> None:
        there = [number for number in numbers if (family.cut, number) in self.model]
        found = self.cache.get(family, keys_of(there))[:]
        assert len(found) == len(there)
        for value, number in zip(found, there, strict=True):
            assert torch.equal(value, self.model[family.cut, number])

    @invariant()
    def knows(self) -> None:
        known = self.cache.known(FAMILY, keys_of(range(13)))
        assert known.tolist() == [(FAMILY.cut, number) in self.model for number in range(13)]

    def teardown(self) -> None:
        self.folder.cleanup()


TestAgainstADictionary = _AgainstADictionary.TestCase
TestAgainstADictionary.settings = settings(
    max_examples=40, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
