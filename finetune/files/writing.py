"""Files written whole or not at all: temporary name, synced, renamed."""

from __future__ import annotations

import errno
import glob
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from finetune.errors import InputError

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems that sync no folders


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write beside `path`, which it replaces at the end: a crash leaves the old file or the new.

    What killed processes have left of earlier ones is removed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {error.strerror}") from error
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be written: {error}; make room for it and start again") from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent, path)


def write_text(path: Path, text: str) -> None:
    """UTF-8; what a file name of another encoding leaves in `text` is written as a backslash escape."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """The text of a JSON file."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file; `metadata` travels in its header, so that both change in one step."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        permissions = temporary.stat().st_mode
        save_file(contiguous, temporary, dict(metadata or {}))
        temporary.chmod(permissions)  # those of any new file; safetensors makes it private


def sync_folder(folder: Path, renamed: Path | None = None) -> None:
    """Sync a folder in which files were renamed, so that their new names survive a crash. renamed: the only one."""
    if os.name == "nt":
        return  # Windows syncs no folders
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise InputError(
                f"{renamed or folder} may be lost if the machine stops: {error}; check the disk and start again"
            ) from error


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes of this machine have left beside `path`."""
    if os.name == "nt":
        return  # where asking for a process would end it
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        number = left.suffix[1:]
        if number.isdecimal() and left.name == f".{path.name}.{number}" and not _runs(int(number)):
            with suppress(OSError):  # of another user
                left.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        pass
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
