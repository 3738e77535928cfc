"""Where a table is, and what may lie there."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

from fewshot.search.table.library import import_lance, lance_errors
from finetune.errors import InputError

# Services that Lance reads and writes. Its other schemes name local files or memory.
SERVICES = ("s3", "gs", "az", "abfss")
MANIFESTS = "_versions"
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_FOLDERS = {MANIFESTS, "data", "_transactions", "_deletions", "_indices", "_refs"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def is_address(place: str | Path) -> bool:
    """Whether it is an address such as s3://bucket/name.lance."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def is_table(place: str | Path) -> bool:
    """Whether `place` names a Lance table: an address, a folder with Lance's manifests, or a new name that ends in
    .lance."""
    if is_address(place):
        return True
    path = Path(place)
    return (path / MANIFESTS).is_dir() or (path.suffix == ".lance" and not (path / "index.json").exists())


def is_free_for_table(place: str | Path) -> bool:
    """Whether a table can be created at `place`: nothing is there, or what a killed creation has left."""
    if is_address(place):
        return not _exists_at_address(str(place))
    path = Path(place)
    if not path.exists():
        return True
    return path.is_dir() and {each.name for each in path.iterdir()} <= _FOLDERS and not any(_manifests(path))


def lance_uri(place: str | Path) -> str:
    """The table's name as Lance takes it. InputError for other services, and paths that Lance cannot open."""
    found = _SCHEME.match(place) if isinstance(place, str) else None
    if found is not None:
        if found[1].lower() not in SERVICES:
            raise InputError(f"{place}: use a path, or an address that begins with {', '.join(SERVICES)} and ://")
        return str(place)
    path = os.path.abspath(place)
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{path!r}: Lance opens only paths that are valid UTF-8; choose another folder") from error
    return path


def check_folder(place: str | Path) -> None:
    """InputError unless a local table is a folder of plain files: a link could lead out of it, a pipe never end."""
    if is_address(place):
        return
    if not any(_manifests(Path(place))):
        raise InputError(f"{place} is no Lance table: it holds no {MANIFESTS} folder with a manifest")
    pending = [str(place)]
    try:
        while pending:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    mode = entry.stat(follow_symlinks=False).st_mode
                    if stat.S_ISDIR(mode):
                        pending.append(entry.path)
                    elif not stat.S_ISREG(mode):
                        raise InputError(f"{entry.path} is not a file; the table is damaged, or made to do harm")
    except FileNotFoundError:
        pass  # another process has just removed an older version
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror}") from error


def check_files_of(dataset: Any, place: str | Path) -> None:
    """InputError where a table names files outside of its folder."""
    with lance_errors(f"{place} cannot be read"):
        elsewhere = list(dataset.base_paths())
        for fragment in dataset.get_fragments():
            deletions = fragment.metadata.deletion_file
            if deletions is not None and deletions.base_id is not None:
                elsewhere.append(deletions.base_id)
            for file in fragment.metadata.files:
                if file.base_id is not None or not _PLAIN_NAME.fullmatch(file.path):
                    elsewhere.append(file.path)
    if elsewhere:
        raise InputError(f"{place} names files outside of its folder ({elsewhere[0]}); such tables are not opened")


def _manifests(path: Path) -> Any:
    return (path / MANIFESTS).glob("*.manifest")


def _exists_at_address(address: str) -> bool:
    lance = import_lance()
    try:
        lance.dataset(lance_uri(address))
    except ValueError as error:
        if "was not found" in str(error):
            return False
        with lance_errors(f"{address} cannot be opened"):
            raise
    except OSError:
        with lance_errors(f"{address} cannot be opened"):
            raise
    return True
