"""Locks of folders, which end with their process."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from finetune.errors import InputError

_LOCKS: set[int] = set()  # this process's handles of folders that it has locked
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks
LOCK_FILE = ".lock"  # in a locked folder, on Windows alone


@contextmanager
def locked(folder: Path, *, busy: str | None = None) -> Iterator[None]:
    """Lock a folder for this process. The folder is made where it is missing.

    A lock ends with its process, even a killed one. It leaves no file, and no empty folder that was made for it. Where
    a file system has no locks, there is none.

    Args:
        folder: The folder.
        busy: Message of the error when another process has the lock. None to wait for it.

    Raises:
        InputError: If the folder cannot be made, or another process has the lock.
    """
    made: list[Path] = []  # the deepest first
    handle = None
    while handle is None:
        try:
            missing = [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be made: {error.strerror}") from error
        made += missing
        handle = _locked_handle(folder, busy)
    _LOCKS.add(handle)
    try:
        with _locked_file(folder, busy) if os.name == "nt" else nullcontext():
            yield
    finally:
        if handle in _LOCKS:  # not in a child that was forked meanwhile
            for path in made:
                with suppress(OSError):  # not empty
                    path.rmdir()
            _LOCKS.remove(handle)
            os.close(handle)


def _locked_handle(folder: Path, busy: str | None) -> int | None:
    """A handle that has the lock until it is closed; None where another process removed the folder meanwhile."""
    if sys.platform == "win32":  # which locks no folders, but files
        return os.open(os.devnull, os.O_RDONLY)
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if busy is None else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(handle)
            if busy is not None and isinstance(error, BlockingIOError):
                raise InputError(busy) from error
            raise
    if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
        return handle
    os.close(handle)
    return None


@contextmanager
def _locked_file(folder: Path, busy: str | None) -> Iterator[None]:
    """Lock a file in the folder, as `locked` does with the folder. On Windows the file is deleted at the end."""
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(blocking=busy is None)
    except Timeout as error:
        raise InputError(busy or str(error)) from error
    try:
        yield
    finally:
        lock.release()
        if os.name == "nt":
            with suppress(OSError):  # another process has opened the file
                (folder / LOCK_FILE).unlink(missing_ok=True)


def _close_copies() -> None:
    """In a forked child, close its copies of the handles, which would keep the locks after the end of its parent."""
    for handle in _LOCKS:
        os.close(handle)
    _LOCKS.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_copies)
