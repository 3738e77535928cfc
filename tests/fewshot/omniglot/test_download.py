from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fake_omniglot import pictures, runs, zipped
from told import Told

from fewshot.omniglot import download as room
from fewshot.omniglot.dataset import lake_runs, read_omniglot
from fewshot.omniglot.download import ARCHIVES, Archive, download
from finetune.errors import InputError


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Address and folder of a server that holds the fake archives as the repository holds the official ones."""
    folder = tmp_path / "served"
    zipped(folder / "images_background.zip", pictures("background"))
    zipped(folder / "one-shot-classification" / "all_runs.zip", runs())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    thread.join()
    server.server_close()


def archives(folder: Path) -> list[Archive]:
    md5 = hashlib.md5((folder / "images_background.zip").read_bytes(), usedforsecurity=False).hexdigest()
    return [Archive("images_background.zip", 15, md5), Archive("one-shot-classification/all_runs.zip", 800, None)]


def test_archives_are_downloaded_once_and_named(served: tuple[str, Path], tmp_path: Path) -> None:
    source, folder = served
    target, told = tmp_path / "new" / "omniglot", Told()
    download(target, source=source, archives=archives(folder), display=told)
    assert sorted(path.name for path in target.iterdir()) == ["all_runs.zip", "images_background.zip"]
    assert told.lines[0] == f"Downloading {source}/images_background.zip to {target / 'images_background.zip'}"
    assert len(read_omniglot(target, ("background",))) == 15
    assert len(lake_runs(target)) == 20
    before = {path: path.stat().st_mtime_ns for path in target.iterdir()}
    download(target, source="http://127.0.0.1:9/nowhere", archives=archives(folder), display=told)
    assert {path: path.stat().st_mtime_ns for path in target.iterdir()} == before
    assert all("exists already" in line for line in told.lines[2:])
    assert len(told.lines) == 4


def test_a_wrong_checksum_leaves_no_file(served: tuple[str, Path], tmp_path: Path) -> None:
    source, _ = served
    wrong = Archive("images_background.zip", 15, "0" * 32)
    with pytest.raises(InputError, match="checksum"):
        download(tmp_path / "new", source=source, archives=[wrong])
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("files", "message"),
    [({"a/character01/0001_01.png": b""}, "holds 1 pictures"), ({"../a.png": b""}, r"'\.\./a\.png' leads out")],
)
def test_an_archive_with_other_contents_leaves_no_file(
    served: tuple[str, Path], tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    source, folder = served
    zipped(folder / "one-shot-classification" / "all_runs.zip", files)
    with pytest.raises(InputError, match=message):
        download(tmp_path / "new", source=source, archives=[Archive("one-shot-classification/all_runs.zip", 800, None)])
    assert list((tmp_path / "new").iterdir()) == []


def test_an_address_that_cannot_be_fetched_is_named(served: tuple[str, Path], tmp_path: Path) -> None:
    source, _ = served
    missing = Archive("images_evaluation.zip", 6, None)
    with pytest.raises(InputError, match=r"images_evaluation\.zip cannot be fetched: .*404"):
        download(tmp_path / "new", source=source, archives=[missing])
    with pytest.raises(InputError, match=r"cannot be fetched: .*refused"):
        download(tmp_path / "new", source="http://127.0.0.1:9", archives=[missing])
    assert list((tmp_path / "new").iterdir()) == []


def test_a_download_that_is_too_large_is_stopped(
    served: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = served
    monkeypatch.setattr(room, "LARGEST_ARCHIVE", 100)
    with pytest.raises(InputError, match="larger than 100 bytes"):
        download(tmp_path / "new", source=source, archives=archives(folder))
    assert list((tmp_path / "new").iterdir()) == []


def test_the_official_archives_hold_every_picture() -> None:
    assert sum(archive.pictures for archive in ARCHIVES) == 32_460 + 800
    assert [archive.name for archive in ARCHIVES] == ["images_background.zip", "images_evaluation.zip", "all_runs.zip"]
