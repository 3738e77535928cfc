"""Parts of embedded pictures: written, read, known by content, and refused where damaged or of another kind."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from made_index import unit

from fewshot.collection.known import KnownPictures
from fewshot.collection.parts import (
    Part,
    PartsHeader,
    open_parts,
    part_files,
    part_of,
    read_header,
    read_part,
    read_parts,
    write_header,
    write_part,
)
from finetune.errors import InputError
from finetune.files.reading import read_tensors
from finetune.files.writing import write_tensors

WIDTH = 4
HEADER = PartsHeader(width=WIDTH, fingerprint="0123456789ab", about={"folder": "/photos"}, shard=1, shards=2)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()


def made(keys: list[str], unreadable: dict[str, str] | None = None, content: str = "") -> Part:
    """A part in which the content of a picture is its key and `content`."""
    return part_of(keys, [digest(key + content).hex() for key in keys], unit(len(keys), width=WIDTH), unreadable or {})


def assert_same(part: Part, other: Part) -> None:
    assert list(part.keys) == list(other.keys)
    assert np.array_equal(part.digests, other.digests)
    assert np.array_equal(part.vectors, other.vectors)
    assert dict(part.unreadable) == dict(other.unreadable)


def test_a_part_is_read_as_it_was_written(tmp_path: Path) -> None:
    part = made(["a/1.png", "käse\udcff.png", "日本.png"], {"b.png": "not a picture", "c\udcff.png": "cut short"})
    path = write_part(tmp_path, part)
    assert_same(read_part(path, WIDTH), part)
    assert [found for found, _ in read_parts(tmp_path, WIDTH)] == [path]


def test_a_part_of_unreadable_pictures_alone(tmp_path: Path) -> None:
    part = made([], {"b.png": "not a picture"})
    assert_same(read_part(write_part(tmp_path, part), WIDTH), part)


def test_a_picture_is_known_by_key_and_content(tmp_path: Path) -> None:
    write_part(tmp_path, made([f"{n}.png" for n in range(50)], {"bad.png": "cut short"}))
    known = KnownPictures(tmp_path, WIDTH)
    assert len(known) == 50
    assert known.holds("7.png", digest("7.png"))
    assert not known.holds("7.png", digest("8.png"))
    assert not known.holds("70.png", digest("7.png"))
    assert known.holds_unreadable("bad.png", "cut short")
    assert not known.holds_unreadable("bad.png", "empty file")
    assert (known.found, known.found_unreadable) == (1, 1)


def test_what_is_not_found_again_is_deleted(tmp_path: Path) -> None:
    whole = write_part(tmp_path, made(["a", "b"], {"x": "cut short", "y": "empty file"}))
    gone = write_part(tmp_path, made(["c"]))
    known = KnownPictures(tmp_path, WIDTH)
    assert known.holds("b", digest("b"))
    assert known.holds_unreadable("y", "empty file")
    later = write_part(tmp_path, made(["d"]))  # by another process
    known.delete_others()
    assert not gone.exists()
    assert sorted(part_files(tmp_path)) == sorted([whole, later])
    part = read_part(whole, WIDTH)
    assert (part.keys, dict(part.unreadable)) == (["b"], {"y": "empty file"})
    assert np.array_equal(part.vectors, unit(2, width=WIDTH)[1:])


def test_one_of_two_copies_is_deleted(tmp_path: Path) -> None:
    for _ in range(2):
        write_part(tmp_path, made(["a", "b"]))
    known = KnownPictures(tmp_path, WIDTH)
    assert all(known.holds(key, digest(key)) for key in "ab")
    known.delete_others()
    assert [part.keys for _, part in read_parts(tmp_path, WIDTH)] == [["a", "b"]]


def test_opening_says_that_a_shard_is_no_longer_complete(tmp_path: Path) -> None:
    open_parts(tmp_path, HEADER)
    write_header(tmp_path, PartsHeader(**vars(HEADER) | {"complete": True, "pictures": 3}))
    assert read_header(tmp_path).complete
    open_parts(tmp_path, HEADER)
    assert read_header(tmp_path) == HEADER


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": "ba9876543210"}, "holds vectors of embedder 0123456789ab, not of ba9876543210"),
        ({"about": {"folder": "/other"}}, "is of the pictures in /photos, not of /other"),
        ({"shard": 2}, "holds shard 1/2, not 2/2"),
    ],
)
def test_parts_of_another_kind_are_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    open_parts(tmp_path, HEADER)
    with pytest.raises(InputError, match=message):
        open_parts(tmp_path, PartsHeader(**vars(HEADER) | changed))


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        open_parts(tmp_path, HEADER)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_removed_once_it_is_old(tmp_path: Path) -> None:
    open_parts(tmp_path, HEADER)
    young, old = tmp_path / f".part-{'a' * 16}.safetensors.77", tmp_path / f".part-{'b' * 16}.safetensors.77"
    for path in (young, old):
        path.write_text("half")
    os.utime(old, (0, 0))
    open_parts(tmp_path, HEADER)
    assert young.exists()
    assert not old.exists()


def test_damaged_parts_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = write_part(tmp_path, made(["a", "b"]))
    good = {name: tensor.clone() for name, tensor in read_tensors(path).items()}
    for name, value, message in (
        ("vectors", torch.zeros(3, WIDTH), "vectors"),
        ("vectors", torch.zeros(2, WIDTH, dtype=torch.float64), "vectors"),
        ("digests", torch.zeros(2, 31, dtype=torch.uint8), "digests"),
        ("key_lengths", torch.tensor([1, 1 << 60]), "lengths of its keys"),
        ("key_lengths", torch.tensor([3, -1]), "lengths of its keys"),
        ("key_lengths", torch.tensor([0, 2]), "lengths of its keys"),
        ("keys", torch.full((2,), 0xFF, dtype=torch.uint8), "a key is not text"),
        ("unreadable", torch.full((2,), 0x30, dtype=torch.uint8), "unreadable|JSON"),
    ):
        write_tensors(path, good | {name: value})
        with pytest.raises(InputError, match=message) as caught:
            read_part(path, WIDTH)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="it may be damaged"):
        read_part(path, WIDTH)


def test_second_copies_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    write_part(tmp_path, made(["a", "b"]))
    write_part(tmp_path, made(["b"]))
    KnownPictures(tmp_path, WIDTH).delete_repeated()
    assert sorted(key for path in part_files(tmp_path) for key in read_part(path, WIDTH).keys) == ["a", "b"]
