"""Decodes a picture whose data are complete, at a bounded cost. Pillow fills what is missing with black or grey."""

from __future__ import annotations

from PIL import Image

from finetune.data.formats import jpeg, png, tiff
from finetune.data.formats.libtiff_messages import collected_messages


def check_length(content: bytes) -> None:
    """EOFError for a file that is shorter than its first bytes say."""
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    if tiff.has_no_directory(content) or (is_webp and int.from_bytes(content[4:8], "little") + 8 > len(content)):
        raise EOFError


def load_whole(image: Image.Image, content: bytes, at_least: int | None) -> None:
    """Decode the picture that was opened in `content`.

    Args:
        image: Opened, and perhaps drafted.
        content: The file.
        at_least: The shortest side that a JPEG was drafted for; None without a draft.

    Raises:
        EOFError: If its data end early.
        ValueError: If decoding it would take far more memory or time than its size in pixels says.
        OSError: With the message of libtiff, if that has one. Pillow raises others for other damage.
    """
    if image.format == "TIFF":
        _load_tiff(image, content)
        return
    is_jpeg = image.format in ("JPEG", "MPO")
    if is_jpeg and jpeg.has_too_many_scans(content):
        raise ValueError(f"more than {jpeg.MAX_SCANS} scans")
    image.load()
    if (is_jpeg and jpeg.ends_early(image, content, at_least)) or (
        image.format == "PNG" and png.ends_early(image, content)
    ):
        raise EOFError


def _load_tiff(image: Image.Image, content: bytes) -> None:
    if tiff.tile_is_too_large(image):
        raise ValueError("a tile is larger than the picture")
    if tiff.ends_early(image, content):
        raise EOFError
    with collected_messages() as messages:
        try:
            image.load()
        except OSError as error:
            if messages:
                raise OSError(messages[0]) from error
            raise
