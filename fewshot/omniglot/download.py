"""Download of Omniglot's official archives from its repository, verified."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fewshot.omniglot.archive import LARGEST_ARCHIVE, contents
from finetune.errors import InputError
from finetune.files.writing import replacing
from finetune.progress import Display

SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Archive:
    """A zip in the official repository: its path there, its number of pictures and its published checksum, if any."""

    path: str
    pictures: int
    md5: str | None

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


# Checksums are those of torchvision.datasets.Omniglot. For the runs none is published: their pictures are counted, and
# the archive has a checksum of each file.
ARCHIVES = (
    Archive("images_background.zip", 19_280, "68d2efa1b9178cc56df9314c21c6e718"),
    Archive("images_evaluation.zip", 13_180, "6b91aef0f799c5bb55b94e3f2daec811"),
    Archive("one-shot-classification/all_runs.zip", 800, None),
)


def download(
    folder: Path,
    *,
    source: str = SOURCE,
    archives: Sequence[Archive] = ARCHIVES,
    display: Display | None = None,
) -> None:
    """Download the archives that `folder` does not hold yet, about 18 MB.

    An archive that is there is checked by its contents and left alone: a zip that was packed again has another
    checksum. Each file is written whole or not at all.

    Args:
        folder: Where to write.
        source: Address of the repository's folder.
        archives: What to download.
        display: Names each file. None for no output.

    Raises:
        InputError: If an archive cannot be fetched, or is not the official one.

    Example:
        >>> from fewshot import download
        >>> download(Path("data/omniglot"))  # doctest: +SKIP
    """
    display = display or Display()
    for archive in archives:
        target = folder / archive.name
        if target.exists():
            _check_structure(target, archive)
            display.say(f"{target} exists already")
            continue
        url = f"{source}/{archive.path}"
        display.say(f"Downloading {url} to {target}")
        with replacing(target) as temporary:
            found = _fetch(url, temporary)
            if archive.md5 not in (None, found):
                raise InputError(f"{url} has the MD5 checksum {found}, not the published {archive.md5}")
            _check_structure(temporary, archive)


def _fetch(url: str, path: Path) -> str:
    """Write the file at `url` to `path`; return its MD5 checksum."""
    request = urllib.request.Request(url, headers={"User-Agent": "fewtune"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response, path.open("wb") as file:
            return _copy(response, file, url)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise _unfetched(url, path, str(error)) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unfetched(url, path, str(getattr(error, "reason", error))) from error


def _unfetched(url: str, path: Path, reason: str) -> InputError:
    return InputError(f"{url} cannot be fetched: {reason}; without a network, copy the file into {path.parent}")


def _copy(response: BinaryIO, file: BinaryIO, url: str) -> str:
    digest, written = hashlib.md5(usedforsecurity=False), 0
    while block := response.read(1 << 16):
        written += len(block)
        if written > LARGEST_ARCHIVE:
            raise InputError(f"{url} is larger than {LARGEST_ARCHIVE:,} bytes, so it is not the official archive")
        digest.update(block)
        file.write(block)
    return digest.hexdigest()


def _check_structure(path: Path, archive: Archive) -> None:
    """InputError if a file of the zip is damaged or has an unsafe name, or the number of pictures is wrong."""
    pictures = sum(name.endswith(".png") for name, _ in contents(path))
    if pictures != archive.pictures:
        raise InputError(f"{path} holds {pictures:,} pictures; the official {archive.name} has {archive.pictures:,}")
