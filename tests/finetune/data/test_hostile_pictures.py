"""Pictures made to cost memory or time, to look complete, or to make libraries print."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from made_pictures import chunk, encoded, png, reason
from PIL import Image, ImageFile

from finetune.data import images
from finetune.data.formats.jpeg import MAX_SCANS
from finetune.data.images import BYTES_PER_PIXEL, read_image
from finetune.errors import UnreadablePicture

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))


def with_tag(content: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a tag that it has."""
    changed = bytearray(content)
    start = struct.unpack_from("<I", content, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        if struct.unpack_from("<H", content, entry)[0] == tag:
            struct.pack_into("<HII", changed, entry + 2, 4, 1, value)
            return bytes(changed)
    raise AssertionError(f"no tag {tag}")


def taller(content: bytes) -> bytes:
    """A JPEG whose header claims the double height."""
    start = next(content.find(b"\xff" + frame) for frame in (b"\xc0", b"\xc2") if b"\xff" + frame in content)
    height = struct.unpack_from(">H", content, start + 5)[0]
    return content[: start + 5] + struct.pack(">H", 2 * height) + content[start + 7 :]


# ---- data that end early

JPEG = encoded(NOISE, "JPEG")
PROGRESSIVE = encoded(NOISE, "JPEG", progressive=True)
GREY_ROWS = b"\0" + b"\x40" * 96

CUT: dict[str, Callable[[], bytes]] = {
    "png with a taller header": lambda: png(96, 65, 64 * GREY_ROWS),
    "png of 80 megapixels": lambda: png(9000, 8900, 20 * (b"\0" + b"\x40" * 9000)),
    "png that lacks the end of its last row": lambda: png(96, 64, (64 * GREY_ROWS)[:-1]),
    "interlaced png": lambda: png(96, 64, bytes(60 * 97), interlaced=1),
    "jpeg with a taller header": lambda: taller(JPEG),
    "jpeg with a taller header, reduced": lambda: taller(encoded(NOISE.resize((960, 640)), "JPEG")),
    "progressive jpeg with a taller header": lambda: taller(PROGRESSIVE),
    "grey jpeg with a taller header": lambda: taller(encoded(NOISE.convert("L"), "JPEG")),
    "cmyk jpeg with a taller header": lambda: taller(encoded(NOISE.convert("CMYK"), "JPEG")),
    "jpeg with an end in the middle": lambda: JPEG[: len(JPEG) * 2 // 3] + b"\xff\xd9",
    "jpeg with restarts": lambda: taller(encoded(NOISE, "JPEG", restart_marker_rows=1)),
    "gif with a taller header": lambda: (
        (gif := encoded(NOISE.quantize(), "GIF"))[:8]
        + b"\x80\0"
        + gif[10:].replace(b"\x2c\0\0\0\0\x60\0\x40\0", b"\x2c\0\0\0\0\x60\0\x80\0")
    ),
    "bmp with a taller header": lambda: (bmp := encoded(NOISE, "BMP"))[:22] + struct.pack("<i", 128) + bmp[26:],
    "ppm with a taller header": lambda: encoded(NOISE, "PPM").replace(b"96 64", b"96 128"),
    "plain ppm": lambda: b"P3 10 10 255 " + b"1 " * 299,
    "webp": lambda: (webp := encoded(NOISE, "WEBP"))[: len(webp) // 2],
    "lossless webp": lambda: encoded(NOISE, "WEBP", lossless=True)[:-20],
    "tiff with a taller header": lambda: with_tag(encoded(NOISE, "TIFF"), 257, 128),
    "tiff with fewer rows in a strip": lambda: with_tag(encoded(NOISE, "TIFF"), 278, 3),
    "lzw tiff with a taller header": lambda: with_tag(encoded(NOISE, "TIFF", compression="tiff_lzw"), 257, 128),
    "packed tiff with a short strip": lambda: with_tag(encoded(NOISE, "TIFF", compression="packbits"), 279, 100),
    "jpeg tiff with a short strip": lambda: with_tag(encoded(NOISE, "TIFF", compression="jpeg"), 279, 3000),
    "tiff without its directory": lambda: encoded(NOISE, "TIFF", compression="tiff_lzw")[:-60],
}


@pytest.mark.parametrize("kind", CUT)
def test_data_that_end_early_are_cut_short(kind: str) -> None:
    assert reason(CUT[kind](), at_least=40) == "cut short"


@pytest.mark.parametrize("colour", ["black", (128, 128, 128), "white"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "CMYK"])
def test_complete_pictures_of_one_colour_are_read(mode: str, colour: str | tuple[int, ...]) -> None:
    picture = Image.new("RGB", (97, 65), colour).convert(mode)
    for kind, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("TIFF", {}),
        ("TIFF", {"compression": "jpeg"}),
        ("GIF", {}),
        ("WEBP", {}),
    ):
        fits = mode in {"PNG": ("L", "RGB", "RGBA", "P", "1"), "TIFF": ("L", "RGB")}.get(kind, ("L", "RGB", "CMYK"))
        if fits and (kind, mode) not in (("GIF", "CMYK"), ("WEBP", "CMYK")):
            for at_least in (None, 10):
                read_image(encoded(picture, kind, **options), at_least=at_least)


def test_black_interlaced_and_16_bit_pngs_are_read() -> None:
    sizes = ((1, 1), (5, 1), (1, 5), (9, 7), (16, 16))
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    for width, height in sizes:
        passes = [(len(range(x, width, dx)), len(range(y, height, dy))) for x, y, dx, dy in steps]
        rows = b"".join(bytes(down * (1 + across)) for across, down in passes if across and down)
        assert read_image(png(width, height, rows, interlaced=1)).size == (width, height)
        if len(rows) > 2:
            assert reason(png(width, height, rows[:-1], interlaced=1)) == "cut short"
        assert read_image(png(width, height, bytes(height * (1 + 2 * width)), depth=16)).size == (width, height)
        assert read_image(png(width, height, bytes(height * (1 + (width + 7) // 8)), depth=1)).size == (width, height)


# ---- cost


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA", "CMYK", "I", "F", "I;16"])
def test_parts_of_a_picture_are_converted_as_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    if mode in ("I", "F", "I;16"):
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        picture = Image.fromarray((random.random((31, 47)) * 5000).astype(kind))
    else:
        picture = NOISE.convert(mode)
    whole = read_image(picture)
    for part in (1, 10, 100, 1000):
        monkeypatch.setattr(images, "_PART", part)
        assert read_image(picture).tobytes() == whole.tobytes()
        if mode in ("F", "I;16"):
            assert read_image(np.asarray(picture)).tobytes() == whole.tobytes()


# Not ru_maxrss of getrusage: a new process inherits it from the one that started it.
_PEAK = """
import sys
from pathlib import Path
from finetune.data.images import read_image
def peak():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
paths = sys.argv[1:]
read_image(paths[0])
before = peak()
for path in paths[1:]:
    read_image(path, at_least=224)
print((peak() - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the peak")
@pytest.mark.parametrize(("kind", "bytes_per_pixel"), [("png", 8), ("webp", BYTES_PER_PIXEL)])
def test_memory_is_a_multiple_of_the_pixels(kind: str, bytes_per_pixel: int, tmp_path: Path) -> None:
    side = 4000
    if kind == "png":
        (tmp_path / "0.png").write_bytes(png(side, side, side * (b"\0" + b"\x12\x34" * side), depth=16))
        (tmp_path / "1.png").write_bytes(png(side, side, side * (b"\0" + b"\x12\x34\x56\x80" * side), kind=6))
        table = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\x80\xff")
        (tmp_path / "2.png").write_bytes(png(side, side, side * (b"\0" + b"\1" * side), kind=3, more=table))
        Image.new("F", (side, side), 0.5).save(tmp_path / "3.tif", compression="tiff_adobe_deflate")
    else:
        Image.new("RGB", (side, side)).save(tmp_path / "0.webp", lossless=True, method=0)
    pictures = sorted(tmp_path.iterdir())
    NOISE.save(tmp_path / f"small.{kind}")
    command = [sys.executable, "-c", _PEAK, tmp_path / f"small.{kind}", *pictures]
    found = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert int(found.stdout) < bytes_per_pixel * side * side + 50_000_000, "and 50 MB for parts and their values"


def test_a_large_jpeg_is_read_if_it_is_decoded_small_enough() -> None:
    content = encoded(NOISE.resize((400, 300)), "JPEG")
    assert read_image(content, at_least=50, max_pixels=60_000).size == (100, 75)
    assert "400x300 is 0.12 megapixels" in reason(content, max_pixels=60_000)
    assert "400x300 is 0.12 megapixels" in reason(content, at_least=50, max_pixels=59_999)
    assert "400x300 is 0.12 megapixels" in reason(content, at_least=300, max_pixels=60_000)


def test_a_jpeg_of_too_many_scans_is_refused() -> None:
    start = PROGRESSIVE.rindex(b"\xff\xda")
    scan = PROGRESSIVE[start:-2]
    assert (
        reason(PROGRESSIVE[:start] + scan * (MAX_SCANS + 1) + b"\xff\xd9") == f"damaged (more than {MAX_SCANS} scans)"
    )
    metadata = b"\xff\xe2" + struct.pack(">H", 2 + 2 * 200) + b"\xff\xda" * 200  # no scans, but what looks like them
    assert read_image(JPEG[:2] + metadata + JPEG[2:]).size == NOISE.size


def test_a_tile_larger_than_its_picture_is_refused() -> None:
    tags = [
        (256, 64),
        (257, 64),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 65520),
        (323, 65520),
        (324, 8),
        (325, 9),
    ]
    data = zlib.compress(bytes(64))[:9].ljust(10, b"\0")
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 18) + data + directory + bytes(4)
    assert Image.open(io.BytesIO(content)).size == (64, 64)
    assert reason(content) == "damaged (a tile is larger than the picture)"


@pytest.mark.parametrize("name", [b"iCCP", b"zTXt"])
def test_metadata_that_inflate_without_end_take_no_memory(name: bytes) -> None:
    bomb = chunk(name, b"x\0\0" + zlib.compress(bytes(50_000_000), 9))
    try:
        read_image(png(96, 64, 64 * GREY_ROWS, more=bomb))
    except UnreadablePicture as error:
        assert "too large" in error.reason  # noqa: PT017


# ---- messages of libraries

LZW = encoded(NOISE, "TIFF", compression="tiff_lzw")
SPOILED = LZW[:20] + b"\xff" * 20 + LZW[40:]


def test_libtiff_prints_nothing_and_its_reason_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert reason(SPOILED) == "damaged (Using code not yet in table)"
    with pytest.raises(OSError, match="decoder error"):
        Image.open(io.BytesIO(SPOILED)).load()
    assert capfd.readouterr().err.count("Using code not yet in table") == 1, "a host's own messages are still printed"


def test_threads_get_the_messages_of_their_own_pictures(capfd: pytest.CaptureFixture[str]) -> None:
    reasons: list[str] = []
    deflated = encoded(NOISE, "TIFF", compression="tiff_adobe_deflate")
    other = deflated[:20] + b"\xff" * 20 + deflated[40:]

    def read(content: bytes, words: str) -> None:
        for _ in range(30):
            if words not in reason(content):
                reasons.append(reason(content))

    cases = ((SPOILED, "Using code"), (other, "Decoding error")) * 2
    threads = [threading.Thread(target=read, args=case) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reasons == []
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("error", [AssertionError(), IndexError(), ValueError(" ")])
def test_an_error_without_words_is_told_in_words(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(picture: ImageFile.ImageFile) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert reason(encoded(NOISE, "PNG")) == "damaged"
