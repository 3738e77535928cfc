"""TIFF: bounds on tiles, whether the strips cover the picture and lie in the file."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from PIL import Image

_LENGTH, _COMPRESSION, _TILE_WIDTH, _TILE_LENGTH = 257, 259, 322, 323
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets, and counts of bytes
_JPEG = 7
# A tile may be larger than a small picture, but takes memory of its own.
_LARGEST_TILE = 1 << 22


def has_no_directory(content: bytes) -> bool:
    """Whether this is a TIFF whose directory lies behind the end of the file, or ends there."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(content[:4])
    if order is None or len(content) < 8:
        return False
    start = struct.unpack(order + "I", content[4:8])[0]
    if start + 2 > len(content):
        return True
    return int(start + 2 + 12 * struct.unpack_from(order + "H", content, start)[0]) > len(content)


def tile_is_too_large(image: Image.Image) -> bool:
    """Whether a tile has more pixels than the picture and than any writer makes."""
    tags: Any = getattr(image, "tag_v2", {})
    width, length = (tags.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    if not (isinstance(width, int) and isinstance(length, int)):
        return False
    return width * length > max(_LARGEST_TILE, image.width * image.height)


def ends_early(image: Image.Image, content: bytes) -> bool:
    """Whether strips or tiles of the picture, which is not decoded yet, are missing or behind the end of the file."""
    tiles: Sequence[Any] = getattr(image, "tile", ())
    tags: Any = getattr(image, "tag_v2", {})
    length = tags.get(_LENGTH)  # the height of the picture before it is turned upright
    if tiles and isinstance(length, int) and max(tile[1][3] for tile in tiles) < length:
        return True
    for offsets, counts in (_STRIPS, _TILES):
        places = list(zip(_numbers(tags.get(offsets)), _numbers(tags.get(counts)), strict=False))
        if any(start + count > len(content) for start, count in places):
            return True
        # The streams of libjpeg are filled with grey where they end early. A complete one has its end, and maybe a
        # byte of padding.
        if tags.get(_COMPRESSION) == _JPEG and any(
            b"\xff\xd9" not in content[max(start, start + count - 4) : start + count] for start, count in places
        ):
            return True
    return False


def _numbers(value: Any) -> Sequence[int]:
    if isinstance(value, int):
        return (value,)
    return value if isinstance(value, tuple) else ()
