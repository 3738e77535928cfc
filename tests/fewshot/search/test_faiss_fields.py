"""Every number that a FAISS file states, at the edge of what is accepted and beyond it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_index import WIDTH, file_of, filled, unit

from fewshot.search.faiss_format import MOST_WIDTH, Layout, check_file
from finetune.errors import InputError

ROWS = 100
ROW_IDS = np.arange(ROWS)
HEADER = struct.Struct("<4siqqqBi")  # type, width, rows, two unused, trained, metric


def header(kind: bytes, width: int = WIDTH, rows: int = ROWS, trained: int = 1, metric: int = 0) -> bytes:
    return HEADER.pack(kind, width, rows, 7, 7, trained, metric)


def counted(values: Any, kind: str) -> bytes:
    array = np.asarray(values, kind)
    return struct.pack("<Q", array.size) + array.tobytes()


def flat(vectors: np.ndarray | None = None, **changes: int) -> bytes:
    vectors = unit(ROWS) if vectors is None else vectors
    changes = {"width": vectors.shape[1], "rows": len(vectors)} | changes
    return header(b"IxFI", **changes) + counted(vectors, "<f4")


def lists(sizes: tuple[int, ...] = (60, 0, 40), probes: int = 2, stored: bytes | None = None, **changes: Any) -> bytes:
    """An inverted file; `changes` replace parts of it."""
    vectors, number = unit(ROWS), len(sizes)
    of = np.repeat(np.arange(number), sizes)
    offset = np.concatenate([np.arange(size) for size in sizes])
    inside, at = [], 0
    for size in sizes:
        inside += [vectors[at : at + size].tobytes(), np.arange(at, at + size, dtype="<i8").tobytes()]
        at += size
    parts = {
        "header": header(b"IwFl"),
        "numbers": struct.pack("<QQ", number, probes),
        "centres": flat(unit(number, seed=1) * np.float32(0.5)),
        "map": b"\1",
        "places": counted(of << 32 | offset, "<i8"),
        "code": b"ilar",
        "stated": struct.pack("<QQ", number, WIDTH * 4),
        "sizes": b"full" + counted(sizes, "<u8") if stored is None else stored,
        "inside": b"".join(inside),
    }
    return b"".join((parts | changes).values())


def graph(**changes: Any) -> bytes:
    """All vectors on level 1, and the last also on level 2; 4 links on the lowest level and 2 on the other."""
    levels = np.array([1] * (ROWS - 1) + [2], "<i4")
    links = np.full(4 * ROWS + 2, -1, "<i4")
    links[:4] = [1, 2, ROWS - 1, -1]
    links[-2:] = [ROWS - 1, -1]
    parts = {
        "header": header(b"IHNf"),
        "shares": counted([0.9, 0.1], "<f8"),
        "ends": counted([0, 4, 6], "<i4"),
        "levels": counted(levels, "<i4"),
        "offsets": counted([*range(0, 4 * ROWS, 4), 4 * ROWS + 2], "<u8"),
        "links": counted(links, "<i4"),
        "ends_of_search": struct.pack("<5i", ROWS - 1, 1, 40, 16, 1),
        "vectors": flat(),
    }
    return b"".join((parts | changes).values())


def quantised(**changes: Any) -> bytes:
    """Codes in two lists, of 60 and 40 rows, of two numbers of 4 bits for each vector, and the vectors."""
    blocks = [block(ROW_IDS[:60], 2), block(ROW_IDS[60:], 2)]
    parts = {
        "header": header(b"IxRF"),
        "codes": header(b"IwPf"),
        "numbers": struct.pack("<QQ", 2, 1),
        "centres": flat(unit(2, seed=1) * np.float32(0.5)),
        "map": b"\0" + counted([], "<i8"),
        "residual": b"\1",
        "size": struct.pack("<Q", 1),
        "packing": struct.pack("<iQiQ", 32, 2, 0, 0),
        "quantiser": struct.pack("<QQQ", WIDTH, 2, 4),
        "centroids": counted(np.zeros(16 * WIDTH), "<f4"),
        "code": b"ilbl",
        "stated": struct.pack("<QQQQ", 2, (1 << 64) - 1, 32, 32),
        "blocks": b"".join(blocks),
        "vectors": flat(),
        "factor": struct.pack("<f", 4),
    }
    return b"".join((parts | changes).values())


def block(ids: Any, blocks: int) -> bytes:
    return counted(ids, "<i8") + counted(np.zeros(32 * blocks), "u1")


def checked(contents: bytes, folder: Path, values: bool = True) -> Layout:
    (folder / "file").write_bytes(contents)
    return check_file(folder / "file", values=values)


def refused(contents: bytes, message: str, folder: Path) -> None:
    for values in (False, True):
        with pytest.raises(InputError, match=rf"file does not hold the vectors of an index \({message}"):
            checked(contents, folder, values)


def scaled(length: float) -> np.ndarray:
    vectors = unit(ROWS)
    vectors[-1] *= np.float32(length)
    return vectors


def test_files_made_by_hand_are_accepted(tmp_path: Path) -> None:
    for made, layout in (
        (flat(), Layout("exact", WIDTH, ROWS)),
        (flat(unit(1, width=1)), Layout("exact", 1, 1)),
        (flat(unit(0)), Layout("exact", WIDTH, 0)),
        (flat(unit(0, width=MOST_WIDTH)), Layout("exact", MOST_WIDTH, 0)),
        (lists(), Layout("ivf", WIDTH, ROWS, 3)),
        (lists((1,) * ROWS, probes=ROWS), Layout("ivf", WIDTH, ROWS, ROWS)),
        (lists((ROWS,), probes=1), Layout("ivf", WIDTH, ROWS, 1)),
        (lists(stored=b"sprs" + counted([0, 60, 2, 40], "<u8")), Layout("ivf", WIDTH, ROWS, 3)),
        (graph(), Layout("hnsw", WIDTH, ROWS)),
        (quantised(), Layout("pq", WIDTH, ROWS, 2)),
        (quantised(factor=struct.pack("<f", 1024)), Layout("pq", WIDTH, ROWS, 2)),
        (quantised(blocks=block(ROW_IDS[::-1], 4) + block([], 0)), Layout("pq", WIDTH, ROWS, 2)),
        (graph(ends_of_search=struct.pack("<5i", ROWS - 1, 1, 1, 1 << 16, 9)), Layout("hnsw", WIDTH, ROWS)),
        (graph(ends_of_search=struct.pack("<5i", ROWS - 1, 1, 1 << 16, 1, 9)), Layout("hnsw", WIDTH, ROWS)),
        (graph(shares=counted([0, 1], "<f8")), Layout("hnsw", WIDTH, ROWS)),
    ):
        assert checked(made, tmp_path) == checked(made, tmp_path, values=False) == layout


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "it is shorter"),
        (b"IxF", "it is shorter"),
        (b"IxF2" + flat()[4:], "its type 'IxF2' is not one that is written here"),
        (b"\xff\n\0a" + flat()[4:], r"its type 'ÿ\\n\\x00a' is not one"),
        (flat(width=0), "the width 0 is not between 1 and 1048576"),
        (flat(width=-1), "the width -1 is not between 1 and 1048576"),
        (flat(unit(0, width=MOST_WIDTH), width=MOST_WIDTH + 1), "the width 1048577 is not between 1 and 1048576"),
        (flat(rows=-1), "the number of vectors is -1"),
        (flat(trained=0), "it is not trained"),
        (flat(trained=2), "it is not trained"),
        (flat(metric=1), "the metric is not the inner product"),
        (flat(metric=-1), "the metric is not the inner product"),
        (flat(rows=ROWS + 1), "the number of vectors differs from their bytes"),
        (flat(width=WIDTH - 1), "the number of vectors differs from their bytes"),
        (flat()[:-1], "it is shorter"),
        (flat() + b"\0", "it is longer"),
        (lists(numbers=struct.pack("<QQ", 0, 0)), "it has 0 lists for 100 vectors"),
        (lists(numbers=struct.pack("<QQ", ROWS + 1, 1)), "it has 101 lists for 100 vectors"),
        (lists(probes=0), "it probes 0 of 3 lists"),
        (lists(probes=4), "it probes 4 of 3 lists"),
        (lists(centres=b"IxF2" + flat(unit(3))[4:]), "the type 'IxF2' inside is not one that is written here"),
        (lists(centres=flat(unit(2))), "the width or the number of vectors differs inside"),
        (lists(centres=flat(unit(3, width=4))), "the width or the number of vectors differs inside"),
        (lists(centres=flat(unit(3), metric=1)), "the metric is not the inner product"),
        (lists(centres=flat(unit(3) * np.float32(1.01))), "a vector does not have length 1"),
        (lists(centres=flat(unit(3) * np.float32(np.nan))), "a vector does not have length 1"),
        (lists(map=b"\0"), "its direct map is of another kind"),
        (lists(map=b"\2"), "its direct map is of another kind"),
        (lists(code=b"ilod"), "its lists are of type 'ilod', not held in the file"),
        (lists(stated=struct.pack("<QQ", 2, WIDTH * 4)), "the number of lists or their width differs"),
        (lists(stated=struct.pack("<QQ", 3, WIDTH * 4 + 1)), "the number of lists or their width differs"),
        (lists(stored=b"none" + counted([60, 0, 40], "<u8")), "the sizes of its lists are of type 'none'"),
        (lists(stored=b"full" + counted([60, 40], "<u8")), "the number of sizes differs from the number of lists"),
        (lists(stored=b"full" + counted([60, 1 << 62, 40], "<u8")), "the size of a list is too large"),
        (lists(stored=b"full" + counted([60, 1, 40], "<u8")), "the lists do not hold every vector"),
        (lists(stored=b"full" + counted([60, 0, 39], "<u8")), "the lists do not hold every vector"),
        (lists(places=counted([0] * (ROWS - 1), "<i8")), "the lists do not hold every vector"),
        (lists(stored=b"sprs" + counted([0, 60, 2], "<u8")), "a size of a list is missing"),
        (lists(stored=b"sprs" + counted([2, 40, 0, 60], "<u8")), "the numbers of its lists are out of order"),
        (lists(stored=b"sprs" + counted([0, 60, 0, 40], "<u8")), "the numbers of its lists are out of order"),
        (lists(stored=b"sprs" + counted([0, 60, 3, 40], "<u8")), "the numbers of its lists are out of order"),
        (lists(stored=b"sprs" + counted([], "<u8")), "the lists do not hold every vector"),
        (lists(stored=b"sprs" + counted([1, 60, 2, 40], "<u8")), "a vector's place is outside its list"),
        (lists(places=counted([0] * ROWS, "<i8")), "a vector is not at its place"),
        (lists(places=counted([3 << 32] * ROWS, "<i8")), "a vector's place is outside its list"),
        (lists(places=counted([60] * ROWS, "<i8")), "a vector's place is outside its list"),
        (graph(shares=counted([], "<f8"), ends=counted([0], "<i4")), "a graph has 0 levels"),
        (graph(shares=counted([0.1] * 65, "<f8")), "a graph has 65 levels"),
        (graph(shares=counted([0.1, -0.1], "<f8")), "the share of a level is not between 0 and 1"),
        (graph(shares=counted([0.1, 1.1], "<f8")), "the share of a level is not between 0 and 1"),
        (graph(shares=counted([0.1, np.nan], "<f8")), "the share of a level is not between 0 and 1"),
        (graph(ends=counted([0, 4], "<i4")), "the number of levels differs"),
        (graph(ends=counted([0, 4, 6, 8], "<i4")), "the number of levels differs"),
        (graph(ends=counted([1, 4, 6], "<i4")), "the numbers of links of the levels are wrong"),
        (graph(ends=counted([0, 4, 4], "<i4")), "the numbers of links of the levels are wrong"),
        (graph(ends=counted([0, 4, -(1 << 31)], "<i4")), "the numbers of links of the levels are wrong"),
        (graph(ends=counted([0, 4, (1 << 16) + 1], "<i4")), "the numbers of links of the levels are wrong"),
        (graph(ends=counted([0, 4, 1 << 16], "<i4")), "the links of a vector begin at another place"),
        (graph(levels=counted([1] * (ROWS - 1), "<i4")), "the graph does not hold every vector"),
        (graph(offsets=counted([0] * ROWS, "<u8")), "the graph does not hold every vector"),
        (graph(levels=counted([1] * (ROWS - 1) + [3], "<i4")), "a vector is on a level that is missing"),
        (graph(levels=counted([0] + [1] * (ROWS - 1), "<i4")), "a vector is on a level that is missing"),
        (graph(links=counted([-1] * (4 * ROWS + 1), "<i4")), "the number of links differs"),
        (graph(links=counted([-1] * (4 * ROWS + 3), "<i4")), "the number of links differs"),
        (graph(links=counted([ROWS] + [-1] * (4 * ROWS + 1), "<i4")), "a link leads out of the graph"),
        (graph(links=counted([-2] + [-1] * (4 * ROWS + 1), "<i4")), "a link leads out of the graph"),
        (graph(links=counted([-1] * (4 * ROWS) + [0, -1], "<i4")), "a link leads out of its level"),
        (graph(links=counted([-1] * (4 * ROWS) + [-1, 0], "<i4")), "a link leads out of its level"),
        (graph(ends_of_search=struct.pack("<5i", 0, 1, 40, 16, 1)), "the graph has no valid entry"),
        (graph(ends_of_search=struct.pack("<5i", 0, 0, 40, 16, 1)), "the graph has no valid entry"),
        (graph(ends_of_search=struct.pack("<5i", ROWS, 1, 40, 16, 1)), "the graph has no valid entry"),
        (graph(ends_of_search=struct.pack("<5i", -1, 1, 40, 16, 1)), "the graph has no valid entry"),
        (graph(ends_of_search=struct.pack("<5i", ROWS - 1, 2, 40, 16, 1)), "the graph has no valid entry"),
        (graph(ends_of_search=struct.pack("<5i", ROWS - 1, 1, 0, 16, 1)), "the effort of the graph is wrong"),
        (graph(ends_of_search=struct.pack("<5i", ROWS - 1, 1, 40, 0, 1)), "the effort of the graph is wrong"),
        (graph(ends_of_search=struct.pack("<5i", ROWS - 1, 1, (1 << 16) + 1, 16, 1)), "the effort of the graph"),
        (graph(ends_of_search=struct.pack("<5i", ROWS - 1, 1, 40, (1 << 16) + 1, 1)), "the effort of the graph"),
        (graph(vectors=flat(unit(ROWS - 1))), "the width or the number of vectors differs inside"),
        (quantised(codes=header(b"IwPQ")), "the type 'IwPQ' inside is not one that is written here"),
        (quantised(codes=header(b"IwPf", rows=ROWS - 1)), "the width or the number of vectors differs inside"),
        (quantised(codes=header(b"IwPf", trained=0)), "it is not trained"),
        (quantised(codes=header(b"IwPf", metric=1)), "the metric is not the inner product"),
        (quantised(numbers=struct.pack("<QQ", 0, 1)), "it has 0 lists for 100 vectors"),
        (quantised(numbers=struct.pack("<QQ", ROWS + 1, 1)), "it has 101 lists for 100 vectors"),
        (quantised(numbers=struct.pack("<QQ", 2, 3)), "it probes 3 of 2 lists"),
        (quantised(centres=flat(unit(2) * np.float32(np.nan))), "a vector does not have length 1"),
        (quantised(map=b"\1" + counted(ROW_IDS, "<i8")), "its direct map is of another kind"),
        (quantised(map=b"\0" + counted([1], "<i8")), "its direct map is of another kind"),
        (quantised(residual=b"\0"), "its codes are not of residuals"),
        (quantised(residual=b"\2"), "its codes are not of residuals"),
        (quantised(size=struct.pack("<Q", 2)), "a code has 2 bytes"),
        (quantised(packing=struct.pack("<iQiQ", 64, 2, 0, 0)), "its codes are packed in another way"),
        (quantised(packing=struct.pack("<iQiQ", 32, 4, 0, 0)), "its codes are packed in another way"),
        (quantised(packing=struct.pack("<iQiQ", 32, 2, 1, 0)), "it searches in another way"),
        (quantised(packing=struct.pack("<iQiQ", 32, 2, 0, 1)), "it searches in another way"),
        (quantised(quantiser=struct.pack("<QQQ", WIDTH + 1, 2, 4)), "its quantiser is of another width or number"),
        (quantised(quantiser=struct.pack("<QQQ", WIDTH, 4, 4)), "its quantiser is of another width or number"),
        (quantised(quantiser=struct.pack("<QQQ", WIDTH, 2, 8)), "its quantiser is of another width or number"),
        (quantised(centroids=counted(np.zeros(16 * WIDTH - 1), "<f4")), "the number of centroids differs"),
        (quantised(centroids=counted(np.full(16 * WIDTH, np.nan), "<f4")), "a centroid is not a mean of vectors"),
        (quantised(centroids=counted(np.full(16 * WIDTH, -4.1), "<f4")), "a centroid is not a mean of vectors"),
        (quantised(code=b"ilod"), "its lists are of type 'ilod', not held in the file"),
        (
            quantised(stated=struct.pack("<QQQQ", 3, (1 << 64) - 1, 32, 32)),
            "the number of lists or their blocks differ",
        ),
        (quantised(stated=struct.pack("<QQQQ", 2, 1, 32, 32)), "the number of lists or their blocks differ"),
        (
            quantised(stated=struct.pack("<QQQQ", 2, (1 << 64) - 1, 64, 32)),
            "the number of lists or their blocks differ",
        ),
        (
            quantised(stated=struct.pack("<QQQQ", 2, (1 << 64) - 1, 32, 16)),
            "the number of lists or their blocks differ",
        ),
        (quantised(blocks=block(ROW_IDS, 4) + block([1], 1)), "the lists do not hold every vector"),
        (quantised(blocks=block(ROW_IDS[1:], 4) + block([], 0)), "the lists do not hold every vector"),
        (quantised(blocks=block(ROW_IDS[:60], 2) + block(ROW_IDS[59:99], 2)), "the lists do not hold every vector"),
        (quantised(blocks=block(ROW_IDS + 1, 4) + block([], 0)), "a list holds a row that is missing"),
        (quantised(blocks=block(ROW_IDS - 1, 4) + block([], 0)), "a list holds a row that is missing"),
        (quantised(blocks=block(ROW_IDS, 3) + block([], 0)), "the codes of a list are not those of its rows"),
        (quantised(blocks=block(ROW_IDS, 4) + block([], 1)), "the codes of a list are not those of its rows"),
        (quantised(vectors=flat(unit(ROWS - 1))), "the width or the number of vectors differs inside"),
        (quantised(factor=struct.pack("<f", 0)), "it ranks 0.0 candidates for each neighbour"),
        (quantised(factor=struct.pack("<f", 1025)), "it ranks 1025.0 candidates for each neighbour"),
        (quantised(factor=struct.pack("<f", 1.5)), "it ranks 1.5 candidates for each neighbour"),
        (quantised(factor=struct.pack("<f", np.nan)), "it ranks nan candidates for each neighbour"),
        (quantised(factor=struct.pack("<f", np.inf)), "it ranks inf candidates for each neighbour"),
    ],
)
def test_a_number_out_of_bounds_is_refused(contents: bytes, message: str, tmp_path: Path) -> None:
    refused(contents, message, tmp_path)


@pytest.mark.parametrize(
    "made",
    [
        flat,
        lambda vectors: lists(inside=vectors[:60].tobytes() + np.arange(60, dtype="<i8").tobytes()
                              + vectors[60:].tobytes() + np.arange(60, ROWS, dtype="<i8").tobytes()),
        lambda vectors: graph(vectors=flat(vectors)),
        lambda vectors: quantised(vectors=flat(vectors)),
    ],
)  # fmt: skip
def test_lengths_are_1_within_a_thousandth(made: Any, tmp_path: Path) -> None:
    for length in (0.9993, 1.0007):
        checked(made(scaled(length)), tmp_path)
    for length in (0.9985, 1.0015, -0.5, 0, np.inf, 1e30):
        checked(made(scaled(length)), tmp_path, values=False)
        with pytest.raises(InputError, match="a vector does not have length 1"):
            checked(made(scaled(length)), tmp_path)


def test_centres_may_be_short(tmp_path: Path) -> None:
    for length in (0, 0.1, 1, 1.0007):
        checked(lists(centres=flat(unit(3) * np.float32(length))), tmp_path)


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw", "pq"])
def test_every_vector_of_a_large_file_is_checked(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot.search.faiss_format.reading._AT_ONCE", 24)  # three vectors, or as many links
    filled(ROWS, kind).save(tmp_path)
    path = file_of(tmp_path, "faiss")
    contents = path.read_bytes()
    assert check_file(path, values=True).rows == ROWS
    for number in (0, 1, 2, 3, 50, ROWS - 1):
        row = unit(ROWS)[number]
        path.write_bytes(contents.replace(row.tobytes(), (2 * row).tobytes()))
        with pytest.raises(InputError, match="a vector does not have length 1"):
            check_file(path, values=True)
    if kind == "hnsw":
        for link in (0, 23, 24, 25, 400):
            made = np.full(4 * ROWS + 2, -1, "<i4")
            made[link] = ROWS
            refused(graph(links=counted(made, "<i4")), "a link leads out of the graph", tmp_path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="folder cannot be read: Is a directory"):
        check_file(tmp_path / "folder", values=True)
