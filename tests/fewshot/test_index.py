from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fewshot.index import Index, Neighbour
from fewshot.index_engines import import_faiss
from fewshot.neighbours import Vectors, disagreements, nearest
from finetune.errors import InputError

WIDTH = 8
KINDS = ("exact", "ivf", "hnsw")


def unit(n: int, seed: int = 0, width: int = WIDTH) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((n, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def named(n: int, first: int = 0) -> list[str]:
    return [f"key {number}" for number in range(first, first + n)]


def filled(n: int = 50, kind: str = "exact", **options: Any) -> Index:
    index = Index(WIDTH, kind=kind, **options)
    index.add(named(n), unit(n))
    return index


def assert_same(index: Index, other: Index) -> None:
    assert index.keys == other.keys
    assert np.array_equal(index.vectors(index.keys), other.vectors(other.keys))
    assert [index.metadata(key) for key in index.keys] == [other.metadata(key) for key in other.keys]


def assert_exact(index: Index, queries: Vectors, k: int) -> None:
    """Its answers are those of a fresh comparison with all of its vectors, ties aside."""
    found = index.search(queries, k)
    rows = {key: row for row, key in enumerate(index.keys)}
    similarity, expected = nearest(index.vectors(index.keys), queries, min(k, len(index)), "torch")
    told = np.array([[rows[key] for key in keys] for keys in found.keys])
    assert disagreements((found.similarity, told), (similarity, expected)) == 0


# ------------------------------------------------------------------------------------------------ search


@pytest.mark.parametrize("m", [1, 3, 15, 16, 200])
def test_an_exact_search_finds_what_comparing_all_finds(m: int) -> None:
    assert_exact(filled(300), unit(m, seed=1), 10)


def test_neighbours_come_by_query_with_the_most_similar_first() -> None:
    index = filled()
    found = index.search(unit(4), 3)
    assert found.similarity.shape == found.keys.shape == (4, 3)
    assert found.similarity.dtype == np.float32
    assert (np.diff(found.similarity, axis=1) <= 0).all()
    assert len(found) == 4
    assert [answers[0].key for answers in found] == named(4)
    assert found[0][0] == Neighbour("key 0", pytest.approx(1, abs=1e-6))


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_as_there_are_come_where_more_are_asked_for(kind: str) -> None:
    assert filled(3, kind).search(unit(2), 10).keys.shape == (2, 3)


@pytest.mark.parametrize("kind", ["auto", *KINDS])
def test_an_empty_index_answers_with_nothing(kind: str) -> None:
    index = Index(WIDTH, kind=kind)
    assert list(index.search(unit(2))) == [[], []]
    assert index.keys == ()
    assert index.vectors([]).shape == (0, WIDTH)
    assert list(filled(3, kind).search(unit(0))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_less_similar_than_asked_for_is_left_out(kind: str) -> None:
    index = filled(50, kind)
    found = index.search(unit(5), 10, at_least=0.5)
    assert [[answer.similarity >= 0.5 for answer in answers] for answers in found] == [
        [True] * len(answers) for answers in found
    ]
    everything = index.search(unit(5), 10)
    assert [len(answers) for answers in found] == (everything.similarity >= 0.5).sum(1).tolist()
    assert (found.similarity[found.keys == None] == -np.inf).all()  # noqa: E711  by element


def test_answers_do_not_change_with_the_index() -> None:
    index = filled()
    found = index.search(unit(1), 2)
    before = found[0]
    index.remove(named(50))
    index.add(["other"], unit(1))
    assert found[0] == before


def test_searches_may_run_side_by_side() -> None:
    index, queries = filled(500), unit(40, seed=1)
    expected = index.search(queries, 5)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: index.search(queries, 5), range(40)):
            assert (found.keys == expected.keys).all()


# ------------------------------------------------------------------------------------------------ changes


@pytest.mark.parametrize("kind", KINDS)
def test_keys_stay_in_order_of_adding_and_vectors_come_back_bit_for_bit(kind: str) -> None:
    index, vectors = Index(WIDTH, kind=kind), unit(20)
    index.add(named(20), vectors)
    index.remove(["key 3", "key 0", "key 19"])
    index.replace(["key 5"], vectors[:1])
    left = [number for number in range(20) if number not in (0, 3, 19)]
    assert index.keys == tuple(f"key {number}" for number in left)
    vectors[5] = vectors[0]
    assert np.array_equal(index.vectors(index.keys), vectors[left])
    assert len(index) == 17
    assert "key 5" in index
    assert "key 3" not in index
    assert 3 not in index


def test_metadata_is_what_json_can_hold_and_is_kept_apart() -> None:
    index, entry = Index(WIDTH), {"label": "cow", "box": [1, 2]}
    index.add(["a", "b"], unit(2), [entry, {}])
    entry["label"] = "cat"
    index.metadata("a")["box"].append(3)
    assert index.metadata("a") == {"label": "cow", "box": [1, 2]}
    assert index.metadata("b") == {}
    index.replace(["a"], unit(1, seed=1))
    assert index.metadata("a")["label"] == "cow"
    index.replace(["a"], unit(1, seed=1), [{}])
    assert index.metadata("a") == {}
    index.remove(["b"])
    index.add(["b"], unit(1))
    assert index.metadata("b") == {}


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_merges_with_another_of_the_same_embedder(kind: str) -> None:
    index, other = filled(5, kind, fingerprint="abc"), Index(WIDTH, fingerprint="abc")
    other.add(["x", "y"], unit(2, seed=1), [{"a": 1}, {}])
    index.merge(other)
    assert index.keys == (*named(5), "x", "y")
    assert index.metadata("x") == {"a": 1}
    assert index.search(unit(2, seed=1), 1).keys[:, 0].tolist() == ["x", "y"]


@pytest.mark.parametrize("kind", KINDS)
def test_compacting_changes_no_contents(kind: str) -> None:
    index = filled(200, kind)
    index.remove(named(90))
    keys, vectors = index.keys, index.vectors(index.keys)
    index.compact()
    assert index.keys == keys
    assert np.array_equal(index.vectors(keys), vectors)
    assert index.search(vectors, 1).keys[:, 0].tolist() == list(keys)


def test_removing_takes_time_by_what_is_removed() -> None:
    n, width = 100_000, 4
    index = Index(width)
    index.add(named(n), np.tile(np.eye(1, width, dtype=np.float32), (n, 1)))
    started = time.perf_counter()
    for number in range(500):
        index.remove([f"key {number}"])
    # A pass over all would take hundreds of times as long.
    assert (time.perf_counter() - started) / 500 < 1e-3
    assert len(index) == n - 500


# ------------------------------------------------------------------------------------------------ refusals


TWICE = np.repeat(unit(1), 2, axis=0)
NAN = np.full((1, WIDTH), np.nan, np.float32)
WRONG = [
    (["a"], NAN, None, "vector 0, of key 'a', holds what is not a finite number"),
    (["a"], np.full((1, WIDTH), np.inf, np.float32), None, "not a finite number"),
    (["a"], np.full((1, WIDTH), 1e300), None, "not a finite number"),
    (["a", "b"], TWICE * [[1], [2]], None, "vector 1, of key 'b', is of length 2; .* divide each by its length"),
    (["a"], unit(1) * np.float32(1.002), None, "is of length 1.002"),
    (["a"], np.zeros((1, WIDTH), np.float32), None, "is of length 0"),
    (["a"], unit(1, width=3), None, r"shape \(n, 8\) are wanted, not float32 of shape \(1, 3\)"),
    (["a"], unit(1)[0], None, r"not float32 of shape \(8,\)"),
    (["a"], [["x"] * WIDTH], None, "numbers of shape"),
    (["a", "b"], unit(1), None, "1 vectors for 2 keys"),
    (["a", "a"], unit(2), None, "key 'a' is given twice"),
    (["a", "key 1"], unit(2), None, "key 'key 1' is in the index already; use replace"),
    (["a", ""], unit(2), None, "key 1 is ''; a key is a str, and not empty"),
    ([3], unit(1), None, "key 0 is 3"),
    ("a", unit(1), None, "a list of keys is wanted, not the one key 'a'"),
    (["a"], unit(1), [], "0 entries of metadata for 1 keys"),
    (["a"], unit(1), [{"x": object()}], "metadata of key 'a' is not what JSON can hold"),
    (["a"], unit(1), [{"x": float("nan")}], "metadata of key 'a' is not what JSON can hold"),
    (["a"], unit(1), ["x"], "metadata of key 'a': a mapping is wanted, not str"),
]


@pytest.mark.parametrize(("keys", "vectors", "metadata", "message"), WRONG)
def test_what_cannot_be_added_is_refused_and_changes_nothing(
    keys: Any, vectors: Any, metadata: Any, message: str
) -> None:
    index = filled(5)
    with pytest.raises(InputError, match=message):
        index.add(keys, vectors, metadata)
    assert_same(index, filled(5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_with_an_unknown_key_changes_nothing(kind: str) -> None:
    index = filled(5, kind)
    for change in (
        lambda: index.remove(["key 1", "x"]),
        lambda: index.replace(["key 1", "x"], unit(2, seed=1)),
        lambda: index.vectors(["x"]),
        lambda: index.metadata("x"),
    ):
        with pytest.raises(InputError, match="key 'x' is not in the index"):
            change()
    with pytest.raises(InputError, match="key 'key 1' is given twice"):
        index.remove(["key 1", "key 1"])
    with pytest.raises(InputError, match="not a finite number"):
        index.replace(["key 1"], NAN)
    assert_same(index, filled(5, kind))


def test_indexes_that_do_not_fit_are_not_merged() -> None:
    index = filled(5, fingerprint="abc")
    for other, message in (
        (Index(3, fingerprint="abc"), "vectors of 3 numbers do not merge with vectors of 8"),
        (Index(WIDTH, fingerprint="def"), "vectors of embedder def do not compare with those of abc: embed again"),
        (filled(1, fingerprint="abc"), "key 'key 0' is in both indexes"),
    ):
        with pytest.raises(InputError, match=message):
            index.merge(other)
    assert_same(index, filled(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "0 neighbours; at least 1"),
        ({"at_least": float("nan")}, "at_least is a similarity, not nan"),
        ({"vectors": NAN}, "vector 0 holds what is not a finite number"),
        ({"vectors": unit(2, width=3)}, r"not float32 of shape \(2, 3\)"),
        ({"vectors": 2 * unit(2)}, "vector 0 is of length 2"),
    ],
)
def test_what_cannot_be_searched_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        filled(5).search(**{"vectors": unit(2)} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "vectors of 0 numbers"),
        ({"kind": "flat"}, "kind must be one of auto, exact, ivf, hnsw, not 'flat'"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, not 'tpu'"),
        ({"least_recall": 95}, "least_recall is a share"),
    ],
)
def test_an_index_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Index(**{"width": WIDTH} | options)


def test_a_gpu_answers_as_the_cpu_does_or_is_said_to_be_missing() -> None:
    faiss = import_faiss()
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        with pytest.raises(InputError, match="device cuda: FAISS sees no CUDA device here"):
            Index(WIDTH, device="cuda")
        return
    index = filled(3000, device="cuda")
    for change in (lambda: None, lambda: index.remove(named(7)), lambda: index.replace(["key 9"], unit(1))):
        change()
        assert_exact(index, unit(50, seed=1), 10)
        assert_exact(index, unit(2, seed=1), 2500)  # more than a GPU tells


# ------------------------------------------------------------------------------------------------ approximate kinds


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_reaches_its_recall_and_says_it(kind: str) -> None:
    index = Index(32, kind=kind, least_recall=0.97)
    vectors, queries = unit(4000, width=32), unit(300, seed=1, width=32)
    index.add(named(4000), vectors)
    found = index.search(queries, 10)
    _, rows = nearest(vectors, queries, 10)
    hits = [len({f"key {row}" for row in true} & set(keys)) for true, keys in zip(rows, found.keys, strict=True)]
    assert index.structure == kind
    assert 0.97 <= index.recall <= 1
    assert np.mean(hits) / 10 > index.recall - 0.03
    assert f"{kind}, recall {index.recall:.3f}" in repr(index)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_passes_over_what_was_removed_and_still_finds_k(kind: str) -> None:
    index, vectors = Index(WIDTH, kind=kind), unit(1000)
    index.add(named(1000), vectors)
    index.remove(named(498, first=2))
    found = index.search(vectors[:300], 10)
    assert not set(found.keys.flat) & set(named(498, first=2))
    index.remove(named(1000)[500:993])
    left = ["key 0", "key 1", *named(7, first=993)]
    assert all(sorted(keys) == sorted(left) for keys in index.search(vectors[:20], 9).keys)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_that_grew_from_one_vector_keeps_its_recall(kind: str) -> None:
    index, vectors = Index(WIDTH, kind=kind), unit(2000)
    index.add(["key 0"], vectors[:1])
    for first in range(1, 2000, 100):
        index.add(named(2000)[first : first + 100], vectors[first : first + 100])
    assert index.recall >= 0.95
    assert (index.search(vectors, 1).keys[:, 0] == named(2000)).mean() >= 0.95


def test_replacing_for_ever_does_not_fill_memory() -> None:
    index = filled(20, "hnsw")
    for seed in range(20):
        index.replace(named(20), unit(20, seed))
    assert index._engine.faiss_index.ntotal <= 60


def test_equal_vectors_cost_no_recall() -> None:
    index = Index(WIDTH, kind="ivf")
    index.add(named(300), np.repeat(unit(3), 100, axis=0))
    assert index.recall == 1


def test_auto_is_exact_until_lists_gain_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot.index.AUTO_FROM", 3000)
    centres = unit(40, width=64)
    random_numbers = np.random.default_rng(0)
    near = centres.repeat(100, 0) + 0.05 * random_numbers.standard_normal((4000, 64), dtype=np.float32)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    gains, does_not = Index(64, device="cpu"), Index(64, device="cpu")
    gains.add(named(2000), near[::2])
    assert gains.structure == "exact"
    gains.add(named(2000, first=2000), near[1::2])
    assert (gains.kind, gains.structure) == ("auto", "ivf")
    gains.remove(named(2500))
    gains.compact()
    assert gains.structure == "exact"
    # Where vectors have no near neighbours, lists do not help.
    does_not.add(named(4000), unit(4000, width=64))
    assert does_not.structure == "exact"
    assert does_not.recall == 1


# ------------------------------------------------------------------------------------------------ folder


@pytest.mark.parametrize("memory_mapped", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_comes_back_whole(kind: str, memory_mapped: bool, tmp_path: Path) -> None:
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


def test_an_empty_index_is_saved_too(tmp_path: Path) -> None:
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


def test_the_folder_is_plain_files_that_others_can_read(tmp_path: Path) -> None:
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
from fewshot.index import Index
def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024
folder, kept = Path(sys.argv[1]), [Index(8).search(np.eye(8, dtype=np.float32))]
for kind, mapped in (("exact", True), ("ivf", True), ("hnsw", True), ("exact", False)):
    before = resident()
    kept.append(Index.load(folder / kind, memory_mapped=mapped))
    kept[-1].search(np.eye(1, 4096, dtype=np.float32))
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux says how much is resident")
def test_a_memory_mapped_index_is_not_read_into_memory(tmp_path: Path) -> None:
    for kind in KINDS:
        index = Index(4096, kind=kind)
        index.add(named(1000), unit(1000, width=4096))
        index.save(tmp_path / kind)
    *mapped, whole = map(int, subprocess.check_output([sys.executable, "-c", RESIDENT, str(tmp_path)]).split())
    assert max(mapped) < 8 < 15 <= whole  # of 15.6 MiB of vectors


def test_a_memory_mapped_index_is_not_changed(tmp_path: Path) -> None:
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
    message = "embedder abc, not of def: embed again, or open it with the embedder it was made with"
    with pytest.raises(InputError, match=message):
        Index.load(tmp_path, fingerprint="def")
    assert len(Index.load(tmp_path)) == 5


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"holds thesis\.txt and is no index; name a new or an empty folder"):
        filled(5).save(tmp_path)
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(InputError, match=r"index.json is not of an index"):
        filled(5).save(tmp_path)
    with pytest.raises(InputError, match="cannot be made"):
        filled(5).save(tmp_path / "thesis.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "thesis.txt"]
    with pytest.raises(InputError, match=r"nowhere is no index: there is no index.json in it"):
        Index.load(tmp_path / "nowhere")


def test_a_save_deletes_what_crashed_saves_left_and_no_other_file(tmp_path: Path) -> None:
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
        ({"width": 9}, "another width or number of vectors"),
        ({"width": None}, "is damaged"),
        ({"vectors": 4}, "another width or number"),
        ({"structure": "hnsw"}, "another structure"),
        ({"structure": "tree"}, "is damaged"),
        ({"token": 3}, "does not say which files are current"),
        ({"files": {}}, "is not as long as it was saved"),
        ({"made_by": "another program"}, "is not of an index"),
    ],
)
def test_an_index_json_that_does_not_fit_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    filled(5).save(tmp_path)
    about = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(about | change))
    with pytest.raises(InputError, match=message):
        Index.load(tmp_path)


def test_a_path_that_faiss_cannot_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FAISS opens only paths that are UTF-8"):
        filled(5).save(tmp_path / os.fsdecode(b"caf\xe9"))


SAVER = """
import sys
from pathlib import Path
import numpy as np
from fewshot.index import Index
folder, state = sys.argv[1], int(sys.argv[2])
index = Index(8)
print("ready", flush=True)
while True:
    state += 1
    index.remove(index.keys)
    # State s: s % 50 + 1 keys that say s, each with a vector of its place.
    n = state % 50 + 1
    index.add([f"{state} {place}" for place in range(n)], np.eye(8, dtype=np.float32)[np.arange(n) % 8])
    index.save(folder)
"""


def state_in(folder: Path) -> int:
    """The number of the one whole state in the folder."""
    index = Index.load(folder)
    states = {int(key.split()[0]) for key in index.keys}
    assert len(states) == 1
    state = states.pop()
    assert index.keys == tuple(f"{state} {place}" for place in range(state % 50 + 1))
    assert np.array_equal(index.vectors(index.keys), np.eye(8, dtype=np.float32)[np.arange(len(index)) % 8])
    return state


def test_a_save_that_is_killed_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    folder, moments, state = tmp_path / "index", random.Random(0), 0
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", SAVER, folder, str(state)], stdout=subprocess.PIPE) as saver:
            assert saver.stdout is not None
            saver.stdout.readline()
            # A process that is stopped has left what it would have left if it had been killed: look at many moments.
            for _ in range(20):
                time.sleep(moments.uniform(0.005, 0.03))
                saver.send_signal(signal.SIGSTOP)
                if (folder / "index.json").exists():
                    state = max(state, state_in(folder))
                saver.send_signal(signal.SIGCONT)
            time.sleep(moments.uniform(0, 0.02))
            saver.send_signal(signal.SIGKILL)
        after = state_in(folder)
        assert after >= state
        state = after
    filled(3).save(folder)
    assert len(list(folder.iterdir())) == 3


def test_a_reader_never_fails_beside_a_writer(tmp_path: Path) -> None:
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


# ------------------------------------------------------------------------------------------------ any history


class History(RuleBasedStateMachine):
    """Any sequence of changes comes to what a dict of vectors comes to."""

    kind = "exact"

    @initialize()
    def start(self) -> None:
        self.index = Index(WIDTH, kind=self.kind)
        self.model: dict[str, tuple[Vectors, int]] = {}
        self.made = 0

    def some(self, data: st.DataObject) -> list[str]:
        return data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True, max_size=30))

    def fresh(self, n: int) -> tuple[list[str], Vectors, list[dict[str, int]]]:
        """Keys, vectors of which some are equal, metadata."""
        keys, vectors = named(n, first=self.made), unit(n, seed=self.made // 3)
        self.made += n + 1
        return keys, vectors, [{"made": self.made}] * n

    def hold(self, keys: list[str], vectors: Vectors, metadata: list[dict[str, int]]) -> None:
        entries = zip(vectors, (entry["made"] for entry in metadata), strict=True)
        self.model.update(zip(keys, entries, strict=True))

    @rule(n=st.integers(0, 60))
    def add(self, n: int) -> None:
        fresh = self.fresh(n)
        self.index.add(*fresh)
        self.hold(*fresh)

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def remove(self, data: st.DataObject) -> None:
        keys = self.some(data)
        self.index.remove(keys)
        for key in keys:
            del self.model[key]

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def replace(self, data: st.DataObject) -> None:
        keys = self.some(data)
        _, vectors, metadata = self.fresh(len(keys))
        self.index.replace(keys, vectors, metadata)
        self.hold(keys, vectors, metadata)

    @rule(n=st.integers(0, 20))
    def merge(self, n: int) -> None:
        fresh, other = self.fresh(n), Index(WIDTH)
        other.add(*fresh)
        self.index.merge(other)
        self.hold(*fresh)

    @rule()
    def compact(self) -> None:
        self.index.compact()

    @rule()
    def save_and_load(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.index.save(folder)
            self.index = Index.load(folder)

    @rule(n=st.integers(1, 20), k=st.integers(1, 40), seed=st.integers(0, 99))
    def search(self, n: int, k: int, seed: int) -> None:
        queries = unit(n, seed)
        found = self.index.search(queries, k)
        assert found.keys.shape == (n, min(k, len(self.model)))
        for query, keys, similarity in zip(queries, found.keys, found.similarity, strict=True):
            assert len(set(keys)) == len(keys)
            assert set(keys) <= set(self.model)
            if len(keys):
                expected = np.stack([self.model[key][0] for key in keys]) @ query
                assert np.allclose(expected, similarity, atol=1e-6)
        if self.kind == "exact" and self.model:
            assert_exact(self.index, queries, k)

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        assert self.index.keys == tuple(self.model)
        expected = np.stack([vector for vector, _ in self.model.values()]) if self.model else unit(0)
        assert np.array_equal(self.index.vectors(self.index.keys), expected)
        assert [self.index.metadata(key)["made"] for key in self.index.keys] == [
            made for _, made in self.model.values()
        ]
        assert self.index.recall >= 0.95


class ListsHistory(History):
    kind = "ivf"


class GraphHistory(History):
    kind = "hnsw"


SOME = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
TestExact, TestLists, TestGraph = History.TestCase, ListsHistory.TestCase, GraphHistory.TestCase
TestExact.settings = TestLists.settings = TestGraph.settings = SOME
