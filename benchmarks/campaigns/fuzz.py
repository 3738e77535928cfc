"""Mutated pictures of every format that is read: crashes, hangs, memory, and another picture than a second decoder's.

The second decoder is OpenCV (`pip install opencv-python-headless`); without it, pictures are not compared.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import random
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from campaigns.attempts import Outcome, Workshop, complaint, emptied, forked
from campaigns.mutations import mutate_bytes

BATCH = 50  # pictures of an attempt
SECONDS = 2.0  # of CPU time for a picture
MEMORY = 600 << 20  # bytes for a batch, beyond a batch of whole pictures
FAR = 24.0  # mean difference of grey values from the second decoder


class Fuzz:
    """Batches of pictures through the reader; every tenth also through `inspect`, `predict` and `embed`."""

    total = 200

    def __init__(self, shop: Workshop):
        self.shop = shop
        self.folder = shop.scratch / "mutated"
        self.seeds = seeds()
        self.run = shop.scratch / "a run"
        self.second = importlib.util.find_spec("cv2") is not None

    def attempt(self, number: int) -> list[Outcome]:
        draw = random.Random(number)
        emptied(self.folder)
        for position in range(BATCH):
            name, content = self.seeds[draw.randrange(len(self.seeds))]
            for _ in range(draw.choice((1, 1, 2, 5))):
                content = _changed(name, content, draw)
            (self.folder / f"{position:03d}-{name}").write_bytes(content)
        found = self._read()
        if not self.second:
            found.append(Outcome("second decoder", skipped="cv2 is not installed"))
        return found + (self._commands() if number % 10 == 9 else [])

    def _read(self) -> list[Outcome]:
        paths = sorted(self.folder.iterdir())
        answer = forked(lambda: _read_all(paths))
        rows = {row["name"]: row for row in map(json.loads, answer.out.splitlines())}
        if self.second:  # in a fork of its own, as OpenCV's libraries print too
            for row in map(json.loads, forked(lambda: _compare_all(paths)).out.splitlines()):
                rows.get(row["name"], {}).update(row)
        found = [_judged(path.name, rows[path.name]) for path in paths if path.name in rows]
        missing = [path.name for path in paths if path.name not in rows]
        if missing:
            why = complaint(answer, (0,)) or answer.err[-200:]
            found.append(Outcome(f"read {_format(missing[0])}", f"{missing[0]}: {why}"))
        elif answer.err.strip():
            found.append(Outcome("lines on stderr", answer.err.strip().splitlines()[-1][:200]))
        if answer.peak > _usual_peak() + MEMORY:
            found.append(Outcome("memory of a batch", f"{answer.peak >> 20} MB"))
        return found

    def _commands(self) -> list[Outcome]:
        if not self.run.exists():
            words = ["finetune", "fit", self.shop.pictures, "--out", self.run, "--strategy", "head", "--device", "cpu"]
            self.shop.prepare([*words, "--backbone", "fewtune_conv4"])
        index = self.shop.scratch / "index of mutated"
        jobs: dict[str, list[object]] = {
            "predict": ["finetune", "predict", self.run, self.folder, "--device", "cpu"],
            "embed": ["fewshot", "embed", self.folder, "--out", index, "--device", "cpu"],
            "inspect": ["finetune", "inspect", self.folder.parent, "--backbone", "fewtune_conv4", "--device", "cpu"],
        }
        found = []
        for job, words in jobs.items():
            answer = self.shop.forked(words)
            problem = complaint(answer)
            if not problem and "\x1b" in answer.out + answer.err:
                problem = "an escape sequence is printed"
            found.append(Outcome(job, problem))
        return found


def _read_all(paths: list[Path]) -> None:
    """Read in a fork; a line of JSON for each picture, so that a crash leaves the lines before it."""
    from finetune.data.images import read_image
    from finetune.errors import UnreadablePicture

    logging.getLogger("PIL").addHandler(logging.NullHandler())  # as the commands do
    for path in paths:
        row: dict[str, Any] = {"name": path.name}
        began = time.process_time()
        try:
            row["size"] = read_image(path, at_least=224).size
        except UnreadablePicture as error:
            row["reason"] = error.reason
        row["seconds"] = time.process_time() - began
        print(json.dumps(row), flush=True)


def _compare_all(paths: list[Path]) -> None:
    """The mean difference from the second decoder, where both read a picture of one size."""
    from finetune.data.images import read_image
    from finetune.errors import UnreadablePicture

    os.environ["OPENCV_LOG_LEVEL"] = "SILENT"
    import cv2  # type: ignore[import-not-found, unused-ignore]

    for path in paths:
        if _format(path.name) not in ("png", "bmp", "ppm", "pgm", "jpg"):
            continue
        try:
            picture = read_image(path)
            other = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        except (UnreadablePicture, cv2.error):
            continue
        with warnings.catch_warnings(action="ignore"), Image.open(path) as opened:
            # The second decoder does not put transparency on white, and scales 16 bits otherwise.
            if opened.has_transparency_data or opened.mode not in ("1", "L", "P", "RGB"):
                continue
        if other is not None and other.shape[:2] == (picture.height, picture.width):
            ours = np.asarray(picture, dtype=np.float32)
            far = float(np.abs(ours - other[..., ::-1].astype(np.float32)).mean())
            print(json.dumps({"name": path.name, "far": far}), flush=True)


def _judged(name: str, row: dict[str, Any]) -> Outcome:
    group = f"read {_format(name)}"
    if row["seconds"] > SECONDS:
        return Outcome(group, f"{name}: {row['seconds']:.1f} s of CPU")
    reason = row.get("reason")
    if reason is not None and ("Error)" in reason or not reason.isprintable() or len(reason) > 200):
        return Outcome(group, f"{name}: reason not in words: {reason!r}"[:250])
    if (row.get("far") or 0.0) > FAR:
        return Outcome(group, f"{name}: differs from the second decoder by {row['far']:.0f} grey values")
    return Outcome(group)


def _format(name: str) -> str:
    return name.rpartition(".")[2]


_PEAK: list[int] = []


def _usual_peak() -> int:
    """Peak of a fork that reads nothing."""
    if not _PEAK:
        _PEAK.append(forked(lambda: __import__("finetune.data.images")).peak)
    return _PEAK[0]


def _changed(name: str, content: bytes, draw: random.Random) -> bytes:
    """Bytes changed; or a PNG's header or chunk, signed again."""
    if name.endswith(".png") and draw.random() < 0.5 and len(content) > 40:
        data = bytearray(content)
        what = draw.choice(("size", "depth", "chunk"))
        if what == "size":
            data[16:24] = struct.pack(">II", *(draw.choice((0, 1, 3, 64, 9000, 2**16, 2**31 - 1)) for _ in range(2)))
        elif what == "depth":
            data[24 + draw.randrange(5)] = draw.randrange(256)
        else:
            text = draw.choice((b"tEXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"gAMA"))
            body = draw.randbytes(draw.choice((0, 3, 200)))
            data[33:33] = struct.pack(">I", len(body)) + text + body + struct.pack(">I", zlib.crc32(text + body))
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        return bytes(data)
    return mutate_bytes(content, draw)[1]


def seeds() -> list[tuple[str, bytes]]:
    """Small whole pictures of every format and mode that is read."""
    random_ = np.random.default_rng(0)
    pixels = np.kron(random_.integers(0, 256, (8, 10, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    rgb = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[274] = 6
    deep = Image.fromarray(np.arange(4800, dtype=np.uint16).reshape(60, 80) * 13)
    floats = Image.fromarray(random_.random((40, 50), dtype=np.float32))
    ways: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("rgb.jpg", rgb, {}), ("grey.jpg", rgb.convert("L"), {}), ("cmyk.jpg", rgb.convert("CMYK"), {}),
        ("progressive.jpg", rgb, {"progressive": True}), ("turned.jpg", rgb, {"exif": turned}),
        ("rgb.png", rgb, {}), ("alpha.png", rgb.convert("RGBA"), {}), ("palette.png", rgb.quantize(16), {}),
        ("bits.png", rgb.convert("1"), {}), ("deep.png", deep, {}), ("interlaced.png", rgb.convert("LA"), {}),
        ("rgb.bmp", rgb, {}), ("palette.bmp", rgb.quantize(16), {}), ("palette.gif", rgb.quantize(32), {}),
        ("moving.gif", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("rgb.tif", rgb, {}), ("lzw.tif", rgb, {"compression": "tiff_lzw"}), ("jpeg.tif", rgb, {"compression": "jpeg"}),
        ("deflate.tif", deep, {"compression": "tiff_adobe_deflate"}), ("floats.tif", floats, {}),
        ("fax.tif", rgb.convert("1"), {"compression": "group4"}), ("rgb.webp", rgb, {}),
        ("lossless.webp", rgb.convert("RGBA"), {"lossless": True}), ("rgb.ppm", rgb, {}),
        ("grey.pgm", rgb.convert("L"), {}),
    ]  # fmt: skip
    made = []
    for name, image, options in ways:
        file = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(_format(name), _format(name).upper())
        image.save(file, kind, **options)
        made.append((name, file.getvalue()))
    return made
