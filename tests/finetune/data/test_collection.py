"""Collections as streams: the same pictures as the listings of folders and tables, and each in exactly one shard."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tar_archives import tar_of

from finetune.data.collection.collection import open_collection
from finetune.data.collection.folders import pictures_below
from finetune.data.collection.shard import Shard
from finetune.data.folder import list_unlabelled
from finetune.errors import InputError, UnreadablePicture


def keys(source: Path, shard: str = "1/1") -> list[str]:
    return [picture.key for picture in open_collection(source).pictures(Shard.parsed(shard))]


def filled(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode(errors="surrogateescape"))
    return folder


def test_a_folder_is_listed_as_before(tmp_path: Path) -> None:
    folder = filled(
        tmp_path / "photos",
        [
            "b/1.png",
            "b.png",
            "b-c/1.PNG",
            "b/a/2.jpg",
            "b a/x.gif",
            "b/.hidden.png",
            ".git/x.png",
            "notes.txt",
            "é.png",
        ],
    )
    (folder / "broken.png").symlink_to("nowhere")
    (folder / "link").symlink_to("b")
    (folder / "b" / "loop").symlink_to("..")
    (folder / "empty").mkdir()
    os.mkfifo(folder / "pipe.png")
    expected = [path.relative_to(folder).as_posix() for path in list_unlabelled([folder])]
    assert keys(folder) == expected
    assert "broken.png" in expected
    found = {picture.key: picture for picture in pictures_below(folder)}
    assert found["b/a/2.jpg"].read() == b"b/a/2.jpg"
    with pytest.raises(UnreadablePicture, match="broken link"):
        found["broken.png"].read()


def test_a_table_names_its_pictures_once_and_below_its_folder(tmp_path: Path) -> None:
    filled(tmp_path, ["a/1.png", "b.png"])
    (tmp_path / "list.csv").write_text("label;path\nx;a/1.png\ny;./b.png\nz;a//1.png\nw;\nv;gone.png\n")
    pictures = list(open_collection(tmp_path / "list.csv").pictures())
    assert [picture.key for picture in pictures] == ["a/1.png", "b.png", "gone.png"]
    assert pictures[1].read() == b"b.png"
    with pytest.raises(UnreadablePicture, match="no such file"):
        pictures[2].read()


def test_a_damaged_table_is_an_error_at_its_row(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\na.png\nb.png,c\n")
    stream = open_collection(tmp_path / "list.csv").pictures()
    assert next(stream).key == "a.png"
    with pytest.raises(InputError, match=r"list\.csv, row 3 has 2 cells"):
        next(stream)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_picture_is_in_exactly_one_shard(tmp_path: Path, count: int) -> None:
    folder = filled(tmp_path / "photos", [f"{n % 5}/{n}.png" for n in range(200)])
    shards = [keys(folder, f"{number}/{count}") for number in range(1, count + 1)]
    assert sorted(key for shard in shards for key in shard) == sorted(keys(folder))
    assert all(10 <= len(shard) <= 200 for shard in shards)


def test_tars_are_whole_in_a_shard_where_there_are_enough(tmp_path: Path) -> None:
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(4):
        tar_of(folder / f"{number}.tar", {f"{at}.png": b"picture" for at in range(6)} | {"0.json": b"{}"})
    assert len(keys(folder)) == 24
    assert {key.split("/")[0] for key in keys(folder, "1/2")} == {"0.tar", "2.tar"}
    by_member = [keys(folder, f"{number}/5") for number in range(1, 6)]
    assert sorted(key for shard in by_member for key in shard) == keys(folder)
    assert any(len({key.split("/")[0] for key in shard}) > 1 for shard in by_member)


def test_archives_beside_pictures_are_ignored_with_a_note(tmp_path: Path) -> None:
    folder = filled(tmp_path / "photos", ["a/1.png"])
    tar_of(folder / "backup.tar", {"1.png": b"picture"})
    collection = open_collection(folder)
    assert [picture.key for picture in collection.pictures()] == ["a/1.png"]
    assert collection.notes == (
        f"Archives beside pictures or folders are ignored: 1 in {folder}. To read them, move them into a folder of "
        "their own.",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "does not exist"),
        ("empty", "holds no pictures"),
        ("one.png", "is no collection: give a folder, a table"),
        ("tars.tar.gz", "not compressed"),
        ("pipe.csv", "neither a folder nor a file"),
    ],
)
def test_other_sources_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    filled(tmp_path, ["one.png", "tars.tar.gz"])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match=message):
        keys(tmp_path / name)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0", "-1/3", "1", "1/x", "1/2/3", "", "1/9999999"])
def test_other_shards_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="shard"):
        Shard.parsed(text)
