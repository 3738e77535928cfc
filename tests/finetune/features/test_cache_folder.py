"""What the folder of the cache holds, and what is deleted of it; rows as they are read back."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from made_activations import KEY, aged, data_of, filled, keys_of, of, opened, the_shard, values_of
from told import Told

from finetune.features import cache as activation_cache
from finetune.features.cache_files import Freed, clear_cache, default_bound, entries, shards_of, size_of

DAY = 86_400.0
MAPS = torch.arange(6 * 4 * 2 * 3, dtype=torch.float32).reshape(6, 4, 2, 3)


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["mapped", "in memory"])
def test_single_entries_of_rows_are_read(memory: int, tmp_path: Path) -> None:
    with opened(tmp_path) as cache:
        for number in range(6):
            cache.put(KEY, keys_of([number]), MAPS[number : number + 1])
            if number % 2:
                cache.flush()  # three files
    found = opened(tmp_path, memory=memory).get(KEY, keys_of([5, 0, 3, 2, 0]))
    expected = MAPS[[5, 0, 3, 2, 0]]
    for rows, picked in (([4, 0, 1, 1], [3, 0, 1, 2]), ([], [])):
        values = found.entries(rows, picked)
        assert torch.equal(values, expected[rows, picked])
        assert torch.equal(found.entries(torch.tensor(rows, dtype=torch.int64), torch.tensor(picked)), values)
    assert torch.equal(found.loaded()[[1, 4]], expected[[1, 4]])
    assert torch.equal(found[1:3], expected[1:3])


def test_no_rows_are_no_activations(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert (len(cache.get(KEY, [])), cache.holds(KEY), cache.row_bytes(KEY)) == (0, False, None)
    assert cache.get(KEY, [])[:].shape == (0, 1, 0)
    cache.put(KEY, [], torch.empty(0, 5))
    assert not cache.holds(KEY)
    cache.put(KEY, keys_of([1]), values_of([1]))
    assert (cache.holds(KEY), cache.row_bytes(KEY), cache.row_bytes(of(1))) == (True, 20, None)
    cache.close()
    assert (opened(tmp_path).holds(KEY), opened(tmp_path).row_bytes(KEY)) == (True, 20)


@pytest.mark.parametrize(("memory", "loaded"), [(4 * 20, True), (4 * 20 - 1, False)])
def test_rows_are_loaded_up_to_the_memory_that_is_allowed(memory: int, loaded: bool, tmp_path: Path) -> None:
    filled(tmp_path, range(4))
    found = opened(tmp_path, memory=memory).get(KEY, keys_of(range(4)))
    shard = the_shard(tmp_path)
    at = data_of(shard.read_bytes(), "values")
    with shard.open("r+b") as file:  # what is mapped changes with its file
        file.seek(at)
        file.write(bytes([255] * 20))
    assert torch.equal(found[:], values_of(range(4))) == loaded


def test_files_are_written_as_soon_as_they_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_cache, "SHARD_BYTES", 100)  # five rows
    cache = opened(tmp_path)
    written = []
    for number in range(11):
        cache.put(KEY, keys_of([number]), values_of([number]))
        written.append(len(shards_of(tmp_path, KEY.name)))
    assert written == [0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2]
    cache.put(KEY, keys_of(range(11, 24)), values_of(range(11, 24)))
    assert [entry.pictures for entry in entries(tmp_path)] == [21]
    assert torch.equal(cache.get(KEY, keys_of(range(24)))[:], values_of(range(24)))
    cache.put(of(1), keys_of([1, 2]), values_of([1, 2], width=50))  # a row larger than a file
    assert len(shards_of(tmp_path, of(1).name)) == 2


def test_entries_are_listed_with_what_they_hold(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert (entries(folder), size_of(folder)) == ([], 0)
    for number in range(2):
        filled(folder, range(3 + number), of(number))
    filled(folder, range(10, 12), of(0))
    aged(folder, of(0), days=2)
    os.utime(shards_of(folder, of(0).name)[0], (0, 0))
    other = folder / of(0).name / "notes.txt"
    other.write_text("not the cache's")
    (folder / ("f" * 32)).touch()
    (folder / "elsewhere").mkdir()
    young, old = entries(folder)
    assert (young.name, young.pictures, young.about["backbone"]) == (of(1).name, 4, "net1")
    assert (old.name, old.pictures, old.about["backbone"]) == (of(0).name, 5, "net0")
    assert old.last_used == pytest.approx(time.time() - 2 * DAY, abs=60)
    assert young.last_used == pytest.approx(time.time(), abs=60)
    own = [path for path in (folder / of(0).name).iterdir() if path != other]
    assert old.bytes == sum(path.stat().st_size for path in own)
    assert size_of(folder) == old.bytes + young.bytes
    shutil.rmtree(folder / of(1).name)
    (folder / of(1).name).mkdir()
    assert [entry.name for entry in entries(folder)] == [of(0).name]


def test_activations_are_cleared_by_age_and_backbone(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    assert clear_cache(folder) == Freed(0, 0, 0)
    for number in range(3):
        filled(folder, range(4), of(number))
        aged(folder, of(number), days=number)
    filled(folder, range(4, 8), of(2))
    sizes = {path.stat().st_size for number in range(3) for path in shards_of(folder, of(number).name)}
    (size,) = sizes
    (folder / "mine.txt").touch()
    assert clear_cache(folder, backbone="net") == Freed(0, 0, 0)
    assert clear_cache(folder, backbone="net1", older_than=2 * DAY) == Freed(0, 0, 0)
    assert clear_cache(folder, older_than=1.5 * DAY) == Freed(0, 1, size), "the newer file stays, and so its entry"
    assert clear_cache(folder, backbone="net1", older_than=0.5 * DAY) == Freed(1, 1, size)
    assert sorted(entry.about["backbone"] for entry in entries(folder)) == ["net0", "net2"]
    (folder / of(0).name / "notes.txt").touch()
    assert clear_cache(folder) == Freed(1, 2, 2 * size), "an entry with somebody's file stays"
    assert sorted(path.name for path in folder.iterdir()) == sorted([of(0).name, "mine.txt"])
    assert {path.name for path in (folder / of(0).name).iterdir()} == {"about.json", "notes.txt"}


def test_what_the_cache_did_not_make_is_not_deleted(tmp_path: Path) -> None:
    filled(tmp_path, [1])
    about = the_shard(tmp_path).with_name("about.json")
    about.write_text('{"made_by": "somebody"}')
    assert clear_cache(tmp_path).files == 1
    assert about.exists()
    filled(tmp_path, [1])
    assert entries(tmp_path)[0].about["backbone"] == "net", "its description is written again"


def test_the_bound_of_the_cache_is_a_quarter_of_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, range(10), width=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 10_000_000))
    assert default_bound(tmp_path) == (10_000_000 + size_of(tmp_path)) // 4
    assert default_bound(tmp_path / "absent" / "too") == 2_500_000
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 1 << 60))
    assert default_bound(tmp_path) == 20 << 30


def test_room_is_made_down_to_the_bound_and_no_further(tmp_path: Path) -> None:
    for number in range(4):
        filled(tmp_path, range(10), of(number), width=1000)
        aged(tmp_path, of(number), days=10 - number)
    full = size_of(tmp_path)
    with opened(tmp_path, disk=full) as cache:  # the new file and a header of up to 4 kB: two of the old ones go
        cache.put(KEY, keys_of(range(10)), values_of(range(10), 1000))
    assert {entry.about["backbone"] for entry in entries(tmp_path)} == {"net", "net2", "net3"}
    told = Told()
    with opened(tmp_path / "small", told, disk=40_000 + 10 * 40 + 4096) as cache:
        cache.put(KEY, keys_of(range(10)), values_of(range(10), 1000))
    assert entries(tmp_path / "small")[0].pictures == 10
    with opened(tmp_path / "smaller", told, disk=40_000 + 10 * 40 + 4095) as cache:
        cache.put(KEY, keys_of(range(10)), values_of(range(10), 1000))
    assert len(told.lines) == 1
    assert not entries(tmp_path / "smaller")
    assert np.all(opened(tmp_path / "small").known(KEY, keys_of(range(10))))
