"""Reading one picture, from a path, bytes, an array or a PIL image, as an upright RGB image."""

from __future__ import annotations

import io
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from finetune.config import MAX_PIXELS
from finetune.data.formats.whole import check_length, load_whole
from finetune.data.grey_values import eight_bits
from finetune.errors import UnreadablePicture
from finetune.extras import needs
from finetune.shared_change import SharedChange
from finetune.terminal import in_one_line

# fmt: off
PICTURE_EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm",
    ".heic", ".heif",
})
# fmt: on

Picture = str | Path | bytes | NDArray[Any] | Image.Image

# Formats of these extensions only: Pillow would even pass a file named .jpg to Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)

# Most memory that reading a picture takes beside the content of its file, as a multiple of its bound on pixels, in
# bytes. Almost all pictures take 8: 4 as decoded and 4 as RGB. Decoders of WebP and of progressive JPEG take more.
BYTES_PER_PIXEL = 16
# Times as many pixels as the bound may a JPEG have that is decoded at a smaller scale, such as a panorama.
_DRAFTED = 2
# Pixels that are converted at once, in up to 24 bytes each.
_PART = 1 << 20


def read_image(source: Picture, *, at_least: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a picture as a new RGB image: upright by its EXIF, transparency on white, the first frame.

    Grey values of 16 and 32 bits are scaled, never clipped: from the smallest range of 8, 10, 12, 14 and 16 bits that
    contains the picture's maximum, because cameras of 12 bits store pictures in 16; from minimum..maximum where that is
    not enough. Floats in [0, 1] are scaled from that range, others from minimum..maximum.

    Args:
        source: Path, content of a file, array (h, w) or (h, w, 1, 3 or 4) of uint8, uint16, bool or float, or PIL
            image. A file is never changed.
        at_least: Shortest side in pixels that the caller needs. A large JPEG is decoded at the smallest scale that
            keeps it.
        max_pixels: Largest number of decoded pixels, checked before decoding. A JPEG that is decoded at a smaller scale
            may have up to twice as many.

    Memory: at most `BYTES_PER_PIXEL * max_pixels` bytes beside the content of the file, in each thread or worker that
    reads.

    Raises:
        UnreadablePicture: With the reason in a few words. Data that end early are "cut short".
    """
    name = str(source) if isinstance(source, (str, Path)) else f"{type(source).__name__} given"
    if isinstance(source, (str, Path)):
        source = read_content(Path(source))
    with _tolerant_pillow(max_pixels):
        if isinstance(source, bytes):
            image: Image.Image = _opened(source, name, max_pixels)
        elif isinstance(source, np.ndarray):
            image = Image.fromarray(_checked_array(source, name))
        elif isinstance(source, Image.Image):
            image = source
        else:
            raise UnreadablePicture(name, "not a path, bytes, array or PIL image")
        width, height = image.size
        if at_least and image is not source and width * height <= _DRAFTED * max_pixels:
            with _damage_named(name):
                image.draft(None, (at_least, at_least))
        if image.width * image.height > max_pixels:
            raise UnreadablePicture(name, f"{width}x{height} is {_over(width * height, max_pixels)}")
        with _damage_named(name):
            if isinstance(source, bytes):
                load_whole(image, source, at_least)
            image.load()
        turn = _TURNS.get(_orientation(image))
        if image.mode == "F" or image.mode.startswith("I"):
            image = _grey(image, name)
        with _damage_named(name):
            rgb = _on_white(image)
            del image  # with its memory, before the picture is copied once more
            # Not ImageOps.exif_transpose: it writes the whole EXIF again, and fails for any invalid tag.
            return rgb if turn is None else rgb.transpose(turn)


@dataclass(frozen=True)
class Header:
    """The header of a picture's file: Pillow's names of format and mode, and the size of the upright picture."""

    format: str
    mode: str
    width: int
    height: int


def read_header(path: Path, *, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of the picture at `path`. UnreadablePicture as for `read_image`, where the header shows the reason."""
    name, content = str(path), read_content(path)
    with _tolerant_pillow(max_pixels):
        image = _opened(content, name, max_pixels)
        width, height = image.size
        turned = _orientation(image) in _SIDEWAYS
        return Header(image.format or "?", image.mode, *((height, width) if turned else (width, height)))


def read_content(path: Path) -> bytes:
    """The bytes of the file at `path`. UnreadablePicture where there is no such file, or it cannot be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would never end
            raise UnreadablePicture(str(path), "not a file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UnreadablePicture(str(path), "broken link" if path.is_symlink() else "no such file") from error
    except OSError as error:
        raise UnreadablePicture(str(path), (error.strerror or str(error)).lower()) from error


@SharedChange
@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Hides Pillow's warnings, and restores its bound on pixels at the end. Pillow has no arguments for them."""
    bound = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL|pillow_heif")
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = bound


_raising = threading.Lock()


@contextmanager
def _tolerant_pillow(max_pixels: int) -> Iterator[None]:
    """Hides Pillow's warnings and raises its own bound on pixels while pictures are read."""
    with _quiet_pillow():
        with _raising:
            if Image.MAX_IMAGE_PIXELS is not None:
                Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
        yield


def _opened(content: bytes, name: str, max_pixels: int) -> Image.Image:
    """The picture in `content`, of which only the header is read."""
    if not content:
        raise UnreadablePicture(name, "empty file")
    with _damage_named(name):
        check_length(content)
    formats: tuple[str, ...] = _FORMATS
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS:
        try:
            import pillow_heif
        except ImportError as error:
            raise UnreadablePicture(name, needs("heic", "HEIC")) from error
        pillow_heif.register_heif_opener()
        formats = ("HEIF",)
    with _damage_named(name):
        try:
            return Image.open(io.BytesIO(content), formats=formats)
        except Image.DecompressionBombError as error:
            # Beyond twice its bound, Pillow reports only the number of pixels.
            pixels = re.search(r"\d+", str(error))
            raise UnreadablePicture(name, _over(int(pixels[0]) if pixels else 2 * max_pixels, max_pixels)) from error


def _over(pixels: int, max_pixels: int) -> str:
    return f"{_megapixels(pixels)} megapixels, over the bound of {_megapixels(max_pixels)} (--max-pixels)"


def _megapixels(pixels: int) -> str:
    return f"{float(f'{pixels / 1e6:.3g}'):g}"  # three digits, and yet 10300 rather than 1.03e+04


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Convert Pillow's errors to UnreadablePicture. Only calls of Pillow belong inside."""
    try:
        yield
    except UnreadablePicture:
        raise
    except Exception as error:  # Pillow's decoders raise arbitrary errors for damaged files
        raise UnreadablePicture(name, _reason(error)) from error


# Parts of messages of Pillow, libtiff and struct about data that end early, in lower case.
_ENDS_EARLY = (
    "truncated",
    "not enough",
    "end of file",
    "end of data",
    "requires a buffer of",
    "invalid strip byte count 0",
    "read error",
)


def _reason(error: Exception) -> str:
    text = in_one_line(str(error))
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    if isinstance(error, MemoryError):
        return "too large for the memory"
    if isinstance(error, EOFError) or any(words in text.lower() for words in _ENDS_EARLY):
        return "cut short"
    return f"damaged ({text})" if text else "damaged"


def _orientation(image: Image.Image) -> Any:
    """The orientation in the EXIF; None without one."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata raises arbitrary errors, and the pixels matter more
        return None


def _on_white(image: Image.Image) -> Image.Image:
    """A new RGB image without metadata, because its orientation is no longer correct."""
    if image.mode == "RGB" and not image.has_transparency_data:
        rgb = image.copy()
        rgb.info.clear()
        return rgb
    rgb = Image.new("RGB", image.size, "white")
    for box in _parts(*image.size):
        part = image.crop(box)
        if part.mode == "La":
            part = part.convert("LA")  # Pillow converts it to no other mode
        if image.has_transparency_data:
            coloured = part.convert("RGBA")
            rgb.paste(coloured, box, mask=coloured)
        else:
            rgb.paste(part.convert("RGB"), box)
    return rgb


def _parts(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes that cover a picture, each of at most _PART pixels."""
    across = min(width, _PART)
    down = max(1, _PART // across)
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(width, left + across), min(height, top + down)


def _checked_array(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """`array` as uint8 (h, w) or (h, w, 3 or 4)."""
    shape = array.shape
    if not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))) or array.size == 0:
        wanted = "an array (h, w), (h, w, 3) or (h, w, 4) is wanted"
        raise UnreadablePicture(name, f"shape {shape}, dtype {array.dtype}: {wanted}")
    if array.dtype.kind not in "bf" and array.dtype.str[1:] not in ("u1", "u2"):
        wanted = "an array of uint8, uint16, bool or float is wanted"
        raise UnreadablePicture(name, f"shape {shape}, dtype {array.dtype}: {wanted}")
    if shape[2:] == (1,):
        array = array[:, :, 0]
    if array.dtype == np.uint8:
        return array
    rows = max(1, _PART // max(1, array[0].size))
    scaled = np.empty(array.shape, np.uint8)
    parts = [partial(array.__getitem__, slice(top, top + rows)) for top in range(0, len(array), rows)]
    for number, part in enumerate(eight_bits(parts, name)):
        scaled[number * rows : (number + 1) * rows] = part
    return scaled


def _grey(image: Image.Image, name: str) -> Image.Image:
    """A picture of integers or floats, scaled to 8 bits."""
    grey = Image.new("L", image.size)
    boxes = list(_parts(*image.size))
    for box, part in zip(boxes, eight_bits([partial(_values, image, box) for box in boxes], name), strict=True):
        grey.paste(Image.fromarray(part), box)
    return grey


def _values(image: Image.Image, box: tuple[int, int, int, int]) -> NDArray[Any]:
    return np.asarray(image.crop(box))


@dataclass(frozen=True)
class Content:
    """What reading a picture found.

    Attributes:
        sha256: Hash of the file in hex; "" without a file.
        reason: Why the picture is unreadable; None for a readable one.
        fingerprint: `near_duplicates.fingerprint` in hex; None where it was not computed.
    """

    sha256: str
    reason: str | None = None
    fingerprint: str | None = None
