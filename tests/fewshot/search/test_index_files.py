from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import forked
from made_index import KINDS, WIDTH, assert_same, filled, named, unit

from fewshot.search.engines import import_faiss
from fewshot.search.index import Index
from finetune.errors import InputError


@pytest.mark.parametrize("memory_mapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_loads_unchanged(kind: str, memory_mapped: bool, tmp_path: Path) -> None:
    index = Index(WIDTH, kind=kind, fingerprint="abc", about={"folder": "photos"}, least_recall=0.9)
    index.add(named(300), unit(300), [{"label": number} for number in range(300)])
    index.remove(named(100))
    index.save(tmp_path / "new" / "index")
    loaded = Index.load(tmp_path / "new" / "index", fingerprint="abc", memory_mapped=memory_mapped)
    assert_same(index, loaded)
    for name in ("width", "kind", "structure", "fingerprint", "about", "recall", "least_recall"):
        assert getattr(index, name) == getattr(loaded, name), name
    found, expected = loaded.search(unit(50), 5), index.search(unit(50), 5)
    assert (found.keys == expected.keys).all()
    if not memory_mapped:
        loaded.add(["x"], unit(1, seed=1))
        loaded.remove(["key 200"])
        assert loaded.search(unit(1, seed=1), 1)[0][0].key == "x"


def test_an_empty_index_can_be_saved(tmp_path: Path) -> None:
    for kind in KINDS:
        Index(WIDTH, kind=kind).save(tmp_path / kind)
        loaded = Index.load(tmp_path / kind)
        loaded.add(["a"], unit(1))
        assert loaded.search(unit(1))[0][0].key == "a"


def test_any_text_can_be_a_key(tmp_path: Path) -> None:
    keys = [os.fsdecode(b"caf\xe9.png"), "\ud800\udc00", "\ud83d", "a\0b", "牛", "'; DROP TABLE entries", " ", "\n"]
    index = Index(WIDTH, about={"folder": os.fsdecode(b"run\xe9")})
    index.add(keys, unit(len(keys)), [{"path": key} for key in keys])
    index.save(tmp_path)
    assert_same(Index.load(tmp_path), index)
    assert Index.load(tmp_path).about == index.about


def test_the_files_are_readable_without_fewtune(tmp_path: Path) -> None:
    filled(5).save(tmp_path)
    about = json.loads((tmp_path / "index.json").read_text())
    assert {*about["files"], "index.json"} == {path.name for path in tmp_path.iterdir()}
    keys, vectors = (next(tmp_path.glob(pattern)) for pattern in ("*.sqlite", "*.faiss"))
    with closing(sqlite3.connect(keys)) as database:
        assert database.execute("SELECT key FROM entries WHERE place = 2").fetchone() == (b"key 1",)
    assert import_faiss().read_index(str(vectors)).ntotal == 5


RESIDENT = """
import sys
from pathlib import Path
import numpy as np
from fewshot.search.index import Index
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024
folder, kept = Path(sys.argv[1]), [Index(8).search(np.eye(8, dtype=np.float32))]
for kind, mapped in (("exact", True), ("ivf", True), ("hnsw", True), ("pq", True), ("exact", False)):
    before = resident()
    kept.append(Index.load(folder / kind, memory_mapped=mapped))
    kept[-1].search(np.eye(1, 4096, dtype=np.float32))
    print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux says how much is resident")
def test_a_memory_mapped_index_is_not_read_into_memory(tmp_path: Path) -> None:
    for kind in KINDS:
        index = Index(4096, kind=kind)
        index.add(named(1000), unit(1000, width=4096))
        index.save(tmp_path / kind)
    *mapped, whole = map(int, subprocess.check_output([sys.executable, "-c", RESIDENT, str(tmp_path)]).split())
    assert max(mapped) < 8 < 15 <= whole  # of 15.6 MiB of vectors


def test_a_memory_mapped_index_is_read_only(tmp_path: Path) -> None:
    filled(5).save(tmp_path)
    index = Index.load(tmp_path, memory_mapped=True)
    for change in (
        lambda: index.add(["x"], unit(1)),
        lambda: index.remove(["key 1"]),
        lambda: index.replace(["key 1"], unit(1)),
        lambda: index.merge(Index(WIDTH)),
        index.compact,
    ):
        with pytest.raises(InputError, match="memory-mapped and cannot be changed; load it without memory_mapped"):
            change()
    assert_same(index, filled(5))


def test_vectors_of_another_embedder_are_refused(tmp_path: Path) -> None:
    filled(5, fingerprint="abc").save(tmp_path)
    message = "embedder abc, not of def: embed again, or open it with its own embedder"
    with pytest.raises(InputError, match=message):
        Index.load(tmp_path, fingerprint="def")
    assert len(Index.load(tmp_path)) == 5


def test_other_folders_are_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds thesis\.txt and is no index; choose a new or an empty folder"):
        filled(5).save(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(InputError, match=r"index.json is not of an index"):
        filled(5).save(tmp_path)
    with pytest.raises(InputError, match="cannot be made"):
        filled(5).save(tmp_path / "thesis.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "thesis.txt"]
    with pytest.raises(InputError, match=r"nowhere is no index: it holds no index.json"):
        Index.load(tmp_path / "nowhere")


def test_a_save_deletes_files_of_crashed_saves_alone(tmp_path: Path) -> None:
    left = ["vectors-0123456789abcdef.faiss", ".keys-0123456789abcdef.sqlite.77", ".index.json.77"]
    for name in left:
        (tmp_path / name).write_text("half")
    filled(5).save(tmp_path)
    notes = tmp_path / "vectors-mine.faiss"
    notes.write_text("mine")
    (tmp_path / left[0]).write_text("half")
    filled(6).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4
    assert notes.read_text() == "mine"
    assert len(Index.load(tmp_path)) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_and_missing_files_are_named(kind: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    filled(100, kind).save(whole)
    for path in whole.iterdir():
        contents, text = path.read_bytes(), path.suffix == ".json"
        middle = len(contents) // 2
        flipped = contents[:middle] + bytes([contents[middle] ^ 255]) + contents[middle + 1 :]
        for damage in (None, b"", contents[:middle], *([] if text else [flipped])):
            hurt = tmp_path / "hurt"
            shutil.copytree(whole, hurt)
            (hurt / path.name).unlink()
            if damage is not None:
                (hurt / path.name).write_bytes(damage)
            with pytest.raises(InputError, match=path.name):
                Index.load(hurt)
            shutil.rmtree(hurt)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "index.json has format 2, this version reads 1: upgrade fewtune"),
        ({"width": 9}, "the width or the number of vectors differs"),
        ({"width": None}, "index.json may be damaged: width: expected int"),
        ({"vectors": 4}, "the width or the number of vectors differs"),
        ({"structure": "hnsw"}, "the structure differs"),
        ({"structure": "tree"}, "index.json may be damaged: structure: invalid enum value"),
        ({"token": 3}, "does not say which files are current"),
        ({"files": {}}, "does not have its saved length"),
        ({"made_by": "another program"}, "is not of an index"),
    ],
)
def test_an_index_json_that_does_not_match_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    filled(5).save(tmp_path)
    about = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(about | change))
    with pytest.raises(InputError, match=message):
        Index.load(tmp_path)


def test_a_path_that_faiss_cannot_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FAISS opens only paths that are valid UTF-8"):
        filled(5).save(tmp_path / os.fsdecode(b"caf\xe9"))


def save_on_and_on(folder: Path, state: int, ready: Event) -> None:
    """State s: s % 50 + 1 keys that say s, each with a vector of its place."""
    index = Index(8)
    ready.set()
    while True:
        state += 1
        index.remove(index.keys)
        n = state % 50 + 1
        index.add([f"{state} {place}" for place in range(n)], np.eye(8, dtype=np.float32)[np.arange(n) % 8])
        index.save(folder)


def state_in(folder: Path) -> int:
    """The number of the complete state in the folder."""
    index = Index.load(folder)
    states = {int(key.split()[0]) for key in index.keys}
    assert len(states) == 1
    state = states.pop()
    assert index.keys == tuple(f"{state} {place}" for place in range(state % 50 + 1))
    assert np.array_equal(index.vectors(index.keys), np.eye(8, dtype=np.float32)[np.arange(len(index)) % 8])
    return state


@pytest.mark.slow
def test_a_killed_save_leaves_the_old_or_the_new_state(tmp_path: Path) -> None:
    folder, moments, state = tmp_path / "index", random.Random(0), 0
    for _ in range(2):
        ready = multiprocessing.get_context("fork").Event()
        with forked(save_on_and_on, folder, state, ready) as saver:
            assert saver.pid is not None
            assert ready.wait(60)
            deadline = time.monotonic() + 60
            while not (folder / "index.json").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            # A process that is stopped has left what it would have left if it had been killed: look at many moments.
            for _ in range(20):
                time.sleep(moments.uniform(0.005, 0.03))
                os.kill(saver.pid, signal.SIGSTOP)
                if (folder / "index.json").exists():
                    state = max(state, state_in(folder))
                os.kill(saver.pid, signal.SIGCONT)
            time.sleep(moments.uniform(0, 0.02))
            saver.kill()
            saver.join()
            assert saver.exitcode == -signal.SIGKILL, "it ended before it could be killed"
        after = state_in(folder)
        assert after >= state
        state = after
    filled(3).save(folder)
    assert len(list(folder.iterdir())) == 3


@pytest.mark.slow
def test_a_reader_does_not_fail_during_writes(tmp_path: Path) -> None:
    folder, done = tmp_path / "index", threading.Event()
    index = Index(WIDTH)
    index.add(named(200), unit(200))
    index.save(folder)

    def write() -> None:
        try:
            for number in range(40):
                index.replace(["key 0"], unit(1, seed=number))
                index.save(folder)
        finally:
            done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        opened = 0
        while not done.is_set():
            assert Index.load(folder, memory_mapped=bool(opened % 2)).keys == index.keys
            opened += 1
        writing.result()
    assert opened > 10


def test_two_writers_take_turns(tmp_path: Path) -> None:
    indexes = [filled(n) for n in (3, 4, 5)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda number: indexes[number % 3].save(tmp_path), range(30)))
    assert len(Index.load(tmp_path)) in (3, 4, 5)
    assert len(list(tmp_path.iterdir())) == 3
