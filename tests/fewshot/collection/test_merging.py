"""Merging: what is refused, and that nothing is written then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_index import unit

from fewshot import Index, merge_parts
from fewshot.collection.parts import PartsHeader, open_parts, part_of, write_header, write_part
from finetune.errors import InputError

WIDTH = 4


def made(out: Path, shard: int, keys: list[str], *, shards: int = 2, content: str = "0", **changes: object) -> Path:
    """A complete shard with one part."""
    folder = out / f"shard-{shard}-of-{shards}"
    about: dict[str, object] = {"embedder": None, "folder": "/photos"}
    header = PartsHeader(width=WIDTH, fingerprint="a" * 12, about=about, shard=shard, shards=shards)
    header = replace(header, **changes)  # type: ignore[arg-type]
    open_parts(folder, header)
    put(folder, keys, content)
    write_header(folder, replace(header, complete=True, pictures=len(keys)))
    return folder


def put(folder: Path, keys: list[str], content: str = "0") -> Path:
    return write_part(folder, part_of(keys, [content * 64] * len(keys), unit(len(keys), width=WIDTH), {}))


def refusal(index: Path, *parts: Path) -> str:
    with pytest.raises(InputError) as caught:
        merge_parts(index, parts)
    assert "\n" not in str(caught.value)
    assert not index.exists()
    return str(caught.value)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    made(tmp_path / "parts", 1, ["b", "d"])
    return tmp_path / "parts"


def test_shards_of_several_folders_are_one_index_in_the_order_of_keys(out: Path, tmp_path: Path) -> None:
    other = made(tmp_path / "elsewhere", 2, ["c", "a"])
    index, merged = merge_parts(tmp_path / "index", [out, other, out])
    assert index.keys == ("a", "b", "c", "d")
    assert merged.pictures == 4
    assert np.array_equal(index.vectors(["c", "a"]), unit(2, width=WIDTH))
    assert index.metadata("a") == {"sha256": "0" * 64}
    assert Index.load(tmp_path / "index").keys == index.keys
    put(other, ["e"])
    assert len(merge_parts(tmp_path / "index", [out, other])[0]) == 5  # the old index is replaced


def test_a_missing_shard_is_named(out: Path, tmp_path: Path) -> None:
    assert "of 2 shards, missing: 2/2; run fewshot embed --shard" in refusal(tmp_path / "index", out)
    index, merged = merge_parts(tmp_path / "index", [out], allow_missing=True)
    assert (index.keys, merged.missing) == (("b", "d"), ("2/2",))


def test_an_unfinished_shard_is_named(out: Path, tmp_path: Path) -> None:
    folder = made(out, 2, ["a"])
    write_header(folder, PartsHeader(width=WIDTH, fingerprint="a" * 12, about={"folder": "/photos"}, shard=2, shards=2))
    assert "of 2 shards, unfinished: 2/2" in refusal(tmp_path / "index", out)
    index, merged = merge_parts(tmp_path / "index", [out], allow_missing=True)
    assert (index.keys, merged.unfinished) == (("a", "b", "d"), ("2/2",))


def test_a_key_in_two_shards_is_refused(out: Path, tmp_path: Path) -> None:
    made(out, 2, ["a", "b"])
    assert "'b' is in the shards 1/2 and 2/2" in refusal(tmp_path / "index", out)


def test_a_picture_twice_in_a_shard_counts_once_and_with_two_contents_is_refused(out: Path, tmp_path: Path) -> None:
    folder = made(out, 2, ["a"])
    put(folder, ["a"])
    assert merge_parts(tmp_path / "index", [out])[0].keys == ("a", "b", "d")
    put(folder, ["a"], "1")
    assert "'a' has two contents in the shard 2/2, which is unfinished" in refusal(tmp_path / "other", out)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "b" * 12}, "holds vectors of embedder bbbbbbbbbbbb, not of aaaaaaaaaaaa"),
        ({"about": {"folder": "/other"}}, "is of the pictures in /other, not of /photos"),
        ({"shards": 3}, "shards, others are of"),
        ({"shard": 1}, "shard 1/2 is in both"),
    ],
)
def test_parts_that_do_not_fit_are_refused(out: Path, tmp_path: Path, changes: dict[str, object], message: str) -> None:
    more = {"shard": 2, "keys": ["a"]} | changes
    made(tmp_path / "elsewhere", **more)  # type: ignore[arg-type]
    assert message in refusal(tmp_path / "index", out, tmp_path / "elsewhere")


def test_vectors_of_other_lengths_are_refused(out: Path, tmp_path: Path) -> None:
    folder = made(out, 2, [])
    write_part(folder, part_of(["a"], ["0" * 64], np.full((1, WIDTH), np.nan, np.float32), {}))
    assert "key 'a', holds a number that is not finite" in refusal(tmp_path / "index", out)


def test_the_index_of_another_collection_is_not_replaced(out: Path, tmp_path: Path) -> None:
    made(out, 2, ["a"])
    Index(WIDTH, fingerprint="a" * 12, about={"folder": "/other"}).save(tmp_path / "index")
    with pytest.raises(InputError, match="index is the index of /other"):
        merge_parts(tmp_path / "index", [out])
    with pytest.raises(InputError, match="parts is no index"):
        merge_parts(out, [out])


def test_folders_without_parts_are_refused(tmp_path: Path) -> None:
    assert "nowhere does not exist" in refusal(tmp_path / "index", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty holds no parts" in refusal(tmp_path / "index", tmp_path / "empty")


@pytest.mark.slow
def test_a_lance_table_holds_the_same(out: Path, tmp_path: Path) -> None:
    pytest.importorskip("lance")
    made(out, 2, ["c", "x/a"])
    index, _ = merge_parts(tmp_path / "index", [out])
    table, merged = merge_parts(tmp_path / "index.lance", [out])
    assert merged.pictures == 4
    assert table.keys == index.keys == ("b", "c", "d", "x/a")
    assert table.about == index.about
    assert [table.metadata(key) for key in table.keys] == [index.metadata(key) for key in index.keys]
    assert np.array_equal(table.vectors(table.keys), index.vectors(index.keys))
    with pytest.raises(InputError, match=r"index\.lance is there already"):
        merge_parts(tmp_path / "index.lance", [out])
