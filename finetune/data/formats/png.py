"""PNG: whether the compressed data hold every row. Pillow leaves missing rows black."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type of the header
# Of the seven passes of an interlaced picture: first column and row, and steps between columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Compressed bytes that are inflated at once, to at most a thousand times as many.
_PART = 1 << 12


def ends_early(image: Image.Image, content: bytes) -> bool:
    """Whether the data of the decoded picture hold fewer rows than its header says."""
    interlaced = bool(image.info.get("interlace"))
    bottom = image.crop((0, image.height - 1, image.width, image.height))
    # Where the last row is written, every row is. The data are counted only where it may not be written.
    if not interlaced and any(bottom.tobytes()):
        return False
    return not _inflates_to(content, _size(content, interlaced))


def _size(content: bytes, interlaced: bool) -> int:
    """Bytes of all rows, each with the byte of its filter."""
    width, height, depth, kind = struct.unpack(">IIBB", content[16:26])
    bits = depth * _CHANNELS.get(kind, 1)
    if not interlaced:
        return int(height * (1 + (width * bits + 7) // 8))
    total = 0
    for left, top, across, down in _PASSES:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _inflates_to(content: bytes, size: int) -> bool:
    """Whether the IDAT chunks inflate to at least `size` bytes."""
    decoder, count = zlib.decompressobj(), 0
    try:
        for part in _image_data(content):
            count += len(decoder.decompress(part))
            if count >= size or decoder.eof:
                break
    except zlib.error:  # damage behind the last row, which Pillow did not need
        pass
    return count >= size


def _image_data(content: bytes) -> Iterator[bytes]:
    """The compressed data, in parts of at most _PART bytes."""
    position = 8
    while position + 8 <= len(content):
        length, name = struct.unpack(">I4s", content[position : position + 8])
        end = position + 8 + length
        if name == b"IDAT":
            yield from (content[start : min(start + _PART, end)] for start in range(position + 8, end, _PART))
        elif name == b"IEND":
            return
        position = end + 4
