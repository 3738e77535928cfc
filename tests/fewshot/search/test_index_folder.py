"""The folder of an index: when it is free, what is recorded and verified, and what remains of a save that fails."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_index import KINDS, WIDTH, assert_same, endless_table, file_of, filled, named, sign_again, unit

from fewshot.search.index import Index
from fewshot.search.index_files import is_free, read_folder, write_folder
from fewshot.search.key_table import Entry, read_entries, write_entries
from finetune.errors import InputError

resource = pytest.importorskip("resource")


def flip(path: Path) -> None:
    contents = bytearray(path.read_bytes())
    contents[-5] ^= 255
    path.write_bytes(contents)


def test_a_folder_is_free_without_an_index_and_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    assert is_free(folder)
    folder.mkdir()
    assert is_free(folder)
    for name in ("vectors-0123456789abcdef.faiss", ".keys-0123456789abcdef.sqlite.77", ".index.json.77", ".lock"):
        (folder / name).touch()
    assert is_free(folder)
    for name in ("index.json", "notes.txt", "vectors-mine.faiss", "keys-0123456789abcdef.sqlite.old"):
        (folder / name).touch()
        assert not is_free(folder)
        (folder / name).unlink()
    (tmp_path / "file").touch()
    assert not is_free(tmp_path / "file")


def test_index_json_records_the_files_and_what_made_them(tmp_path: Path) -> None:
    filled(5, about={"folder": "photos"}).save(tmp_path)
    about = json.loads((tmp_path / "index.json").read_text())
    assert (about["made_by"], about["format"], about["about"]) == ("fewtune index", 1, {"folder": "photos"})
    assert len(about["files"]) == 2
    for name, record in about["files"].items():
        contents = (tmp_path / name).read_bytes()
        assert about["token"] in name
        assert record == {"bytes": len(contents), "sha256": hashlib.sha256(contents).hexdigest()}


def test_the_index_that_is_there_is_checked_before_it_is_replaced(tmp_path: Path) -> None:
    filled(5, about={"folder": "photos"}).save(tmp_path / "old")
    header, vectors, entries = read_folder(tmp_path / "old", False)
    seen: list[Any] = []
    write_folder(tmp_path / "new", header, vectors, entries, seen.append)
    assert seen == []
    write_folder(tmp_path / "new", replace(header, about={"folder": "other"}), vectors, entries, seen.append)
    assert seen == [{"folder": "photos"}]

    def refuse(about: Any) -> None:
        raise InputError(f"made of {about['folder']}")

    with pytest.raises(InputError, match="made of other"):
        write_folder(tmp_path / "new", header, vectors, entries, refuse)
    assert Index.load(tmp_path / "new").about == {"folder": "other"}
    assert len(list((tmp_path / "new").iterdir())) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_a_memory_mapped_index_are_not_read_but_its_keys_are(kind: str, tmp_path: Path) -> None:
    filled(30, kind).save(tmp_path)
    if kind == "exact":
        flip(file_of(tmp_path, "faiss"))
        with pytest.raises(InputError, match="faiss does not have its saved checksum; it is damaged"):
            Index.load(tmp_path)
        assert len(Index.load(tmp_path, memory_mapped=True)) == 30
    flip(file_of(tmp_path, "sqlite"))
    with pytest.raises(InputError, match="sqlite does not have its saved checksum; it is damaged"):
        Index.load(tmp_path, memory_mapped=True)
    file_of(tmp_path, "faiss").write_bytes(b"\0")
    for mapped in (False, True):
        with pytest.raises(InputError, match="faiss does not have its saved length; it is damaged"):
            Index.load(tmp_path, memory_mapped=mapped)
    file_of(tmp_path, "faiss").unlink()
    with pytest.raises(InputError, match="faiss cannot be read: No such file or directory; the index is not complete"):
        Index.load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("exact", {"width": 9}, "the width or the number of vectors differs"),
        ("exact", {"rows": 59}, "the width or the number of vectors differs"),
        ("exact", {"rows": 61}, "the width or the number of vectors differs"),
        ("exact", {"vectors": 59}, "sqlite .the width or the number of vectors differs"),
        ("exact", {"kind": "auto", "built_at": 1 << 50}, None),
        ("exact", {"structure": "ivf"}, "the structure differs"),
        ("ivf", {"effort": 1}, None),
        ("ivf", {"kind": "auto", "built_at": 60}, None),
        ("ivf", {"built_at": 61}, "built_at is 61"),
        ("ivf", {"kind": "hnsw"}, "the kind is hnsw"),
        ("hnsw", {"effort": 0}, "the effort is 0"),
        ("hnsw", {"effort": 1}, None),
        ("hnsw", {"built_at": 61}, "built_at is 61"),
    ],
)
def test_index_json_must_agree_with_the_files(
    kind: str, change: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    filled(60, kind).save(tmp_path)
    sign_again(tmp_path, **change)
    if message is None:
        assert_same(Index.load(tmp_path), filled(60, kind))
        return
    with pytest.raises(InputError, match=rf"index.json does not match .*{message}.*; the index is damaged"):
        Index.load(tmp_path)


def test_the_first_of_other_files_is_named(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "vectors-0123456789abcdef.faiss"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"holds a\.txt and is no index"):
        filled(3).save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%41b", "a b'\"", "ä"])
def test_a_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    filled(3).save(tmp_path / name)
    assert_same(Index.load(tmp_path / name), filled(3))


@pytest.fixture
def small_files() -> Iterator[int]:
    """No file can grow beyond 20,000 bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield 20_000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(("vectors", "keys", "suffix"), [(2000, "key", "faiss"), (100, "key" * 100, "sqlite")])
def test_a_save_without_room_names_its_file_and_leaves_the_old_state(
    vectors: int, keys: str, suffix: str, small_files: int, tmp_path: Path
) -> None:
    old, new = filled(3), Index(WIDTH)
    old.save(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    new.add([f"{keys} {number}" for number in range(vectors)], unit(vectors))
    resource.setrlimit(resource.RLIMIT_FSIZE, (small_files, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    message = rf"\.{suffix} cannot be written: .*; make room for it and start again$"
    with pytest.raises(InputError, match=message) as caught:
        new.save(tmp_path)
    assert "failed: " not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert_same(Index.load(tmp_path), old)


FULL = """
import resource, signal, sys
from fewshot.search.index import Index
from finetune.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for folder in sys.argv[1:]:
    index = Index.load(folder)
    largest = max(path.stat().st_size for path in __import__("pathlib").Path(folder).iterdir())
    # One byte less than the file: FAISS itself reports success.
    for limit in (0, 300, 5000, 20_000, largest - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            index.save(folder)
            print("saved")
        except InputError as error:
            print(error)
"""


@pytest.mark.slow
def test_a_full_disk_is_said_in_words_and_loses_nothing(tmp_path: Path) -> None:
    indexes = {tmp_path / kind: filled(1000, kind) for kind in KINDS}
    indexes[tmp_path / "text"] = Index(2)
    indexes[tmp_path / "text"].add(["key"], np.eye(1, 2, dtype=np.float32), [{"text": "x" * 50_000}])
    before = {}
    for folder, index in indexes.items():
        index.save(folder)
        before |= {path: path.read_bytes() for path in folder.iterdir()}
    process = subprocess.run([sys.executable, "-c", FULL, *indexes], capture_output=True, text=True, check=True)
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert len(lines) == 5 * len(indexes)
    for line in lines:
        assert re.search("(sqlite|faiss) cannot be written: .*; make room for it and start again$", line), line
    assert sum("[Errno 27] File too large" in line for line in lines) > 15
    assert {path: path.read_bytes() for folder in indexes for path in folder.iterdir()} == before
    for folder, index in indexes.items():
        assert_same(Index.load(folder), index)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_many_keys_are_read_in_the_order_of_writing(tmp_path: Path) -> None:
    n = 20_000
    entries = [Entry(name, (7 * row) % n, "{}" if row % 2 else None) for row, name in enumerate(named(n))]
    write_entries(tmp_path / "keys", iter(entries))
    assert read_entries(tmp_path / "keys", n) == entries
    with pytest.raises(InputError, match="keys cannot be read: a row is not in the FAISS file; it may be damaged"):
        read_entries(tmp_path / "keys", n - 1)
    write_entries(tmp_path / "keys", [])
    assert read_entries(tmp_path / "keys", 0) == []
    with pytest.raises(InputError, match="none cannot be read"):
        read_entries(tmp_path / "none", 0)


def test_more_bytes_than_the_file_has_are_refused_whatever_number_of_rows_is_stated(tmp_path: Path) -> None:
    filled(60).save(tmp_path)
    path = file_of(tmp_path, "sqlite")
    endless_table(path)
    with pytest.raises(InputError, match="it holds more than its size allows; it may be damaged"):
        read_entries(path, 1 << 40)


def test_rows_are_unique_and_inside(tmp_path: Path) -> None:
    for row, fits in ((0, True), (59, True), (60, False)):
        write_entries(tmp_path / "keys", [Entry("a", row, None)])
        if fits:
            assert read_entries(tmp_path / "keys", 60) == [Entry("a", row, None)]
        else:
            with pytest.raises(InputError, match="a row is not in the FAISS file"):
                read_entries(tmp_path / "keys", 60)
    assert os.listdir(tmp_path) == ["keys"]
