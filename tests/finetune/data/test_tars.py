"""Tar archives, sound, damaged and made to harm: pictures of the first kind, one line of the others."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from tar_archives import block, tar_of

from finetune.data.collection.stored import StoredPicture
from finetune.data.collection.tars import pictures_in
from finetune.errors import UnreadablePicture

END = bytes(1024)


def found(path: Path) -> dict[str, bytes | str]:
    """Key -> content, or why it cannot be read; each key once."""
    answers: dict[str, bytes | str] = {}
    for picture in pictures_in(path, "a.tar"):
        assert picture.key not in answers
        answers[picture.key] = content_of(picture)
    return answers


def content_of(picture: StoredPicture) -> bytes | str:
    try:
        return picture.read()
    except UnreadablePicture as error:
        return error.reason


def made(path: Path, *parts: bytes) -> dict[str, bytes | str]:
    path.write_bytes(b"".join(parts))
    return found(path)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_pictures_of_every_format_are_read(tmp_path: Path, kind: int) -> None:
    long = "folder/" * 20 + "x" * 90 + ".jpg"
    members = {"a.png": b"one", "./b.JPG": b"x" * 1000, "c.json": b"{}", "empty.png": b"", long: b"long"}
    members["dir.png/d.gif"] = b"d"
    if kind != tarfile.USTAR_FORMAT:
        members["é" * 80 + ".png"] = b"named"
        members["n" * 120 + ".png"] = b"120"
    expected = {f"a.tar/{name.removeprefix('./')}": content for name, content in members.items() if name != "c.json"}
    assert found(tar_of(tmp_path / "a.tar", members, kind)) == expected


def test_names_in_other_encodings_stay_apart(tmp_path: Path) -> None:
    members = {f"{chr(0xDC00 + byte)}.png": bytes([byte]) for byte in (0xFE, 0xFF)}
    assert found(tar_of(tmp_path / "a.tar", members, tarfile.GNU_FORMAT)) == {
        f"a.tar/{name}": content for name, content in members.items()
    }


@pytest.mark.parametrize(
    "name", ["/etc/a.png", "../a.png", "x/../../a.png", "C:\\a.png", "..\\a.png", "\\\\host\\a.png"]
)
def test_names_that_lead_outside_are_not_read(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "a.tar", {"good.png": b"good"} | {name: b"bad"}, tarfile.GNU_FORMAT)
    answers = found(path)
    assert answers.pop("a.tar/good.png") == b"good"
    assert list(answers.values()) == ["its name leads outside of the archive"]


def test_links_and_devices_are_not_read(tmp_path: Path) -> None:
    answers = made(
        tmp_path / "a.tar",
        block("soft.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        block("hard.png", type=tarfile.LNKTYPE, linkname="/etc/passwd", size=1 << 40),
        block("char.png", type=tarfile.CHRTYPE),
        block("pipe.png", type=tarfile.FIFOTYPE),
        block("folder.png", type=tarfile.DIRTYPE),
        block("a.png", size=4) + padded(b"good"),
        END,
    )
    link = "a link in the archive, which is not followed"
    assert answers == {
        "a.tar/soft.png": link,
        "a.tar/hard.png": link,
        "a.tar/char.png": "not a file",
        "a.tar/pipe.png": "not a file",
        "a.tar/a.png": b"good",
    }


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        (block("b.png", size=1 << 50), "cut short"),
        (block("b.png", size=-512), "damaged at byte 1,024"),
        (block("long", type=tarfile.GNUTYPE_LONGNAME, size=1 << 40), "a name of 1,099,511,627,776 bytes"),
        (block("pax", type=tarfile.XHDTYPE, size=1 << 40), "a name of 1,099,511,627,776 bytes"),
        (block("pax", type=tarfile.XHDTYPE, size=21) + padded(b"21 size=-99999999999\n") + block("b.png"), "damaged"),
        (block("pax", type=tarfile.XHDTYPE, size=21) + padded(b"21 size=+99999999999\n"), "cut short"),
        (block("pax", type=tarfile.XHDTYPE, size=9) + padded(b"99 path=x"), "damaged"),
        (block("b.png", type=tarfile.GNUTYPE_SPARSE, size=512), "a file with holes"),
        (block("b.png", size=2000) + b"half", "cut short"),
        (block("b.png", size=0)[:200], "cut short"),
        (b"\xff" * 512, "damaged at byte 1,024"),
    ],
)
def test_damage_is_one_line_and_what_is_before_it_is_read(tmp_path: Path, rest: bytes, reason: str) -> None:
    answers = made(tmp_path / "a.tar", block("a.png", size=4), padded(b"good"), rest)
    assert answers["a.tar/a.png"] == b"good"
    (line,) = (answer for key, answer in answers.items() if key == "a.tar")
    assert str(line).startswith(reason)
    assert "1 pictures before that are read" in str(line)
    assert len(answers) == 2


def test_of_one_name_the_first_is_read(tmp_path: Path) -> None:
    one = block("a.png", size=4)
    answers = made(tmp_path / "a.tar", one, padded(b"good"), one, padded(b"evil"), one, padded(b"more"), END)
    again = "2 names are there again; the first of each is read"
    assert answers == {"a.tar/a.png": b"good", "a.tar": again}
    path = tmp_path / "a.tar"
    assert made(path, path.read_bytes()[:-2000]) == {
        "a.tar/a.png": b"good",
        "a.tar": f"cut short; 1 pictures before that are read; {again.replace('2', '1')}",
    }


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty file"), (b"\x1f\x8b" + bytes(1000), "compressed; decompress it"), (b"x" * 2000, "not a tar archive")],
)
def test_files_that_are_no_archives(tmp_path: Path, content: bytes, reason: str) -> None:
    answers = made(tmp_path / "a.tar", content)
    assert list(answers) == ["a.tar"]
    assert str(answers["a.tar"]).startswith(reason)


def test_a_member_of_a_file_that_shrank_is_cut_short(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {"a.png": b"x" * 5000})
    (picture,) = pictures_in(path, "a.tar")
    path.write_bytes(path.read_bytes()[:3000])
    assert content_of(picture) == "cut short"


def test_a_member_beyond_the_bound_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(block("a.png", size=2 << 30))
        file.truncate((2 << 30) + 512)
    (picture,) = pictures_in(path, "a.tar")
    assert str(content_of(picture)).startswith("has 2,147,483,648 bytes, and at most")
