"""Mutated pictures of every format: a picture or one error, and no line of any library."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
from made_pictures import encoded
from PIL import Image

from finetune.data.images import read_image
from finetune.errors import UnreadablePicture

PER_KIND = 10  # 200 pictures in all
_EXTREMES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\x80"]


def pictures() -> Iterator[bytes]:
    random = np.random.default_rng(0)
    colour = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
    deep = Image.fromarray(random.integers(0, 5000, (24, 32)).astype(np.uint16))
    floats = Image.fromarray(random.random((24, 32)).astype(np.float32))
    exif = Image.Exif()
    exif[274] = 6
    for picture, kind, options in (
        (colour, "JPEG", {"exif": exif}),
        (colour, "JPEG", {"progressive": True}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "PNG", {"exif": exif}),
        (colour.quantize(16), "PNG", {"transparency": bytes(16)}),
        (deep, "PNG", {}),
        (colour, "PNG", {"save_all": True, "append_images": [colour]}),
        (colour.quantize(), "GIF", {"save_all": True, "append_images": [colour.rotate(90).quantize()]}),
        (colour, "BMP", {}),
        (colour.quantize(), "BMP", {}),
        (colour, "PPM", {}),
        (colour.convert("1"), "PPM", {}),
        (colour, "WEBP", {"exif": exif}),
        (colour.convert("RGBA"), "WEBP", {"lossless": True}),
        (colour, "TIFF", {"exif": exif}),
        (colour, "TIFF", {"compression": "tiff_lzw"}),
        (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (floats, "TIFF", {"compression": "packbits"}),
        (colour, "TIFF", {"compression": "jpeg"}),
        (colour.convert("1"), "TIFF", {"compression": "group4"}),
    ):
        yield encoded(picture, kind, **options)


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    for _ in range(random.integers(1, 5)):
        reach = int(min(len(changed), random.choice([40, 300, 1 << 20])))
        place = int(random.integers(0, max(1, reach)))
        how = random.integers(5)
        if how == 0:
            changed[place : place + 1] = random.bytes(1)
        elif how == 1:
            extreme = _EXTREMES[random.integers(len(_EXTREMES))]
            changed[place : place + len(extreme)] = extreme
        elif how == 2:
            del changed[place : place + int(random.integers(1, 60))]
        elif how == 3:
            changed[place:place] = changed[place : place + int(random.integers(1, 60))]
        else:
            del changed[len(changed) - int(random.integers(1, 1 + len(changed) // 2)) :]
    return bytes(changed)


def test_a_mutated_picture_is_a_picture_or_unreadable_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    kinds, unreadable = list(pictures()), 0
    for content in kinds:
        for _ in range(PER_KIND):
            began = time.process_time()
            try:
                assert read_image(mutated(content, random), at_least=16, max_pixels=1_000_000).mode == "RGB"
            except UnreadablePicture as error:
                unreadable += 1
                assert error.reason.isprintable()  # noqa: PT017
            assert time.process_time() - began < 2
    assert capfd.readouterr() == ("", "")
    assert unreadable > len(kinds) * PER_KIND // 4
