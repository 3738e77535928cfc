"""Zips that lie: refused with one error, before they take memory."""

from __future__ import annotations

import os
import random
import stat
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from called import Answer, caller
from fake_omniglot import drawing, png, runs, zipped

from fewshot.cli.main import main
from fewshot.omniglot import archive as room
from fewshot.omniglot.archive import contents
from fewshot.omniglot.dataset import read_omniglot
from fewshot.omniglot.download import Archive, download
from finetune.errors import InputError

PICTURE = "images_background/Alpha/character01/0001_01.png"


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        list(contents(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def changed(path: Path, offset: int, form: str, value: int, entry: int = 0) -> None:
    """Writes a field of an entry of the directory."""
    content = bytearray(path.read_bytes())
    place = -1
    for _ in range(entry + 1):
        place = content.index(b"PK\1\2", place + 1)
    struct.pack_into("<" + form, content, place + offset, value)
    path.write_bytes(content)


def deflated(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_member_that_lies_about_its_size_is_stopped_there(tmp_path: Path) -> None:
    path = deflated(tmp_path / "a.zip", {PICTURE: bytes(50_000_000)})
    changed(path, 24, "I", 500)  # of the size
    tracemalloc.start()
    try:
        refused(path, "CRC")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    short = deflated(tmp_path / "b.zip", {PICTURE: b"abc"})
    changed(short, 24, "I", 500)
    refused(short, "cannot be read")


def test_a_name_that_is_not_the_utf8_it_claims_to_be(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"größe.png": b""})
    path.write_bytes(path.read_bytes().replace("größe".encode(), b"gr\xff\xfe\xc3\xc3e"))
    refused(path, "not the UTF-8")


@pytest.mark.parametrize(
    ("offset", "form", "value", "message"),
    [
        (8, "H", 1, "is encrypted"),
        (10, "H", zipfile.ZIP_BZIP2, "is compressed by method 12"),
        (10, "H", zipfile.ZIP_LZMA, "is compressed by method 14"),
        (10, "H", 99, "is compressed by method 99"),
        (20, "I", 1 << 30, "overlaps what follows"),
        (24, "I", 1 << 30, "is 1,073,741,824 bytes large"),
        (24, "I", 0xFFFFFFFF, "cannot be read|bytes large"),  # the size is elsewhere, and there is none
        (38, "I", (stat.S_IFIFO | 0o644) << 16, "is neither a file nor a folder"),
        (38, "I", (stat.S_IFLNK | 0o777) << 16, "is a link"),
        (42, "I", 1 << 30, "overlaps what follows"),
    ],
)
def test_a_directory_that_lies_is_refused(offset: int, form: str, value: int, message: str, tmp_path: Path) -> None:
    path = deflated(tmp_path / "a.zip", {PICTURE: png(drawing(0))})
    assert [name for name, _ in contents(path)] == [PICTURE]
    changed(path, offset, form, value)
    refused(path, message)


def test_sizes_of_64_bits_that_lie_are_refused(tmp_path: Path) -> None:
    member = zipfile.ZipInfo(PICTURE)
    member.extra = struct.pack("<HHQQ", 1, 16, 1 << 60, 1 << 60)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"abc")
    for offset in (20, 24):
        changed(path, offset, "I", 0xFFFFFFFF)
    refused(path, "1,152,921,504,606,846,976 bytes large|cannot be read")


def test_overlapping_and_repeated_members_are_refused(tmp_path: Path) -> None:
    path = deflated(tmp_path / "a.zip", {f"{number}.png": bytes(1000) for number in range(3)})
    changed(path, 42, "I", 0, entry=1)  # the second begins where the first does
    refused(path, "overlaps")
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(PICTURE, b"")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr(PICTURE, b"")
    refused(path, "occurs 2 times")


def test_too_many_members_and_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = deflated(tmp_path / "a.zip", {f"{number}.png": bytes(1000) for number in range(4)})
    with monkeypatch.context() as patch:
        patch.setattr(room, "_MOST", 3)
        refused(path, "has 4 members")
    with monkeypatch.context() as patch:
        patch.setattr(room, "_LARGEST_TOTAL", 3999)
        refused(path, "more than 3,999 bytes")
    monkeypatch.setattr(room, "LARGEST_ARCHIVE", path.stat().st_size - 1)
    refused(path, "is larger than")


def test_an_unpacked_archive_has_bounds_too(tmp_path: Path) -> None:
    folder = tmp_path / "images_background"
    folder.mkdir()
    (folder / "a.png").write_bytes(bytes(1_000_001))
    with pytest.raises(InputError, match=r"a\.png is 1,000,001 bytes large"):
        list(contents(folder))
    (folder / "a.png").unlink()
    os.mkfifo(folder / "a.png")
    with pytest.raises(InputError, match=r"a\.png is not a file"):
        list(contents(folder))


def test_mutated_archives_are_read_or_refused(tmp_path: Path) -> None:
    draw = random.Random(0)
    whole = deflated(tmp_path / "whole.zip", {f"größe {number}.png": bytes(number) for number in range(5)}).read_bytes()
    path = tmp_path / "a.zip"
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            content[draw.randrange(len(content))] = draw.choice((0, 1, 0x7F, 0xFF, draw.randrange(256)))
        path.write_bytes(content[: draw.choice((len(content), draw.randrange(len(content))))])
        try:
            list(contents(path))
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "fewshot", monkeypatch, capfd)


def test_benchmark_and_download_refuse_a_hostile_archive_in_one_line(
    call: Callable[..., Answer], tmp_path: Path
) -> None:
    path = zipped(tmp_path / "all_runs.zip", {**runs(), "größe.txt": b""})
    path.write_bytes(path.read_bytes().replace("größe".encode(), b"gr\xff\xfe\xc3\xc3e"))
    answer = call("benchmark", "--model", "pixels", "--protocol", "lake", "--data", tmp_path)
    assert (answer.code, answer.out) == (2, "")
    assert "all_runs.zip" in answer.err
    assert len(answer.err.splitlines()) == 1
    with pytest.raises(InputError, match=r"all_runs\.zip cannot be read"):
        download(tmp_path, archives=[Archive("one-shot-classification/all_runs.zip", 800, None)])


def test_a_picture_with_a_number_of_many_digits_is_named(tmp_path: Path) -> None:
    zipped(tmp_path / "images_background.zip", {f"Alpha/character{'1' * 5000}/0001_01.png": png(drawing(0))})
    with pytest.raises(InputError, match="not a name like"):
        read_omniglot(tmp_path, ("background",))
