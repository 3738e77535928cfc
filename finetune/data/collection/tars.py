"""The pictures in a tar archive as a stream, such as the shards of a WebDataset: one pass, nothing is extracted."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from finetune.data.collection.stored import StoredPicture
from finetune.data.images import PICTURE_EXTENSIONS

# Bytes of a header that holds a long name. Names of this length are made to take memory.
_MOST_NAME_BYTES = 1 << 20
_BLOCK = tarfile.BLOCKSIZE
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class _DamagedError(Exception):
    """Why an archive cannot be read to its end."""


@dataclass(frozen=True)
class _Member:
    """A member of an archive: its name, its type, and where its content is."""

    name: str
    type: bytes
    offset: int
    size: int


def pictures_in(path: Path, key: str) -> Iterator[StoredPicture]:
    """The pictures in a tar archive, in its order, with the keys "key/member".

    A member that is a link or a device, or whose name leads outside, is an unreadable picture. So is, under the key of
    the archive itself, an archive that is damaged or cut short, after the members before the damage, and an archive
    with a name twice, of which the first one counts.

    Args:
        path: The archive, not compressed.
        key: Its name in the collection.
    """
    names: set[int] = set()
    repeated, reasons = 0, list[str]()
    try:
        for member in _members(path):
            if os.path.splitext(member.name)[1].lower() not in PICTURE_EXTENSIONS or member.type == tarfile.DIRTYPE:
                continue
            name = member.name.removeprefix("./")
            if hash(name) in names:
                repeated += 1
                continue
            names.add(hash(name))
            found = f"{key}/{name}"
            yield StoredPicture(found, str(path), member.offset, member.size, _refusal(name, member.type))
    except _DamagedError as error:
        reasons.append(f"{error}; {len(names):,} pictures before that are read")
    if repeated:
        reasons.append(f"{repeated:,} names are there again; the first of each is read")
    if reasons:
        yield StoredPicture(key, str(path), reason="; ".join(reasons))


def _refusal(name: str, kind: bytes) -> str | None:
    """Why a member with the name of a picture is not read."""
    if name.startswith(("/", "\\")) or name[1:2] == ":" or ".." in name.replace("\\", "/").split("/"):
        return "its name leads outside of the archive"
    if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        return "a link in the archive, which is not followed"
    return None if kind in (tarfile.REGTYPE, tarfile.AREGTYPE) else "not a file"


def _members(path: Path) -> Iterator[_Member]:
    """The members of an archive. _DamagedError where it ends early or makes no sense."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would never end
            raise _DamagedError("not a file")
        with path.open("rb") as file:
            yield from _members_in(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise _DamagedError((error.strerror or str(error)).lower()) from error


def _members_in(file: BinaryIO, end: int) -> Iterator[_Member]:
    at, given = 0, dict[str, str]()  # given: name and size by headers before the member's own
    if not end:
        raise _DamagedError("empty file")
    while at < end:
        file.seek(at)
        block = file.read(_BLOCK)
        if not any(block):
            return
        header = _header(block, at)
        content = at + _BLOCK
        more = header.type in (*_PAX, *_LONG, tarfile.XGLTYPE)  # a header before the member's own
        claimed = header.size if more else given.get("size", header.size)
        size = 0 if header.type in _WITHOUT_CONTENT else _size(claimed, at)
        at = content + -(-size // _BLOCK) * _BLOCK
        if more:
            if size > _MOST_NAME_BYTES:
                raise _DamagedError(f"a name of {size:,} bytes at byte {content - _BLOCK:,}")
            text = file.read(size)
            if len(text) < size:
                raise _DamagedError("cut short")
            given |= _given(header.type, text, content)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE or any(name.startswith("GNU.sparse.") for name in given):
            raise _DamagedError(f"a file with holes at byte {content - _BLOCK:,}, which is not read")
        if content + size > end:
            raise _DamagedError("cut short")
        yield _Member(given.get("path", header.name), header.type, content, size)
        given = {}
    if given:
        raise _DamagedError("cut short")


def _header(block: bytes, at: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        if len(block) < _BLOCK:
            raise _DamagedError("cut short") from error
        if at:
            raise _DamagedError(f"damaged at byte {at:,}") from error
        compressed = block.startswith(_COMPRESSED)
        raise _DamagedError("compressed; decompress it" if compressed else "not a tar archive") from error


def _size(value: str | int, at: int) -> int:
    """A size, of the member's header or of the one before it. A negative one would lead back for ever."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) < 20):
        raise _DamagedError(f"damaged at byte {at:,}")
    size = int(value)
    if size < 0:
        raise _DamagedError(f"damaged at byte {at:,}")
    return size


def _given(kind: bytes, text: bytes, at: int) -> dict[str, str]:
    """What a header with long values says about the member after it."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": text.split(b"\0", 1)[0].decode(errors="surrogateescape")}
    if kind not in _PAX:
        return {}
    found = {}
    while text.strip(b"\0"):  # records "length key=value\n", whose length counts the record itself
        length, _, rest = text.partition(b" ")
        if not (length.isdigit() and len(length) < 8 and len(length) + 1 < int(length) <= len(text)):
            raise _DamagedError(f"damaged at byte {at:,}")
        record = rest[: int(length) - len(length) - 2]
        name, _, value = record.decode(errors="surrogateescape").partition("=")
        found[name] = value
        text = text[int(length) :]
    return found
