"""Omniglot's official archives fetched from its repository, when asked to, and verified."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fewshot.omniglot.dataset import contents
from finetune.errors import InputError
from finetune.files import replacing

SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A zip of the official repository: its path there, what it must hold, and its checksum where one is published."""

    path: str
    pictures: int
    md5: str | None

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


# The checksums are those that torchvision.datasets.Omniglot verifies. None is published for the runs: their pictures
# are counted, each file's own checksum in the archive is verified, and the answer keys are when they are read.
ARCHIVES = (
    Archive("images_background.zip", 19_280, "68d2efa1b9178cc56df9314c21c6e718"),
    Archive("images_evaluation.zip", 13_180, "6b91aef0f799c5bb55b94e3f2daec811"),
    Archive("one-shot-classification/all_runs.zip", 800, None),
)
LARGEST = 100_000_000  # bytes; the official ones have less than 20 million


def download(
    folder: Path,
    *,
    source: str = SOURCE,
    archives: Sequence[Archive] = ARCHIVES,
    announce: Callable[[str], None] = print,
) -> None:
    """Fetches into `folder` whichever of `archives` it does not hold, saying so first; about 18 MB.

    A file that is already there is verified by what it holds and otherwise left alone: a zip packed again has another
    checksum. Each file is written whole or not at all. InputError where one cannot be had as it should be.
    """
    for archive in archives:
        target = folder / archive.name
        if target.exists():
            _check_structure(target, archive)
            announce(f"{target} is there already")
            continue
        url = f"{source}/{archive.path}"
        announce(f"Downloading {url} to {target}")
        with replacing(target) as temporary:
            found = _fetch(url, temporary)
            if archive.md5 not in (None, found):
                raise InputError(
                    f"{url} has the MD5 checksum {found}, not the published {archive.md5}; nothing is kept"
                )
            _check_structure(temporary, archive)


def _fetch(url: str, path: Path) -> str:
    """Writes what `url` gives to `path`; its MD5 checksum."""
    request = urllib.request.Request(url, headers={"User-Agent": "fewtune"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response, path.open("wb") as file:
            return _copy(response, file, url)
    except urllib.error.HTTPError as error:
        error.close()  # it is the open answer as well
        raise _unfetched(url, path, str(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unfetched(url, path, str(getattr(error, "reason", error))) from error


def _unfetched(url: str, path: Path, reason: str) -> InputError:
    advice = f"Without a network, put the file in {path.parent} by other means"
    return InputError(f"{url} cannot be fetched: {reason}. {advice}")


def _copy(response: BinaryIO, file: BinaryIO, url: str) -> str:
    digest, written = hashlib.md5(usedforsecurity=False), 0
    while block := response.read(1 << 16):
        written += len(block)
        if written > LARGEST:
            raise InputError(f"{url} is larger than {LARGEST:,} bytes; it is not the official archive")
        digest.update(block)
        file.write(block)
    return digest.hexdigest()


def _check_structure(path: Path, archive: Archive) -> None:
    """InputError when a file of the zip is damaged, its name unsafe, or the number of pictures another."""
    pictures = sum(name.endswith(".png") for name, _ in contents(path))
    if pictures != archive.pictures:
        raise InputError(f"{path} holds {pictures:,} pictures; the official {archive.name} has {archive.pictures:,}")
