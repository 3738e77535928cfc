"""A folder with everything that folders of pictures have gone wrong with."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def hostile(root: Path) -> None:
    """A folder with everything that folders of pictures have gone wrong with; twelve of its pictures are good."""
    random = np.random.default_rng(0)

    def noise() -> Image.Image:
        return Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))

    for name in ("cat", "dog", "größe 大", "nothing", ".cache"):
        (root / name).mkdir(parents=True)
    turned = Image.Exif()
    turned[274] = 6
    noise().save(root / "cat" / "turned.jpg", exif=turned)
    noise().convert("CMYK").save(root / "cat" / "cmyk.JPG")
    noise().convert("RGBA").save(root / "cat" / "alpha.png")
    noise().quantize(8).save(root / "cat" / "palette.png", transparency=bytes(8))
    Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32) * 80).save(root / "cat" / "sixteen.png")
    noise().save(root / "größe 大" / "ünïcode.webp")
    noise().save(root / "größe 大" / os.fsdecode(b"latin\xe9.png"))
    for number in range(5):
        noise().save(root / "dog" / f"{number}.png")
    noise().save(root / ".cache" / "hidden.png")
    file = io.BytesIO()
    noise().save(file, "JPEG")
    (root / "dog" / "cut.jpg").write_bytes(file.getvalue()[:400])
    (root / "dog" / "text.jpg").write_text("<html>404</html>")
    (root / "dog" / "empty.jpg").touch()
    header = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    (root / "dog" / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + header + struct.pack(">I", zlib.crc32(header)) + b"\x00\x00\x00\x00IDAT"
    )
    (root / "dog" / "link.jpg").symlink_to("nowhere.jpg")
    (root / "dog" / "loop").symlink_to(root)


def state(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.as_posix(): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in (root, *(Path(above) / name for above, dirs, files in os.walk(root) for name in dirs + files))
    }
