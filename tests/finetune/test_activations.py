from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from called import Answer, caller
from conftest import MakeFolder
from hostile import hostile
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from torch import Tensor, nn

from finetune import activation_cache
from finetune.activation_cache import ActivationCache
from finetune.activation_families import Family, family_of, weights_fingerprint
from finetune.activation_shards import clear, default_bound, default_folder, families, shards_of, size_of
from finetune.activations import cached
from finetune.backbone import Backbone
from finetune.cache_command import cache as cache_command
from finetune.commands import run_command
from finetune.config import Config
from finetune.engine import open_engine
from finetune.folder import list_unlabelled
from finetune.frozen import Outputs, run_frozen
from finetune.loader import Pictures
from finetune.transforms import evaluation_view, training_view

FAMILY = Family(
    backbone="net",
    weights="0" * 64,
    preprocessing={"size": 32, "mean": (0.5, 0.5, 0.5)},
    cut="features",
    view=("CenterCrop(32)",),
    seed=None,
    at_least=32,
    max_pixels=1000,
    test_time="plain",
    computed={"device": "cpu", "precision": "32-true"},
    kept_as="float32",
    versions={"torch": "2.10"},
)
MB = 1 << 20


def keys_of(numbers: Sequence[int]) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in numbers]


def values_of(numbers: Sequence[int], width: int = 5) -> Tensor:
    """(n, width), of each number something of its own."""
    return torch.tensor(numbers, dtype=torch.float32)[:, None] * 7 + torch.arange(width) / 3


def silent(line: str) -> None:
    raise AssertionError(f"announced: {line}")


def opened(folder: Path, announce: Callable[[str], None] = silent, **options: Any) -> ActivationCache:
    return ActivationCache(folder, announce=announce, **({"disk": 1 << 30} | options))


def filled(folder: Path, numbers: Sequence[int], family: Family = FAMILY, width: int = 5) -> None:
    with opened(folder) as cache:
        cache.put(family, keys_of(numbers), values_of(numbers, width))


def the_shard(folder: Path, family: Family = FAMILY) -> Path:
    (shard,) = shards_of(folder, family.name)
    return shard


# ------------------------------------------------------------------------------------------------ the key


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "other"},
        {"weights": "1" * 64},
        {"preprocessing": {"size": 33, "mean": (0.5, 0.5, 0.5)}},
        {"preprocessing": {"size": 32, "mean": (0.5, 0.5, 0.4999999)}},
        {"cut": "blocks.3"},
        {"view": ("CenterCrop(33)",)},
        {"seed": 0},
        {"at_least": 33},
        {"max_pixels": 1001},
        {"test_time": "flip"},
        {"computed": {"device": "cpu", "precision": "bf16-mixed"}},
        {"kept_as": "bfloat16"},
        {"versions": {"torch": "2.11"}},
        {"format": 2},
    ],
    ids=str,
)
def test_a_change_of_any_ingredient_is_a_miss(change: dict[str, Any], tmp_path: Path) -> None:
    filled(tmp_path, [1, 2])
    cache = opened(tmp_path)
    assert cache.known(FAMILY, keys_of([1, 2, 3])).tolist() == [True, True, False]
    assert not cache.known(replace(FAMILY, **change), keys_of([1, 2])).any()
    with pytest.raises(KeyError, match=keys_of([3])[0]):
        cache.get(FAMILY, keys_of([1, 3]))


def test_every_ingredient_is_among_those_changed() -> None:
    marks = test_a_change_of_any_ingredient_is_a_miss.pytestmark  # type: ignore[attr-defined]
    changed = {name for change in marks[0].args[1] for name in change}
    assert changed == {field.name for field in fields(Family)}


def test_a_fingerprint_tells_weights_names_buffers_and_structure_apart() -> None:
    def network(*, act: type[nn.Module] = nn.ReLU, stride: int = 1, seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride), nn.BatchNorm2d(4), act())

    plain = network()
    moved, nudged = network(), network()
    moved[1].running_mean += 1  # type: ignore[operator]
    nudged[0].weight.data.view(torch.int32)[0, 0, 0, 0] ^= 1
    named = nn.ModuleDict({"conv": plain[0], "norm": plain[1]})
    others = [moved, nudged, named, network(act=nn.GELU), network(stride=2), network(seed=1), network().double()]
    assert weights_fingerprint(plain) == weights_fingerprint(network().train(False).requires_grad_(False))
    assert len({weights_fingerprint(each) for each in (plain, *others)}) == len(others) + 1


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone("fewtune_conv4").eval()


def test_a_family_knows_how_pictures_are_read_seen_and_run(backbone: Backbone) -> None:
    wanted = backbone.preprocessing
    fabric = open_engine("cpu", "float32")
    plain = Pictures([], evaluation_view(wanted), wanted.shortest_side, 1000)
    views = [
        training_view(wanted, Config(**options))
        for options in ({}, {"crop_scale": 0.5}, {"flip": False}, {"trivial_augment": False})
    ]
    seen = [
        plain,
        replace(plain, at_least=1),
        replace(plain, max_pixels=1001),
        replace(plain, view=evaluation_view(wanted, "ten-crop")),
        *(replace(plain, view=view) for view in views),
        replace(plain, view=views[0], seed=1),
    ]
    named = [family_of(fabric, backbone, pictures, wanted, backbone="net").name for pictures in seen]
    options: list[dict[str, str]] = [
        {"cut": "stem"},
        {"test_time": "flip"},
        {"runtime": "OpenVINO"},
        {"kept_as": "float16"},
    ]
    named += [family_of(fabric, backbone, plain, wanted, backbone="net", **option).name for option in options]
    named.append(family_of(open_engine("cpu", "bfloat16"), backbone, plain, wanted, backbone="net").name)
    assert len(set(named)) == len(named)
    again = replace(plain, view=evaluation_view(wanted), seed=5)  # a seed that nothing draws from
    assert family_of(fabric, backbone, again, wanted, backbone="net").name == named[0]


def test_a_view_that_does_not_tell_its_parameters_is_refused(backbone: Backbone) -> None:
    wanted, fabric = backbone.preprocessing, open_engine("cpu", "float32")
    view = evaluation_view(wanted)
    for step in (lambda picture: picture, partial(np.asarray, torch.zeros(3))):
        view.steps = (step,)
        with pytest.raises(ValueError, match=r"tell|told"):
            family_of(fabric, backbone, Pictures([], view, 32, 1000), wanted, backbone="net")


# ------------------------------------------------------------------------------------------------ values


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
    def put(self, family: Family, numbers: list[int]) -> None:
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
    def get(self, family: Family, numbers: list[int]) -> None:
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


# ------------------------------------------------------------------------------------------------ several processes

WRITER = """
import hashlib, json, sys
from pathlib import Path
import torch
from finetune.activation_cache import ActivationCache
from finetune.activation_families import Family
folder, family, first, last = sys.argv[1], Family(**json.loads(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])
with ActivationCache(Path(folder), disk=1 << 30, announce=print) as cache:
    for number in range(first, last):
        key = hashlib.sha256(str(number).encode()).hexdigest()
        cache.put(family, [key], number * 7 + torch.arange(2000)[None] / 3)
        cache.flush()
"""


def writer(folder: Path, first: int, last: int) -> subprocess.Popen[bytes]:
    """A process that writes these numbers' values of FAMILY, a file for each."""
    command = [sys.executable, "-c", WRITER, str(folder), json.dumps(asdict(FAMILY)), str(first), str(last)]
    return subprocess.Popen(command)


def test_two_processes_may_write_at_the_same_time_and_one_be_killed(tmp_path: Path) -> None:
    other, deadline = writer(tmp_path, 0, 100_000), time.monotonic() + 60

    def wait_for(files: int) -> None:
        while len(shards_of(tmp_path, FAMILY.name)) < files and time.monotonic() < deadline:
            time.sleep(0.005)

    wait_for(1)
    with opened(tmp_path) as cache:
        for number in (*range(30), *range(1990, 2000)):
            cache.put(FAMILY, keys_of([number]), values_of([number], 2000))
            cache.flush()
    wait_for(80)
    other.send_signal(signal.SIGKILL)
    assert other.wait() == -signal.SIGKILL
    cache = opened(tmp_path)
    known = np.flatnonzero(cache.known(FAMILY, keys_of(range(2000)))).tolist()
    assert {*range(30), *range(1990, 2000)} <= set(known)
    assert torch.equal(cache.get(FAMILY, keys_of(known))[:], values_of(known, 2000))
    cache.put(FAMILY, keys_of([99_999]), values_of([99_999], 2000))  # and the lock went with it
    cache.close()
    assert opened(tmp_path).known(FAMILY, keys_of([99_999])).all()


def test_what_a_killed_writer_left_is_deleted_once_it_is_old(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    shard = the_shard(tmp_path)
    old, young = shard.with_name(f".{shard.name}.123"), shard.with_name(".about.json.123")
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, 0))
    filled(tmp_path, [2])
    assert not old.exists()
    assert young.exists()
    assert opened(tmp_path).known(FAMILY, keys_of([1, 2])).all()


def test_files_that_another_process_deletes_stay_readable_and_are_missed_by_the_next_run(tmp_path: Path) -> None:
    filled(tmp_path, range(9))
    found = opened(tmp_path, memory=0).get(FAMILY, keys_of(range(9)))
    clear(tmp_path)
    assert torch.equal(found[:], values_of(range(9)))
    assert not opened(tmp_path).known(FAMILY, keys_of(range(9))).any()


# ------------------------------------------------------------------------------------------------ damage


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def data_of(content: bytes, tensor: str) -> int:
    """Where the values of a tensor begin in a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    return 8 + length + int(json.loads(content[8 : 8 + length])[tensor]["data_offsets"][0])


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda content: flipped(content, data_of(content, "values.0") + 20 * 3), [3]),
        (lambda content: flipped(content, data_of(content, "checksums") + 8 * 4), [4]),
        (lambda content: flipped(content, data_of(content, "keys") + 32 * 2), [2]),
        (lambda content: content[:-30], range(6)),
        (lambda content: content[:100], range(6)),
        (lambda content: b"", range(6)),
        (lambda content: flipped(content, 30), range(6)),
        (lambda content: content.replace(b'"F32"', b'"I32"'), range(6)),
        (lambda content: content.replace(FAMILY.name.encode(), b"0" * 32), range(6)),
    ],
    ids=["value", "checksum", "key", "end", "header's end", "all", "header", "type", "family"],
)
def test_what_is_damaged_is_told_once_deleted_and_computed_again(
    damage: Callable[[bytes], bytes], lost: Sequence[int], tmp_path: Path
) -> None:
    filled(tmp_path, range(6))
    shard = the_shard(tmp_path)
    shard.write_bytes(damage(shard.read_bytes()))
    told: list[str] = []
    with opened(tmp_path, told.append) as cache:
        known = cache.known(FAMILY, keys_of(range(6)))
        # A key that is damaged is another picture's; whoever asks for that gets a miss as well.
        assert np.flatnonzero(~known).tolist() == list(lost)
        there = np.flatnonzero(known).tolist()
        if there:
            assert torch.equal(cache.get(FAMILY, keys_of(there))[:], values_of(there))
        cache.put(FAMILY, keys_of(range(6)), values_of(range(6)))
    assert len(told) == 1
    assert str(shard) in told[0]
    assert "\n" not in told[0]
    assert not shard.exists()
    assert torch.equal(opened(tmp_path).get(FAMILY, keys_of(range(6)))[:], values_of(range(6)))


def test_a_file_that_cannot_be_read_just_now_is_told_once_and_stays(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    shard = the_shard(tmp_path)
    shard.rename(tmp_path / "aside")
    shard.mkdir()
    told: list[str] = []
    cache = opened(tmp_path, told.append)
    for _ in range(2):
        assert not cache.known(FAMILY, keys_of([1])).any()
    assert len(told) == 1
    assert str(shard) in told[0]
    assert shard.exists()


def test_a_damaged_row_is_found_in_another_file_that_has_it(tmp_path: Path) -> None:
    filled(tmp_path, [1, 2])
    shard = the_shard(tmp_path)
    aside = tmp_path / "aside"
    shard.rename(aside)
    filled(tmp_path, [1, 2])
    content = aside.read_bytes()
    shard.write_bytes(flipped(content, data_of(content, "values.0")))
    os.utime(shard, (0, 0))
    told: list[str] = []
    cache = opened(tmp_path, told.append)
    assert torch.equal(cache.get(FAMILY, keys_of([1, 2]))[:], values_of([1, 2]))
    assert len(told) == 1


# ------------------------------------------------------------------------------------------------ room


def aged(folder: Path, family: Family, days: float) -> None:
    for shard in shards_of(folder, family.name):
        os.utime(shard, (time.time() - days * 86_400,) * 2)


def of(number: int) -> Family:
    return replace(FAMILY, backbone=f"net{number}")


def test_what_was_not_used_for_longest_makes_room_and_what_is_in_use_stays(tmp_path: Path) -> None:
    for number in range(4):  # about 40 kB each
        filled(tmp_path, range(10), of(number), width=1000)
        aged(tmp_path, of(number), days=10 - number)
    cache = opened(tmp_path, disk=200_000)
    cache.get(of(0), keys_of(range(10)))  # the oldest, but in use
    aged(tmp_path, of(0), days=20)
    cache.put(FAMILY, keys_of(range(20)), values_of(range(20), 1000))
    cache.close()
    assert {kept.about["backbone"] for kept in families(tmp_path)} == {"net", "net0", "net3"}
    assert size_of(tmp_path) <= 200_000
    assert len(list(tmp_path.iterdir())) == 3


def test_use_is_noted(tmp_path: Path) -> None:
    for number in range(2):
        filled(tmp_path, [1], of(number))
        aged(tmp_path, of(number), days=10 - number)
    with opened(tmp_path) as cache:
        cache.get(of(0), keys_of([1]))
    assert [kept.about["backbone"] for kept in families(tmp_path)] == ["net0", "net1"]


def still_there(cache: ActivationCache, told: list[str], why: str) -> None:
    """Puts twice; what cannot be written is told once, and is kept for this run."""
    for numbers in (range(10), range(10, 20)):
        cache.put(FAMILY, keys_of(numbers), values_of(numbers, 1000))
        cache.flush()
    assert torch.equal(cache.get(FAMILY, keys_of(range(20)))[:], values_of(range(20), 1000))
    assert len(told) == 1
    assert told[0].startswith("from here on activations are kept in memory, for this run only")
    assert why in told[0]
    assert "\n" not in told[0]


def test_a_run_that_fills_the_cache_by_itself_goes_on_in_memory(tmp_path: Path) -> None:
    told: list[str] = []
    still_there(opened(tmp_path, told.append, disk=60_000), told, "0.0 GB hold no more")
    assert 0 < size_of(tmp_path) <= 60_000


def test_it_is_told_beforehand_whether_there_is_room(tmp_path: Path) -> None:
    filled(tmp_path, range(10), width=1000)
    cache = opened(tmp_path, disk=100_000, memory=1000)
    assert cache.has_room(90_000)  # what lies there makes room
    cache.get(FAMILY, keys_of(range(10)))
    assert cache.has_room(50_000)
    assert not cache.has_room(70_000)
    written_nowhere = opened(tmp_path, disk=0, memory=1000)
    assert written_nowhere.has_room(1000)
    assert not written_nowhere.has_room(1001)


def test_a_folder_that_cannot_be_made_turns_the_cache_off(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told: list[str] = []
    cache = ActivationCache(tmp_path / "file" / "cache", announce=told.append)
    still_there(cache, told, "cannot be made")


def test_a_full_disk_turns_the_cache_off(tmp_path: Path) -> None:
    told: list[str] = []
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        still_there(opened(tmp_path, told.append), told, "cannot be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not shards_of(tmp_path, FAMILY.name)


def test_where_the_cache_lies_and_how_large_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWTUNE_CACHE", str(tmp_path / "told"))
    assert default_folder() == tmp_path / "told" / "activations"
    monkeypatch.delenv("FEWTUNE_CACHE")
    assert default_folder().parts[-2:] == ("fewtune", "activations")
    assert 0 < default_bound(tmp_path / "absent") <= 20 << 30


# ------------------------------------------------------------------------------------------------ pictures


class Recipe:
    """`cached` over the pictures of a folder, with the indices of those that were computed."""

    def __init__(self, folder: Path, store: Path, backbone: Backbone, *, random: bool = False):
        wanted = backbone.preprocessing
        view = training_view(wanted, Config()) if random else evaluation_view(wanted)
        self.pictures = Pictures(list_unlabelled([folder]), view, wanted.shortest_side, 1_000_000, seed=3)
        self.fabric = open_engine("cpu", "float32")
        self.family = family_of(self.fabric, backbone, self.pictures, wanted, backbone=backbone.name)
        self.run = partial(run_frozen, self.fabric, backbone, wanted, workers=1)
        self.store = store

    def __call__(self) -> tuple[Outputs, list[int]]:
        computed: list[int] = []
        shown: list[int] = []

        def compute(pictures: Pictures) -> Outputs:
            outputs = self.run(pictures, advance=lambda done, note: shown.append(done))
            computed.extend(outputs.contents)
            return outputs

        with opened(self.store) as cache:
            found = cached(cache, self.family, self.pictures, compute, advance=lambda done, note: shown.append(done))
        assert sum(shown) == len(self.pictures)
        assert found.computed == len(computed)
        return found.outputs(), computed


def assert_same(found: Outputs, expected: Outputs, *, batches: str = "the same") -> None:
    """Bit for bit; up to the last bits where some pictures were computed in batches of other sizes."""
    if batches == "the same":
        assert torch.equal(found.values, expected.values)
    torch.testing.assert_close(found.values, expected.values)
    assert torch.equal(found.index, expected.index)
    assert found.contents == expected.contents


def test_a_second_run_decodes_nothing_but_what_cannot_be_read(backbone: Backbone, tmp_path: Path) -> None:
    hostile(tmp_path / "pictures")
    recipe = Recipe(tmp_path / "pictures", tmp_path / "cache", backbone)
    expected = recipe.run(recipe.pictures)
    unreadable = [index for index, content in expected.contents.items() if content.reason is not None]
    assert unreadable
    cold, computed = recipe()
    assert computed == list(range(len(recipe.pictures)))
    assert_same(cold, expected)
    warm, computed = recipe()
    assert computed == unreadable
    assert_same(warm, expected)


@pytest.mark.parametrize("random", [False, True], ids=["evaluation", "random"])
def test_only_what_is_new_or_changed_is_computed(
    random: bool, backbone: Backbone, make_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = make_folder(classes={"a": 5, "b": 5})
    recipe = Recipe(folder, tmp_path / "cache", backbone, random=random)
    assert_same(recipe()[0], recipe.run(recipe.pictures))
    assert recipe()[1] == []
    (folder / "b" / "001.png").write_bytes((folder / "a" / "000.png").read_bytes())
    (folder / "a" / "002.png").unlink()
    recipe = Recipe(folder, tmp_path / "cache", backbone, random=random)
    found, computed = recipe()
    # A random view depends on a picture's place, which the picture that is gone has changed for all after it.
    assert computed == ([2, 3, 4, 5, 6, 7, 8] if random else [])
    assert_same(found, recipe.run(recipe.pictures), batches="others")


def test_a_damaged_row_is_computed_again(backbone: Backbone, make_folder: MakeFolder, tmp_path: Path) -> None:
    recipe = Recipe(make_folder(classes={"a": 6}), tmp_path / "cache", backbone)
    first, _ = recipe()
    shard = the_shard(tmp_path / "cache", recipe.family)
    content = shard.read_bytes()
    shard.write_bytes(flipped(content, data_of(content, "values.0")))
    told: list[str] = []
    with opened(tmp_path / "cache", told.append) as cache:
        found = cached(cache, recipe.family, recipe.pictures, recipe.run)
    assert_same(found.outputs(), first, batches="others")
    assert found.computed == len(told) == 1


def test_a_folder_without_a_readable_picture_gives_what_a_pass_gives(backbone: Backbone, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "empty.png").touch()
    recipe = Recipe(tmp_path / "pictures", tmp_path / "cache", backbone)
    for _ in range(2):
        assert_same(recipe()[0], recipe.run(recipe.pictures))


def test_pictures_in_memory_and_those_of_another_view_are_refused(
    backbone: Backbone, make_folder: MakeFolder, tmp_path: Path
) -> None:
    recipe = Recipe(make_folder(classes={"a": 2}), tmp_path / "cache", backbone)
    cache = opened(tmp_path / "cache")
    for pictures, why in (
        (replace(recipe.pictures, sources=[np.zeros((9, 9), np.uint8)]), "in files"),
        (replace(recipe.pictures, max_pixels=10), "otherwise"),
    ):
        with pytest.raises(ValueError, match=why):
            cached(cache, recipe.family, pictures, recipe.run)


# ------------------------------------------------------------------------------------------------ the command


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    monkeypatch.setenv("FEWTUNE_CACHE", str(tmp_path))
    return caller(lambda: run_command(cache_command, "finetune cache"), "finetune cache", monkeypatch, capfd)


def test_the_command_lists_what_there_is(command: Callable[..., Answer], tmp_path: Path) -> None:
    folder = tmp_path / "activations"
    assert "0 bytes of at most" in command("list").out
    assert not folder.exists()
    long = replace(FAMILY, backbone="a_network_with_a_very_long_name_" * 4, seed=7)
    filled(folder, range(3), long)
    filled(folder, range(20), of(1))
    aged(folder, long, days=3.1)
    listed = command("list").out
    for part in (long.backbone, "random, seed 7", "3 days ago", "net1", "evaluation", "within the hour", str(folder)):
        assert part in listed
    answer = json.loads(command("list", "--json").out)
    assert answer["folder"] == str(folder)
    assert answer["bytes"] == size_of(folder) == sum(row["bytes"] for row in answer["families"])
    assert [(row["about"]["backbone"], row["pictures"]) for row in answer["families"]] == [
        ("net1", 20),
        (long.backbone, 3),
    ]


def test_the_command_deletes_what_it_is_told_and_nothing_that_is_not_its_own(
    command: Callable[..., Answer], tmp_path: Path
) -> None:
    folder = tmp_path / "activations"
    for number in range(3):
        filled(folder, range(3), of(number))
        aged(folder, of(number), days=number * 10)
    foreign = [folder / "mine.txt", folder / of(2).name / "notes.txt", folder / ("f" * 32) / "about.json"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    assert "1 file" in command("clear", "--older-than", 15).out
    assert {kept.about["backbone"] for kept in families(folder)} == {"net0", "net1"}
    assert json.loads(command("clear", "--backbone", "net1", "--json").out)["families"] == 1
    assert {kept.about["backbone"] for kept in families(folder)} == {"net0"}
    command("clear")
    assert families(folder) == []
    assert all(path.exists() for path in foreign)
    assert command("clear", "--older-than", "x").code == 2
