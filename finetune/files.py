"""Files written whole or not at all: temporary name, synced, renamed."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import platformdirs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from finetune.errors import InputError

T = TypeVar("T")

_LOCKS: set[int] = set()  # this process's handles of folders that it has locked
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of file systems without locks
_LOCK_FILE = ".lock"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file to write beside `path`, which it replaces at the end: a crash leaves the old file or the new."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made: {error.strerror}") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be written: {error}; make room for it and start again") from error
    finally:
        temporary.unlink(missing_ok=True)
    if os.name != "nt":  # Windows syncs no folders
        _sync(path.parent)


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

    lock = FileLock(folder / _LOCK_FILE)
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
                (folder / _LOCK_FILE).unlink(missing_ok=True)


def _close_copies() -> None:
    """In a forked child, close its copies of the handles, which would keep the locks after the end of its parent."""
    for handle in _LOCKS:
        os.close(handle)
    _LOCKS.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_close_copies)


def write_text(path: Path, text: str) -> None:
    """UTF-8; what a file name of another encoding leaves in `text` is written as a backslash escape."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header that names these `columns`, and maybe others. InputError when it is missing
    or damaged."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, there = list(reader), set(reader.fieldnames or ())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is no CSV table ({error}); it may be damaged") from error
    lacking = [column for column in columns if column not in there]
    if lacking:
        raise InputError(f"{path} has no column {lacking[0]}; it may be damaged")
    if any(row[column] is None for row in rows for column in columns):
        raise InputError(f"{path} has a row that is cut short; it may be damaged")
    return rows


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file; `metadata` travels in its header, so that both change in one step."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.touch()
        permissions = temporary.stat().st_mode
        save_file(contiguous, temporary, dict(metadata or {}))
        temporary.chmod(permissions)  # those of any new file; safetensors makes it private


def read_json(path: Path) -> Any:
    """The JSON value in `path`. InputError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); it may be damaged") from error


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def as_type(value: Any, kind: type[T], source: str) -> T:
    """A JSON value as a dataclass, with the type and the bounds of every field checked; unknown keys are ignored.

    Args:
        value: What `read_json` gave.
        kind: A dataclass. Its annotations are the types; `typing.Annotated` with `msgspec.Meta` adds bounds.
        source: Name of the file, for the error.

    Raises:
        InputError: If a field is missing or wrong; the message names `source` and the field.
    """
    try:
        return msgspec.convert(value, kind)
    except (ValueError, RecursionError) as error:  # a lone surrogate makes msgspec raise UnicodeEncodeError
        reason, _, field = str(error).replace("`", "").partition(" - at $.")
        where = f"{field}: " if field else ""
        raise InputError(f"{source} may be damaged: {where}{reason[:1].lower()}{reason[1:]}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file. InputError when it is missing or damaged."""
    return read_tensors_and_metadata(path)[0]


def read_tensors_and_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a safetensors file and its header's metadata. InputError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is not a valid safetensors file ({error}); it may be damaged") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
