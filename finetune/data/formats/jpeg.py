"""JPEG: whether the data end early, and a bound on scans. libjpeg fills missing blocks with grey and tells nobody."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

from PIL import Image, ImageChops

# A progressive picture has about ten scans. Each one is decoded at full size, so that a small file with thousands of
# them would take minutes.
MAX_SCANS = 100

_END, _SCAN = 0xD9, 0xDA
_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length
# Frames of Huffman codes: with arithmetic codes, data that end early are complete.
_HUFFMAN = (0xC0, 0xC1, 0xC2)
# The end of the coded data of a scan: a marker that is neither a stuffed byte nor a restart.
_BEHIND_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# More codes than any block has, with other bits than the zeros that libjpeg assumes.
_FILLING = b"\x55\xaa\x33\x5a" * 64


def has_too_many_scans(content: bytes) -> bool:
    """Whether there are more than MAX_SCANS scans."""
    if content.count(bytes([0xFF, _SCAN])) <= MAX_SCANS:  # pictures inside of metadata count too, so this is no proof
        return False
    return sum(1 for marker, _, _ in _segments(content) if marker == _SCAN) > MAX_SCANS


def ends_early(image: Image.Image, content: bytes, at_least: int | None) -> bool:
    """Whether the coded data of the decoded picture end before its last block.

    A missing block is middle grey. Where the last pixel is, the picture is decoded again with more data behind those of
    each scan: a complete picture stays the same.
    """
    last = image.getpixel((image.width - 1, image.height - 1))
    values = last if isinstance(last, tuple) else (last,)
    if not all(value in (127, 128) for value in values):
        return False
    filled = _filled(content)
    if filled is None:
        return False
    other = Image.open(io.BytesIO(filled), formats=("JPEG",))
    if at_least:
        other.draft(None, (at_least, at_least))
    other.load()
    return _differ(image, other)


def _filled(content: bytes) -> bytes | None:
    """The picture with more data behind those of each scan; None where that says nothing."""
    parts, position = [], 0
    for marker, start, end in _segments(content):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC, *_HUFFMAN):
            return None
        if marker == _SCAN:
            # With restarts, data are expected behind the next marker of a restart.
            restarts = len(_RESTART.findall(content, start, end))
            parts += [content[position:end], _FILLING, bytes([0xFF, 0xD0 + restarts % 8]), _FILLING]
            position = end
    return b"".join([*parts, content[position:]]) if parts else None


def _segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of the first picture; that of a scan ends behind its coded data."""
    position = 2
    while position + 4 <= len(content):
        if content[position] != 0xFF:
            position = content.find(b"\xff", position)
            if position < 0:
                return
            continue
        marker = content[position + 1]
        if marker == 0xFF or marker == 0:
            position += 1
            continue
        if marker == _END:
            return
        if marker in _ALONE:
            position += 2
            continue
        end = position + 2 + struct.unpack(">H", content[position + 2 : position + 4])[0]
        if marker == _SCAN:
            behind = _BEHIND_SCAN.search(content, end)
            end = behind.start() if behind else len(content)
        yield marker, position, end
        position = end


def _differ(image: Image.Image, other: Image.Image) -> bool:
    """Whether two pictures differ anywhere, compared in strips."""
    if (image.mode, image.size) != (other.mode, other.size):
        return True
    rows = max(1, (1 << 20) // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(image.height, top + rows))
        if ImageChops.difference(image.crop(box), other.crop(box)).getbbox(alpha_only=False):
            return True
    return False
