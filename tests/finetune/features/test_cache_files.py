from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import FEW, header_of, other_bytes, other_json, replaced, with_header
from hypothesis import given
from hypothesis import strategies as st
from made_activations import KEY, aged, data_of, filled, flipped, keys_of, of, opened, the_shard, values_of
from safetensors.torch import save
from told import Told
from torch import Tensor

from finetune.features.cache import ActivationCache
from finetune.features.cache_files import Rows, _checksums, clear_cache, default_bound, entries, shards_of, size_of
from finetune.files.folders import default_folder

# ------------------------------------------------------------------------------------------------ several processes

WRITER = """
import hashlib, json, sys
from pathlib import Path
import torch
from finetune.features.cache import ActivationCache
from finetune.features.cache_keys import FeatureKey
from finetune.progress import Display
folder, key, first, last = sys.argv[1], FeatureKey(**json.loads(sys.argv[2])), int(sys.argv[3]), int(sys.argv[4])
with ActivationCache(Path(folder), disk=1 << 30, display=Display()) as cache:
    for number in range(first, last):
        row_key = hashlib.sha256(str(number).encode()).hexdigest()
        cache.put(key, [row_key], number * 7 + torch.arange(2000)[None] / 3)
        cache.flush()
"""


def writer(folder: Path, first: int, last: int) -> subprocess.Popen[bytes]:
    """A process that writes the values of these numbers under KEY, one file each."""
    command = [sys.executable, "-c", WRITER, str(folder), json.dumps(asdict(KEY)), str(first), str(last)]
    return subprocess.Popen(command)


@pytest.mark.slow
def test_two_processes_can_write_at_the_same_time_and_one_can_be_killed(tmp_path: Path) -> None:
    other, deadline = writer(tmp_path, 0, 100_000), time.monotonic() + 60

    def wait_for(files: int) -> None:
        while len(shards_of(tmp_path, KEY.name)) < files and time.monotonic() < deadline:
            time.sleep(0.005)

    wait_for(1)
    with opened(tmp_path) as cache:
        for number in (*range(30), *range(1990, 2000)):
            cache.put(KEY, keys_of([number]), values_of([number], 2000))
            cache.flush()
    wait_for(80)
    other.send_signal(signal.SIGKILL)
    assert other.wait() == -signal.SIGKILL
    cache = opened(tmp_path)
    known = np.flatnonzero(cache.known(KEY, keys_of(range(2000)))).tolist()
    assert {*range(30), *range(1990, 2000)} <= set(known)
    assert torch.equal(cache.get(KEY, keys_of(known))[:], values_of(known, 2000))
    cache.put(KEY, keys_of([99_999]), values_of([99_999], 2000))  # and the lock went with it
    cache.close()
    assert opened(tmp_path).known(KEY, keys_of([99_999])).all()


def test_old_temporary_files_of_a_killed_process_are_deleted(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    shard = the_shard(tmp_path)
    old, young = shard.with_name(f".{shard.name}.123"), shard.with_name(".about.json.123")
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(old, (0, 0))
    filled(tmp_path, [2])
    assert not old.exists()
    assert young.exists()
    assert opened(tmp_path).known(KEY, keys_of([1, 2])).all()


def test_files_deleted_by_another_process_stay_readable_until_the_next_run(tmp_path: Path) -> None:
    filled(tmp_path, range(9))
    found = opened(tmp_path, memory=0).get(KEY, keys_of(range(9)))
    clear_cache(tmp_path)
    assert torch.equal(found[:], values_of(range(9)))
    assert not opened(tmp_path).known(KEY, keys_of(range(9))).any()


# ------------------------------------------------------------------------------------------------ damage


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda content: flipped(content, data_of(content, "values") + 20 * 3), [3]),
        (lambda content: flipped(content, data_of(content, "checksums") + 8 * 4), [4]),
        (lambda content: flipped(content, data_of(content, "keys") + 32 * 2), [2]),
        (lambda content: content[:-30], range(6)),
        (lambda content: content[:100], range(6)),
        (lambda content: b"", range(6)),
        (lambda content: flipped(content, 30), range(6)),
        (lambda content: content.replace(b'"F32"', b'"I32"'), range(6)),
        (lambda content: content.replace(KEY.name.encode(), b"0" * 32), range(6)),
    ],
    ids=["value", "checksum", "key", "end", "header's end", "all", "header", "type", "key name"],
)
def test_a_damaged_file_is_reported_once_deleted_and_computed_again(
    damage: Callable[[bytes], bytes], lost: Sequence[int], tmp_path: Path
) -> None:
    filled(tmp_path, range(6))
    shard = the_shard(tmp_path)
    shard.write_bytes(damage(shard.read_bytes()))
    told = Told()
    with opened(tmp_path, told) as cache:
        known = cache.known(KEY, keys_of(range(6)))
        # A key that is damaged is another picture's; whoever asks for that gets a miss as well.
        assert np.flatnonzero(~known).tolist() == list(lost)
        there = np.flatnonzero(known).tolist()
        if there:
            assert torch.equal(cache.get(KEY, keys_of(there))[:], values_of(there))
        cache.put(KEY, keys_of(range(6)), values_of(range(6)))
    assert len(told.lines) == 1
    assert str(shard) in told.lines[0]
    assert "\n" not in told.lines[0]
    assert not shard.exists()
    assert torch.equal(opened(tmp_path).get(KEY, keys_of(range(6)))[:], values_of(range(6)))


def forged(content: bytes, values: Tensor) -> bytes:
    """A file of one row with these values, whose checksum is right."""
    keys = np.frombuffer(bytes.fromhex(keys_of([1])[0]), np.uint8).reshape(1, -1)
    tensors = {"keys": torch.from_numpy(keys.copy()), "values": values}
    checksums = torch.from_numpy(_checksums(Rows(keys, values), KEY.name).copy())
    return save(tensors | {"checksums": checksums}, {"key": KEY.name})


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: forged(content, values_of([1]).int()),
        lambda content: forged(content, values_of([1]).half()),
        lambda content: forged(content, torch.zeros(1, 0)),
        lambda content: forged(content, torch.zeros(1)),
        lambda content: save({"keys": torch.tensor(1), "values": torch.tensor(1), "checksums": torch.tensor(1)}),
        lambda content: with_header(content, {"__metadata__": {"key": {}}}),
        lambda content: with_header(content, []),
        lambda content: len(content).to_bytes(8, "little") + b"[" * len(content),
        lambda content: (2 << 30).to_bytes(8, "little") + content[8:],
    ],
)
def test_a_file_of_other_rows_is_a_miss(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    filled(tmp_path, [1])
    shard = the_shard(tmp_path)
    replaced(shard, damage(shard.read_bytes()))
    (row,) = entries(tmp_path)
    assert row.pictures in (0, 1)
    told = Told()
    assert not opened(tmp_path, told).known(KEY, keys_of([1])).any()
    assert len(told.lines) == 1


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_a_file_is_a_miss_or_the_same_values(data: st.DataObject, tmp_path: Path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "cache"
    if not whole.exists():
        filled(whole, range(3))
    content = the_shard(whole).read_bytes()
    header = header_of(content)
    made = other_json(header).map(lambda value: with_header(content, value))
    (folder / KEY.name).mkdir(parents=True, exist_ok=True)
    replaced(folder / KEY.name / the_shard(whole).name, data.draw(made | other_bytes(content)))
    entries(folder)
    with opened(folder, Told()) as cache:
        known = np.flatnonzero(cache.known(KEY, keys_of(range(3)))).tolist()
        assert not known or torch.equal(cache.get(KEY, keys_of(known))[:], values_of(known))


@pytest.mark.parametrize(
    "about", ["[" * 100_000, '{"made_by": 1}', "[]", '{"made_by": "fewtune activations", "seed": {}}']
)
def test_a_damaged_description_hides_no_rows(about: str, tmp_path: Path) -> None:
    filled(tmp_path, [1])
    (the_shard(tmp_path).parent / "about.json").write_text(about)
    assert entries(tmp_path)[0].pictures == 1
    assert opened(tmp_path).known(KEY, keys_of([1])).all()


def test_a_file_that_cannot_be_read_now_is_reported_once_and_stays(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    shard = the_shard(tmp_path)
    shard.rename(tmp_path / "aside")
    shard.mkdir()
    told = Told()
    cache = opened(tmp_path, told)
    for _ in range(2):
        assert not cache.known(KEY, keys_of([1])).any()
    assert len(told.lines) == 1
    assert str(shard) in told.lines[0]
    assert shard.exists()


def test_a_damaged_row_is_read_from_another_file(tmp_path: Path) -> None:
    filled(tmp_path, [1, 2])
    shard = the_shard(tmp_path)
    aside = tmp_path / "aside"
    shard.rename(aside)
    filled(tmp_path, [1, 2])
    content = aside.read_bytes()
    shard.write_bytes(flipped(content, data_of(content, "values")))
    os.utime(shard, (0, 0))
    told = Told()
    cache = opened(tmp_path, told)
    assert torch.equal(cache.get(KEY, keys_of([1, 2]))[:], values_of([1, 2]))
    assert len(told.lines) == 1


# ------------------------------------------------------------------------------------------------ room


def test_the_least_recently_used_files_make_room_and_those_in_use_stay(tmp_path: Path) -> None:
    for number in range(4):  # about 40 kB each
        filled(tmp_path, range(10), of(number), width=1000)
        aged(tmp_path, of(number), days=10 - number)
    cache = opened(tmp_path, disk=200_000)
    cache.get(of(0), keys_of(range(10)))  # the oldest, but in use
    aged(tmp_path, of(0), days=20)
    cache.put(KEY, keys_of(range(20)), values_of(range(20), 1000))
    cache.close()
    assert {kept.about["backbone"] for kept in entries(tmp_path)} == {"net", "net0", "net3"}
    assert size_of(tmp_path) <= 200_000
    assert len(list(tmp_path.iterdir())) == 3


def test_the_time_of_the_last_use_is_recorded(tmp_path: Path) -> None:
    for number in range(2):
        filled(tmp_path, [1], of(number))
        aged(tmp_path, of(number), days=10 - number)
    with opened(tmp_path) as cache:
        cache.get(of(0), keys_of([1]))
    assert [kept.about["backbone"] for kept in entries(tmp_path)] == ["net0", "net1"]


def still_there(cache: ActivationCache, told: Told, why: str) -> None:
    """Put rows twice: one line says that they cannot be written, and they stay in memory."""
    for numbers in (range(10), range(10, 20)):
        cache.put(KEY, keys_of(numbers), values_of(numbers, 1000))
        cache.flush()
    assert torch.equal(cache.get(KEY, keys_of(range(20)))[:], values_of(range(20), 1000))
    assert len(told.lines) == 1
    assert told.lines[0].startswith("Activations now stay in memory, for this run only: ")
    assert why in told.lines[0]
    assert "\n" not in told.lines[0]


def test_a_run_that_fills_the_cache_by_itself_goes_on_in_memory(tmp_path: Path) -> None:
    told = Told()
    still_there(opened(tmp_path, told, disk=60_000), told, "the activations in use fill the cache's 0.0 GB")
    assert 0 < size_of(tmp_path) <= 60_000


def test_has_room_says_whether_activations_fit(tmp_path: Path) -> None:
    filled(tmp_path, range(10), width=1000)
    cache = opened(tmp_path, disk=100_000, memory=1000)
    assert cache.has_room(90_000)  # what lies there makes room
    cache.get(KEY, keys_of(range(10)))
    assert cache.has_room(50_000)
    assert not cache.has_room(70_000)
    written_nowhere = opened(tmp_path, disk=0, memory=1000)
    assert written_nowhere.has_room(1000)
    assert not written_nowhere.has_room(1001)


def test_a_folder_that_cannot_be_made_turns_the_cache_off(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = Told()
    cache = ActivationCache(tmp_path / "file" / "cache", display=told)
    still_there(cache, told, "cannot be made")


def test_a_full_disk_turns_the_cache_off(tmp_path: Path) -> None:
    told = Told()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        still_there(opened(tmp_path, told), told, "cannot be written")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not shards_of(tmp_path, KEY.name)


def test_the_default_folder_and_size_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWTUNE_CACHE", str(tmp_path / "told"))
    assert default_folder() == tmp_path / "told" / "activations"
    monkeypatch.delenv("FEWTUNE_CACHE")
    assert default_folder().parts[-2:] == ("fewtune", "activations")
    assert 0 < default_bound(tmp_path / "absent") <= 20 << 30
