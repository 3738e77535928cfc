"""Where results may be written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from finetune.errors import InputError
from finetune.files.locks import locked


def check_writable(path: Path, option: str, *, is_folder: bool, untouched: Iterable[Path] = ()) -> None:
    """Check, before long work begins, that its result can be written.

    Args:
        path: The file or folder to write; it need not exist.
        option: Of the command line, for the message.
        is_folder: Whether `path` is to be a folder.
        untouched: Folders in which nothing may change, such as those of the pictures.

    Raises:
        InputError: If `path` lies in an untouched folder, or cannot be written.
    """
    place = Path(os.path.realpath(path))
    for folder in untouched:
        if place.is_relative_to(os.path.realpath(folder)):
            raise InputError(f"{path} ({option}) lies in {folder}, where nothing is changed; choose another place")
    first = place if is_folder else place.parent
    nearest = next(above for above in (first, *first.parents) if above.exists())
    reason = None
    if place.is_dir() and not is_folder:
        reason = "it is a folder"
    elif not nearest.is_dir():
        reason = f"{nearest} is not a folder"
    elif not os.access(nearest, os.W_OK):
        reason = f"{nearest} is read-only"
    if reason is not None:
        raise InputError(f"{path} ({option}) cannot be written, because {reason}; choose another place")


def check_free(folder: Path, option: str, kind: str) -> None:
    """InputError where `folder` holds anything, which is then no `kind`: a run, an evaluation. Names that begin with a
    dot do not count: a write that was killed leaves them."""
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise InputError(f"{folder} ({option}) is not empty and holds no {kind}; choose another folder")


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """`path`, where a run is to be, for this process alone, made where it is missing, and gone where it stays empty.

    InputError where another process is at it, or it cannot be written to.
    """
    check_writable(path, "--out", is_folder=True)
    busy = f"another process is at a run in {path} (--out); wait for its end or choose another folder"
    with locked(path, busy=busy):
        yield


def default_folder() -> Path:
    """The folder of the activation cache: $FEWTUNE_CACHE/activations, or else the platform's folder for caches."""
    if folder := os.environ.get("FEWTUNE_CACHE"):
        return Path(folder) / "activations"
    return Path(platformdirs.user_cache_dir("fewtune", appauthor=False, opinion=False)) / "activations"
