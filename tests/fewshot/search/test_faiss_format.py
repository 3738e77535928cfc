"""FAISS files that somebody has made to harm."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_index import KINDS, WIDTH, file_of, filled, named, sign_again, unit

from fewshot.search.engines import import_faiss
from fewshot.search.faiss_format import Layout, check_file
from fewshot.search.index import Index
from finetune.errors import InputError

ROWS = 100
HEADER = 4 + 4 + 8 + 16 + 1 + 4  # bytes: type, width, rows, two unused, trained, metric
SIZES = (-1, 0, 1, 7, 200, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, (1 << 63) - 1, (1 << 64) - 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind."""
    folder = tmp_path_factory.mktemp("saved")
    for kind in KINDS:
        filled(ROWS, kind).save(folder / kind)
    return {kind: folder / kind for kind in KINDS}


def put(folder: Path, contents: bytes, **changes: Any) -> None:
    """Other contents of the FAISS file, with a checksum that fits."""
    file_of(folder, "faiss").write_bytes(contents)
    sign_again(folder, **changes)


def write_faiss(folder: Path, faiss_index: Any, **changes: Any) -> None:
    import_faiss().write_index(faiss_index, str(file_of(folder, "faiss")))
    sign_again(folder, **changes)


def refused(folder: Path, message: str) -> None:
    for memory_mapped in (False, True):
        with pytest.raises(InputError, match=message) as caught:
            Index.load(folder, memory_mapped=memory_mapped)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n", [0, 1, 2, 100, 1000])
@pytest.mark.parametrize("kind", KINDS)
def test_files_that_an_index_writes_are_accepted(kind: Any, n: int, tmp_path: Path) -> None:
    index = filled(n, kind)
    index.remove(named(n // 3))
    index.save(tmp_path)
    layout = check_file(file_of(tmp_path, "faiss"), values=True)
    rows = index._engine.faiss_index.ntotal
    lists = index._engine._most_effort() if index.structure in ("ivf", "pq") else 0  # type: ignore[union-attr]
    assert index.structure == ("exact" if kind == "pq" and n < 64 else kind)
    assert layout == Layout(index.structure, WIDTH, rows, lists)


@pytest.mark.parametrize("sparse", [False, True])
def test_lists_that_are_mostly_empty_are_accepted(sparse: bool, tmp_path: Path) -> None:
    faiss = import_faiss()
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, 8, faiss.METRIC_INNER_PRODUCT)
    lists.cp.min_points_per_centroid = 1
    lists.train(unit(400))
    lists.set_direct_map_type(faiss.DirectMap.Array)
    lists.add(np.repeat(unit(1), 100, axis=0) if sparse else unit(100))
    faiss.write_index(lists, str(tmp_path / "lists"))
    assert (b"sprs" in (tmp_path / "lists").read_bytes()) is sparse
    assert check_file(tmp_path / "lists", values=True) == Layout("ivf", WIDTH, 100, 8)


def test_lists_on_disk_cannot_touch_another_file(tmp_path: Path) -> None:
    victim, theirs = tmp_path / "victim", tmp_path / "theirs"
    victim.write_text("years of work" * 1000)
    before = victim.read_bytes()
    filled(ROWS, "ivf").save(tmp_path / "index")
    faiss = import_faiss()
    lists = faiss.read_index(str(file_of(tmp_path / "index", "faiss")))
    on_disk = faiss.OnDiskInvertedLists(lists.nlist, lists.code_size, str(theirs))
    for number in range(lists.nlist):
        size = lists.invlists.list_size(number)
        on_disk.add_entries(number, size, lists.invlists.get_ids(number), lists.invlists.get_codes(number))
    lists.replace_invlists(on_disk)
    write_faiss(tmp_path / "index", lists, built_at=ROWS)
    contents = file_of(tmp_path / "index", "faiss").read_bytes()
    assert bytes(theirs) in contents
    put(tmp_path / "index", contents.replace(bytes(theirs), bytes(victim)))
    refused(tmp_path / "index", "its lists are of type 'ilod', not held in the file")
    assert victim.read_bytes() == before


def test_other_structures_are_refused(tmp_path: Path) -> None:
    faiss = import_faiss()
    filled(ROWS).save(tmp_path)
    vectors = unit(ROWS)
    for factory, metric in (
        ("Flat", faiss.METRIC_L2),
        ("Flat", faiss.METRIC_L1),
        ("SQ8", faiss.METRIC_INNER_PRODUCT),
        ("PCA4,Flat", faiss.METRIC_INNER_PRODUCT),
        ("IVF2,SQ8", faiss.METRIC_INNER_PRODUCT),
        ("HNSW8,SQ8", faiss.METRIC_INNER_PRODUCT),
    ):
        other = faiss.index_factory(WIDTH, factory, metric)
        other.train(vectors)
        other.add(vectors)
        write_faiss(tmp_path, other)
        refused(tmp_path, "does not hold the vectors of an index")
    for factory, kind in (("IVF2,Flat", "ivf"), ("HNSW32,Flat", "hnsw")):
        other = faiss.index_factory(WIDTH, factory, faiss.METRIC_L2)
        other.train(vectors)
        if kind == "ivf":
            other.set_direct_map_type(faiss.DirectMap.Array)
        other.add(vectors)
        write_faiss(tmp_path, other, kind=kind, structure=kind, effort=1)
        refused(tmp_path, "the metric is not the inner product")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [np.nan, np.inf, 0.0, 2.0, 1e38])
def test_vectors_of_another_length_are_refused(kind: str, length: float, tmp_path: Path) -> None:
    filled(ROWS, kind).save(tmp_path)
    contents, row = file_of(tmp_path, "faiss").read_bytes(), unit(ROWS)[ROWS // 2]
    assert contents.count(row.tobytes()) == 1
    put(tmp_path, contents.replace(row.tobytes(), (row * np.float32(length)).tobytes()))
    with pytest.raises(InputError, match="a vector does not have length 1"):
        Index.load(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_or_longer_are_refused(kind: str, tmp_path: Path) -> None:
    filled(ROWS, kind).save(tmp_path)
    contents = file_of(tmp_path, "faiss").read_bytes()
    for length in {*range(0, 120, 7), *range(120, len(contents), len(contents) // 40), len(contents) - 1}:
        put(tmp_path, contents[:length])
        refused(tmp_path, "does not hold the vectors of an index")
    put(tmp_path, contents + b"\0")
    refused(tmp_path, "longer than the sizes that it states")


def position(contents: bytes, *numbers: int, kind: str) -> int:
    """Where these numbers lie in a file, once."""
    wanted = struct.pack(f"<{len(numbers)}{kind}", *numbers)
    assert contents.count(wanted) == 1
    return contents.index(wanted)


def changed(contents: bytes, at: int, kind: str, value: int) -> bytes:
    return contents[:at] + struct.pack(f"<{kind}", value) + contents[at + struct.calcsize(kind) :]


def ivf_places(contents: bytes) -> int:
    return contents.index(b"ilar") - 8 * ROWS


def graph_levels(contents: bytes) -> int:
    """Where the levels begin: after their number."""
    shares, ends = struct.unpack_from("<Q", contents, HEADER)[0], 0
    ends = HEADER + 8 + 8 * shares
    return int(ends + 8 + 4 * struct.unpack_from("<Q", contents, ends)[0] + 8)


def graph_links(contents: bytes) -> int:
    return graph_levels(contents) + 4 * ROWS + 8 + 8 * (ROWS + 1) + 8


def graph_end(contents: bytes) -> int:
    """Where entry, top level and efforts lie: before the vectors."""
    return contents.index(b"IxFI") - 20


@pytest.mark.parametrize(
    ("kind", "where", "form", "value", "message"),
    [
        ("ivf", ivf_places, "q", 5 << 32, "a vector's place is outside its list"),
        ("ivf", ivf_places, "q", -1, "a vector's place is outside its list"),
        ("ivf", ivf_places, "q", 99, "a vector's place is outside its list"),
        ("ivf", lambda contents: ivf_places(contents) - 9, "B", 0, "its direct map is of another kind"),
        ("ivf", lambda contents: ivf_places(contents) - 9, "B", 2, "its direct map is of another kind"),
        ("ivf", lambda contents: len(contents) - 8, "q", 1 << 40, "a vector is not at its place"),
        ("ivf", lambda contents: len(contents) - 8, "q", -2, "a vector is not at its place"),
        ("hnsw", graph_links, "i", ROWS, "a link leads out of the graph"),
        ("hnsw", graph_links, "i", -2, "a link leads out of the graph"),
        ("hnsw", graph_levels, "i", 5, "the links of a vector begin at another place"),
        ("hnsw", graph_levels, "i", 0, "a vector is on a level that is missing"),
        ("hnsw", graph_levels, "i", 99, "a vector is on a level that is missing"),
        ("hnsw", graph_end, "i", ROWS, "the graph has no valid entry"),
        ("hnsw", graph_end, "i", -1, "the graph has no valid entry"),
        ("hnsw", lambda contents: graph_end(contents) + 4, "i", 9, "the graph has no valid entry"),
        ("hnsw", lambda contents: graph_end(contents) + 8, "i", 1 << 30, "the effort of the graph is wrong"),
    ],
)
def test_links_and_rows_out_of_bounds_are_refused(
    kind: str, where: Callable[[bytes], int], form: str, value: int, message: str, tmp_path: Path
) -> None:
    filled(ROWS, kind).save(tmp_path)
    contents = file_of(tmp_path, "faiss").read_bytes()
    put(tmp_path, changed(contents, where(contents), form, value))
    refused(tmp_path, message)


def test_a_link_to_a_vector_below_its_level_is_refused(tmp_path: Path) -> None:
    filled(ROWS, "hnsw").save(tmp_path)
    contents = file_of(tmp_path, "faiss").read_bytes()
    levels = np.frombuffer(contents, "<i4", ROWS, graph_levels(contents))
    offsets = np.frombuffer(contents, "<u8", ROWS + 1, graph_levels(contents) + 4 * ROWS + 8)
    high, low = int(levels.argmax()), int(levels.argmin())
    assert levels[low] == 1 < levels[high]
    put(tmp_path, changed(contents, graph_links(contents) + 4 * (int(offsets[high]) + 64), "i", low))
    refused(tmp_path, "a link leads out of its level")


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_that_a_file_only_states_take_no_memory(kind: str, saved: dict[str, Path], tmp_path: Path) -> None:
    contents = file_of(saved[kind], "faiss").read_bytes()
    path = tmp_path / "file"
    fields = [(at, form) for at in range(4, min(len(contents), 700)) for form in "iq"]
    tracemalloc.start()
    try:
        for at, form in fields[::13]:
            path.write_bytes(changed(contents, at, form, (1 << (31 if form == "i" else 36)) - 1))
            try:
                check_file(path, values=True)
            except InputError:
                continue
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 1 << 20  # a file has up to 30 KB


def answers_or_refuses(folder: Path) -> None:
    """The index in the folder is refused, or has all its keys and answers."""
    try:
        index = Index.load(folder)
    except InputError:
        return
    assert index.keys == tuple(named(ROWS))
    assert index.search(unit(3, seed=1), 5).keys.shape == (3, 5)
    index.add(["new"], unit(1, seed=2))
    index.remove(["key 0"])
    assert index.search(unit(1, seed=2), 1)[0][0].key == "new"


SOME = settings(max_examples=150, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@SOME
@given(data=st.data())
def test_any_change_of_a_file_is_refused_or_does_no_harm(kind: str, saved: dict[str, Path], data: Any) -> None:
    folder = saved[kind]
    whole, about = file_of(folder, "faiss").read_bytes(), (folder / "index.json").read_bytes()
    contents = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        form = data.draw(st.sampled_from("BiQ"))
        width = struct.calcsize(f"<{form}")
        # Headers and sizes lie at the beginning and the end more than elsewhere.
        ends = st.one_of(st.integers(0, 400), st.integers(len(contents) - 400, len(contents) - width))
        at = data.draw(st.one_of(ends, st.integers(0, len(contents) - width)))
        value = data.draw(st.one_of(st.sampled_from(SIZES), st.integers(0, (1 << 64) - 1)))
        contents[at : at + width] = (value % (1 << 64)).to_bytes(8, "little")[:width]
    cut = data.draw(st.sampled_from([0, 0, 0, 1, 100]))
    try:
        put(folder, bytes(contents[: len(contents) - cut]))
        answers_or_refuses(folder)
    finally:
        file_of(folder, "faiss").write_bytes(whole)
        (folder / "index.json").write_bytes(about)
