"""Files of pictures: as Pillow writes them, and PNGs with any header and data."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from PIL import Image

from finetune.data.images import Picture, read_image
from finetune.errors import UnreadablePicture


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """The content of a file with `picture`."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def reason(source: Picture, **options: int) -> str:
    """Why a picture is unreadable."""
    with pytest.raises(UnreadablePicture) as caught:
        read_image(source, **options)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, rows: bytes, *, kind: int = 0, depth: int = 8, interlaced: int = 0, more: bytes = b""
) -> bytes:
    """A PNG with these rows, each with its filter byte, however many they are. more: Chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    data = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + data + chunk(b"IEND", b"")
