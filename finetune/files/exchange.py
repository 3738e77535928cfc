"""Several files of a folder exchanged for others in one step: after a crash all of them are the old or all the new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import InputError
from finetune.files.locks import locked
from finetune.files.reading import as_type, read_json
from finetune.files.writing import sync_folder, write_json

# Folder of the new files while they are written; and once they are whole, until each is in its place.
_STAGE, _JOURNAL = ".exchange-new", ".exchange"
_PLAN = "plan.json"


@dataclass(frozen=True)
class _Plan:
    """What an exchange does.

    Attributes:
        old: Names of the files and folders that make room.
        new: Names of those that come.
        kept_in: Where the old ones go, below the folder; None to delete them.
        gone: What is deleted besides, below the folder.
    """

    old: tuple[str, ...]
    new: tuple[str, ...]
    kept_in: str | None
    gone: tuple[str, ...]

    def __post_init__(self) -> None:
        parts = [*self.old, *self.new]
        for place in (self.kept_in, *self.gone):
            parts += [] if place is None else place.split("/")
        # A journal that was made to do harm must not reach beyond its folder.
        if any(part in ("", ".", "..") or "/" in part or "\\" in part or ":" in part for part in parts):
            raise ValueError("a name in it is no plain name")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A new folder in `folder` to write files in, for `exchange`; deleted at the end where they are not exchanged.

    The caller has the lock of `folder`.
    """
    stage = folder / _STAGE
    shutil.rmtree(stage, ignore_errors=True)
    try:
        stage.mkdir()
        yield stage
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error}; make room for it and start again") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def exchange(
    folder: Path, names: Iterable[str], *, kept_in: str | None = None, gone: Sequence[str] = (), stage: Path
) -> None:
    """Exchange all files `names` of a folder for those in `stage`, of which there may be fewer.

    Killed at any moment, it has not begun, or `finish_exchange` and `settled` carry it through.

    Args:
        folder: The folder, whose lock the caller has.
        names: Names of files and folders that belong together; those that `stage` lacks are gone afterwards.
        kept_in: Folder below `folder` that the old files are moved to. None deletes them.
        gone: Files and folders below `folder` to delete, with "/".
        stage: What `staged` gave.
    """
    names = list(names)
    new = tuple(name for name in names if (stage / name).exists())
    old = tuple(name for name in names if (folder / name).exists())
    plan = _Plan(old, new, kept_in, tuple(gone))
    write_json(stage / _PLAN, {"old": old, "new": new, "kept_in": kept_in, "gone": plan.gone})
    stage.rename(folder / _JOURNAL)
    sync_folder(folder)
    finish_exchange(folder)


def finish_exchange(folder: Path) -> None:
    """Carry through an exchange that was interrupted; nothing where there is none. The caller has the lock."""
    journal = folder / _JOURNAL
    if not journal.is_dir():
        return
    plan = as_type(read_json(journal / _PLAN), _Plan, str(journal / _PLAN))
    try:
        _carry_through(folder, journal, plan)
    except OSError as error:
        raise InputError(
            f"{folder} holds a change that was interrupted and cannot be completed: {error}; make it writable"
        ) from error


def settled(folder: Path) -> Path:
    """`folder`, after an exchange that was interrupted, or is under way in another process, has been carried through.

    The caller must not have the lock.
    """
    if (folder / _JOURNAL).is_dir():
        with locked(folder):
            finish_exchange(folder)
    return folder


def _carry_through(folder: Path, journal: Path, plan: _Plan) -> None:
    """Every step can be repeated: a name is exchanged already where its new file is no longer in the journal."""
    kept = None if plan.kept_in is None else folder / plan.kept_in
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
    for name in plan.old:
        here, new = folder / name, journal / name
        exchanged = name in plan.new and not new.exists()
        if exchanged or not here.exists():
            continue
        if kept is not None and not (kept / name).exists():
            here.rename(kept / name)
        elif kept is None:
            delete_whole(here)
    for name in plan.new:
        if (journal / name).exists():
            (journal / name).replace(folder / name)
    for below in plan.gone:
        delete_whole(folder / below)
    for place in (folder, kept):
        if place is not None:
            sync_folder(place)
    delete_whole(journal)


def delete_whole(path: Path) -> None:
    """Delete a file or a folder, in one step where it is a folder: half of one is never left under its name."""
    gone = path.with_name(f"{path.name}-gone" if path.name.startswith(".") else f".{path.name}-gone")
    shutil.rmtree(gone, ignore_errors=True)  # of a process that was killed while deleting it
    if path.is_dir() and not path.is_symlink():
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """The same file or folder in another place, by links where the file system has them."""
    if os.path.isdir(source):
        shutil.copytree(source, target, copy_function=link_or_copy)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
