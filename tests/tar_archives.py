"""Tar archives with any members, sound and hostile ones."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def tar_of(path: Path, members: Mapping[str, bytes], kind: int = tarfile.PAX_FORMAT) -> Path:
    """An archive with these files, by name."""
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def block(name: str, *, size: int = 0, type: bytes = tarfile.REGTYPE, linkname: str = "") -> bytes:
    """The header of a member, whose size may be a lie."""
    header = tarfile.TarInfo(name)
    header.size, header.type, header.linkname = size, type, linkname
    return header.tobuf(tarfile.GNU_FORMAT)
