"""The files of an archive, zipped or unpacked. A zip unlike any official one is refused before its files are read."""

from __future__ import annotations

import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from finetune.errors import InputError

LARGEST_ARCHIVE = 100_000_000  # bytes; the official ones have less than 20 million
_LARGEST = 1_000_000  # bytes of a file; the pictures have a few hundred
_LARGEST_TOTAL = 200_000_000  # bytes of all files
_MOST = 100_000  # files; the official ones have less than 20,000

# zipfile inflates the others without a bound on what comes out.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1  # bit of the flags
_HEADER = 30  # least bytes of the header before the data of each file


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file of a zip or an unpacked folder, sorted by name, without hidden files.

    InputError if the archive is damaged, or a zip that would be unsafe to unpack: no official archive is.
    """
    return _unpacked(path) if path.is_dir() else _zipped(path)


def _zipped(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.stat().st_size > LARGEST_ARCHIVE:
            raise InputError(f"{path} is larger than {LARGEST_ARCHIVE:,} bytes; this is not the official archive")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check(path, members, archive.start_dir)
            for member in sorted(members, key=lambda member: member.filename):
                if not member.is_dir() and _shown(PurePosixPath(member.filename)):
                    yield member.filename, _content(archive, member)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: a name in it is not the UTF-8 that it claims to be") from error
    except Exception as error:  # zipfile raises arbitrary errors for damaged files
        raise InputError(f"{path} cannot be read: {error}; it may be damaged") from error


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    # Not `archive.read`, which inflates everything before it compares the size with the one that is claimed.
    with archive.open(member) as file:
        content = file.read(member.file_size + 1)
    if len(content) != member.file_size:
        raise zipfile.BadZipFile(f"{member.filename!r} has not the {member.file_size:,} bytes that it claims")
    return content


def _check(path: Path, members: Sequence[zipfile.ZipInfo], end: int) -> None:
    """InputError for an archive that would be unsafe to unpack. end: Where its data end."""
    for member in members:
        _check_member(path, member)
    (name, count), *_ = Counter(member.filename for member in members).most_common(1) or [("", 0)]
    reason = None
    if count > 1:
        reason = f"its member {name!r} occurs {count} times"
    elif len(members) > _MOST:
        reason = f"it has {len(members):,} members"
    elif sum(member.file_size for member in members) > _LARGEST_TOTAL:
        reason = f"its members have more than {_LARGEST_TOTAL:,} bytes"
    else:
        # Overlapping members would unpack the same data again and again.
        in_order = sorted(members, key=lambda member: member.header_offset)
        starts = [*(member.header_offset for member in in_order[1:]), end]
        for member, following in zip(in_order, starts, strict=False):
            if member.header_offset < 0 or member.header_offset + _HEADER + member.compress_size > following:
                reason = f"its member {member.orig_filename!r} overlaps what follows"
                break
    if reason:
        raise InputError(f"{path}: {reason}; this is not the official archive")


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    """InputError for a member that is unsafe to unpack, by its name, kind, compression or size."""
    # zipfile changes `filename`: it cuts it at a zero byte, and turns separators into slashes.
    name = member.orig_filename
    steps = re.split(r"[/\\]", name)
    kind = stat.S_IFMT(member.external_attr >> 16)
    reason = None
    if "\0" in name or steps[0] == "" or ".." in steps or re.match("[A-Za-z]:", name):
        reason = "leads out of the archive"
    elif kind == stat.S_IFLNK:
        reason = "is a link"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        reason = "is neither a file nor a folder"
    elif member.flag_bits & _ENCRYPTED:
        reason = "is encrypted"
    elif member.compress_type not in _METHODS:
        reason = f"is compressed by method {member.compress_type}"
    elif member.file_size > _LARGEST:
        reason = f"is {member.file_size:,} bytes large"
    if reason:
        raise InputError(f"{path}: its member {name!r} {reason}; this is not the official archive")


def _unpacked(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(path for kind in ("*.png", "*.txt") for path in folder.rglob(kind)):
        name = path.relative_to(folder.parent)
        if _shown(name):
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):  # reading a pipe would never end
                    raise InputError(f"{path} is not a file")
                if status.st_size > _LARGEST:
                    raise InputError(f"{path} is {status.st_size:,} bytes large; this is not the official archive")
                yield name.as_posix(), path.read_bytes()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _shown(name: PurePosixPath | Path) -> bool:
    return not any(part.startswith(".") or part == "__MACOSX" for part in name.parts)
