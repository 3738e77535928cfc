"""The pictures below a folder as a stream, in the order of their paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finetune.data.collection.stored import StoredPicture
from finetune.data.images import PICTURE_EXTENSIONS
from finetune.errors import InputError


def pictures_below(root: Path) -> Iterator[StoredPicture]:
    """The pictures that `list_unlabelled` finds below a folder, in the same order, with paths below it as keys.

    The names of one folder on each level are in memory, never those of the whole tree.
    """
    # Each folder's entries that are still to be looked at, with the identities of the folder and those above it, to
    # which a link must not lead.
    pending: list[tuple[list[tuple[str, bool]], str, tuple[tuple[int, int], ...]]]
    pending = [(_entries(str(root)), "", (_identity(os.stat(root)),))]
    while pending:
        entries, folder, line = pending[-1]
        if not entries:
            pending.pop()
            continue
        name, is_folder = entries.pop()
        key = f"{folder}{name}"
        path = os.path.join(root, key)
        if not is_folder:
            yield StoredPicture(key, path)
            continue
        identity = _identity(os.stat(path))
        if identity not in line:
            pending.append((_entries(path), f"{key}/", (*line, identity)))


def _entries(folder: str) -> list[tuple[str, bool]]:
    """The names of pictures and folders in a folder, and whether each is a folder, the first one last."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(".") or name == "__MACOSX":
                    continue
                if entry.is_dir():
                    found.append((name, True))
                elif os.path.splitext(name)[1].lower() in PICTURE_EXTENSIONS and (
                    entry.is_file() or not os.path.exists(entry.path)  # reading a broken link later reports the reason
                ):
                    found.append((name, False))
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    # As whole paths are sorted, in which a folder's name is followed by a slash.
    return sorted(found, key=lambda each: f"{each[0]}/" if each[1] else each[0], reverse=True)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
