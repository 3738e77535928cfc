"""Small indexes of random vectors, assertions on them, and saved indexes changed by a third party."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from exact_neighbours import disagreements, nearest

from fewshot.search.engines import Vectors
from fewshot.search.index import Index

WIDTH = 8
KINDS = ("exact", "ivf", "hnsw", "pq")


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
    """The answers are those of a comparison with all vectors, except for the order of ties."""
    found = index.search(queries, k)
    rows = {key: row for row, key in enumerate(index.keys)}
    similarity, expected = nearest(index.vectors(index.keys), queries, min(k, len(index)))
    answered = np.array([[rows[key] for key in keys] for keys in found.keys])
    assert disagreements((found.similarity, answered), (similarity, expected)) == 0


def file_of(folder: Path, suffix: str) -> Path:
    """The one file of a saved index with this suffix."""
    (found,) = folder.glob(f"*.{suffix}")
    return found


def sign_again(folder: Path, **changes: Any) -> None:
    """Put changes into index.json, and the sizes and checksums that the files now have."""
    about = json.loads((folder / "index.json").read_text())
    for name in about["files"]:
        contents = (folder / name).read_bytes()
        about["files"][name] = {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}
    (folder / "index.json").write_text(json.dumps(about | changes))


def endless_table(path: Path, levels: int = 12, children: int = 300) -> None:
    """Replace the table by pages of which each leads many times to the next: 300 ** 12 rows in 13 pages."""
    contents = bytearray(path.read_bytes())
    size = struct.unpack_from(">H", contents, 16)[0]
    first = len(contents) // size + 1
    with closing(sqlite3.connect(path)) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_master").fetchone()
    leaf = bytes(contents[(root - 1) * size : root * size])
    assert leaf[0] == 13
    for level in range(levels):
        page = bytearray(size)
        start = size - 5 * children
        child = first + level
        page[:12] = struct.pack(">BHHHBI", 5, 0, children, start, 0, child)
        for number in range(children):
            struct.pack_into(">H", page, 12 + 2 * number, start + 5 * number)
            struct.pack_into(">IB", page, start + 5 * number, child, 1)
        if level == 0:
            contents[(root - 1) * size : root * size] = page
        else:
            contents += page
    contents += leaf
    struct.pack_into(">I", contents, 28, len(contents) // size)
    path.write_bytes(contents)
