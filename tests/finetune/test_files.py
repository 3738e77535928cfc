from __future__ import annotations

import csv
import errno
import os
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.errors import InputError
from finetune.files.folders import check_free, check_writable
from finetune.files.locks import _locked_file
from finetune.files.reading import read_json, read_tensors, read_tensors_and_metadata
from finetune.files.tables import read_csv, write_csv
from finetune.files.writing import replacing, write_json, write_tensors

NO_PROCESS = 1 << 30  # above the largest number of a process


def test_json_and_tensors_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"name": "größe", "lost": os.fsdecode(b"\xff.jpg")})
    assert read_json(tmp_path / "a" / "b.json") == {"name": "größe", "lost": os.fsdecode(b"\xff.jpg")}
    write_tensors(tmp_path / "t.safetensors", {"x": torch.arange(6).view(2, 3).T}, {"note": "n"})
    tensors, metadata = read_tensors_and_metadata(tmp_path / "t.safetensors")
    assert tensors["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert metadata == {"note": "n"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "kept.json"
    write_json(target, 1)
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text(f"half{1 // 0}")
    assert read_json(target) == 1
    assert os.listdir(tmp_path) == ["kept.json"]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps them")
def test_what_killed_processes_left_beside_a_file_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left = f".net[1].onnx.{NO_PROCESS}"
    kept = [f".net[1].onnx.{os.getppid()}", ".net[1].onnx.old", f".net.onnx.{NO_PROCESS}", "net[1].onnx"]
    for name in (left, *kept):
        (tmp_path / name).touch()
    write_json(tmp_path / "net[1].onnx", 1)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
@pytest.mark.parametrize(("number", "refused"), [(errno.EIO, True), (errno.EINVAL, False)])
def test_a_folder_that_the_disk_cannot_sync_is_told_and_one_that_the_file_system_cannot_is_not(
    number: int, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def fails_for_folders(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fails_for_folders)
    expected = pytest.raises(InputError, match=r"kept\.json may be lost") if refused else nullcontext()
    with expected:
        write_json(tmp_path / "kept.json", 1)
    assert read_json(tmp_path / "kept.json") == 1


def test_damaged_files_are_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"{'half")
    for read in (read_json, read_tensors):
        with pytest.raises(InputError, match="damaged"):
            read(damaged)
        with pytest.raises(InputError, match="absent"):
            read(tmp_path / "absent")


def test_a_table_is_read_back_with_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_csv(path, ("name", "n"), [("a, b", 1), ('"', 2)])
    assert read_csv(path, ("n", "name")) == [{"name": "a, b", "n": "1"}, {"name": '"', "n": "2"}]


FORMULAS = ("=1+1", "+1+1", "-dog", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1")


def test_no_text_of_a_table_is_a_formula_and_every_text_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    texts = [*FORMULAS, "'=1", "''", "'", "'tis", "-0.5", "+3", "1e-5", "dog", "a=b", ""]
    write_csv(path, ("name", "number"), [(text, -0.5) for text in texts])
    with path.open(newline="", encoding="utf-8") as file:
        written = list(csv.reader(file))[1:]
    assert all(name.startswith("'") for name, _ in written[: len(FORMULAS)])
    assert [name for name, _ in written if name[:1] in tuple("=+-@\t\r\n＝")] == ["-0.5", "+3"]
    assert {number for _, number in written} == {"-0.5"}
    assert [row["name"] for row in read_csv(path, ("name", "number"))] == texts


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.sampled_from("\\udc8fä'=,\"\n" + os.fsdecode(b"\x80\xff"))), min_size=1))
def test_every_file_name_is_read_back_from_a_table(tmp_path: Path, names: list[str]) -> None:
    """Also bytes of other encodings, and names that look like their escapes."""
    write_csv(tmp_path / "table.csv", ("n", "name"), list(enumerate(names)))
    assert [row["name"] for row in read_csv(tmp_path / "table.csv", ("name",))] == names


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "table.csv")
    with pytest.raises(InputError, match="is not a file"):
        read_csv(tmp_path / "table.csv", ("name",))


@pytest.mark.parametrize(
    ("text", "what"),
    [("name\na\n", "no column n"), ("name,n\na\n", "cut short"), ("", "no column"), ("name,n\n\xff,1\n", "no CSV")],
)
def test_a_damaged_table_is_named(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"table\.csv .*{what}"):
        read_csv(path, ("name", "n"))


def test_a_place_is_checked_before_it_is_written_to(tmp_path: Path) -> None:
    pictures, file = tmp_path / "pictures", tmp_path / "file"
    pictures.mkdir()
    file.touch()
    (tmp_path / "link").symlink_to(pictures)
    check_writable(tmp_path / "new" / "run", "--out", is_folder=True, untouched=[pictures])
    check_writable(file, "--out", is_folder=False)
    for place in (pictures, pictures / "new", tmp_path / "link" / "new"):
        with pytest.raises(InputError, match=r"\(--out\) lies in .*, where nothing is changed"):
            check_writable(place, "--out", is_folder=True, untouched=[pictures])
    for place, is_folder in ((file, True), (file / "below", True), (file / "below", False), (pictures, False)):
        with pytest.raises(InputError, match=r"\(--sheet\) cannot be written"):
            check_writable(place, "--sheet", is_folder=is_folder)


def test_a_folder_that_holds_something_else_is_not_free(tmp_path: Path) -> None:
    (tmp_path / ".left").touch()
    check_free(tmp_path, "--out", "run")
    check_free(tmp_path / "missing", "--out", "run")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"\(--out\) is not empty and holds no evaluation"):
        check_free(tmp_path, "--out", "evaluation")


def test_the_lock_for_windows_keeps_others_out_until_it_ends(tmp_path: Path) -> None:
    with _locked_file(tmp_path, None):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(InputError, match="another process"), _locked_file(tmp_path, "another process is there"):
            pass
    with _locked_file(tmp_path, "another process is there"):
        pass
