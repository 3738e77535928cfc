"""A picture of a collection: its key, and where its bytes are."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from finetune.data.images import read_content
from finetune.errors import UnreadablePicture

# Bytes of a member of an archive that are read as one picture. An archive from elsewhere may claim any size.
MOST_MEMBER_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """A picture that is a file, or a part of one.

    Attributes:
        key: Name of the picture in the collection.
        path: The file.
        offset: Where the picture begins in the file; None where it is the whole file.
        size: Its length in bytes; -1 where it is the whole file.
        reason: Why it cannot be read, where that is known in advance.
    """

    key: str
    path: str
    offset: int | None = None
    size: int = -1
    reason: str | None = None

    def read(self) -> bytes:
        """The content of the picture's file. UnreadablePicture where it cannot be read."""
        if self.reason is not None:
            raise UnreadablePicture(self.key, self.reason)
        if "\0" in self.path:
            raise UnreadablePicture(self.key, "a path with a null byte")
        if self.offset is None:
            return read_content(Path(self.path))
        if self.size > MOST_MEMBER_BYTES:
            raise UnreadablePicture(self.key, f"has {self.size:,} bytes, and at most {MOST_MEMBER_BYTES:,} are read")
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or self.offset + self.size > status.st_size:
                    raise UnreadablePicture(self.key, "cut short")
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as error:
            raise UnreadablePicture(self.key, (error.strerror or str(error)).lower()) from error

    def __str__(self) -> str:
        return self.key
