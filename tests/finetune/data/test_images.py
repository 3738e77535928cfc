from __future__ import annotations

import io
import os
import struct
import sys
import threading
import types
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_pictures import encoded, png, reason
from PIL import Image, ImageFile, ImageOps

from finetune.config import MAX_PIXELS
from finetune.data import images
from finetune.data.images import PICTURE_EXTENSIONS, read_content, read_image
from finetune.errors import InputError, UnreadablePicture

RED, WHITE = (255, 0, 0), (255, 255, 255)


def noise(height: int = 20, width: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    return png(width, height, b"", kind=2)


def pixels(picture: Image.Image) -> np.ndarray:
    assert picture.mode == "RGB"
    return np.asarray(picture)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    picture = noise()
    path = tmp_path / "größe.png"
    picture.save(path)
    for source in (path, str(path), path.read_bytes(), np.asarray(picture), picture, Image.open(path)):
        assert np.array_equal(pixels(read_image(source)), np.asarray(picture))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "PPM", "WEBP", "JPEG"])
def test_every_promised_format_is_read(kind: str) -> None:
    picture = Image.new("RGB", (30, 20), RED)
    found = pixels(read_image(encoded(picture, kind, **({"quality": 95} if kind == "JPEG" else {}))))
    assert found.shape == (20, 30, 3)
    assert np.abs(found.astype(int) - RED).max() <= 2


def test_extensions_are_lower_case_and_start_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".heic", ".tif"} <= PICTURE_EXTENSIONS
    assert all(extension == extension.lower() and extension[0] == "." for extension in PICTURE_EXTENSIONS)


def test_the_result_is_independent_of_a_pil_source() -> None:
    source = noise()
    before = source.tobytes()
    read_image(source).paste(WHITE, (0, 0, 5, 5))
    assert source.tobytes() == before


# ---- orientation and other metadata


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(noise(), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    upright = read_image(content)
    assert upright.size == ((20, 30) if orientation > 4 else (30, 20))
    assert np.array_equal(pixels(upright), np.asarray(expected))
    assert np.array_equal(pixels(read_image(Image.open(io.BytesIO(content)))), np.asarray(expected))
    assert np.array_equal(pixels(read_image(upright)), np.asarray(expected))


def test_orientation_counts_beside_a_tag_that_cannot_be_written_again() -> None:
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    width_as_text = struct.pack("<HHI4s", 0x0100, 2, 1, b"x")
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00" + width_as_text + orientation + bytes(4)
    content = encoded(noise(), "JPEG", exif=exif)
    with pytest.raises(struct.error):
        ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert read_image(content).size == (20, 30)


@pytest.mark.parametrize(
    "damage", [b"", b"garbage", b"II*\x00\xff\xff\xff\xff", b"II*\x00\x08\x00\x00\x00\x05\x00\x12"]
)
def test_a_picture_with_damaged_exif_is_read(damage: bytes) -> None:
    picture = noise()
    assert read_image(encoded(picture, "JPEG", exif=b"Exif\x00\x00" + damage)).size == picture.size
    assert np.array_equal(
        pixels(read_image(encoded(picture, "PNG", exif=b"Exif\x00\x00" + damage))), np.asarray(picture)
    )


def test_a_tiff_with_damaged_tags_is_read() -> None:
    content = bytearray(encoded(Image.new("RGB", (6, 5), RED), "TIFF", software="x" * 40))
    tag = content.index(struct.pack("<HHI", 305, 2, 41))
    content[tag + 8 : tag + 12] = struct.pack("<I", 1 << 30)  # the text lies far beyond the end of the file
    with pytest.warns(UserWarning, match="Truncated File Read"):
        Image.open(io.BytesIO(content)).load()
    assert pixels(read_image(bytes(content)))[0, 0].tolist() == list(RED)


# ---- colour


def test_transparency_is_put_on_white() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    assert pixels(read_image(half))[0, 0].tolist() == [255, 127, 127]
    for mode, colour in [("RGBA", (9, 9, 9, 0)), ("LA", (9, 0)), ("RGBa", (0, 0, 0, 0)), ("La", (0, 0))]:
        assert pixels(read_image(Image.new(mode, (4, 4), colour)))[0, 0].tolist() == list(WHITE), mode
    assert pixels(read_image(half.convert("PA")))[0, 0].tolist() == [255, 127, 127]
    assert pixels(read_image(encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)), "WEBP")))[0, 0].tolist() == list(WHITE)


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])], ids=["index", "table"])
def test_a_transparent_palette_entry_is_white(transparency: int | bytes) -> None:
    palette = Image.new("P", (4, 2), 0)
    palette.putpalette([*RED, 0, 0, 255])
    palette.paste(1, (2, 0, 4, 2))
    found = pixels(read_image(encoded(palette, "PNG", transparency=transparency)))
    assert found[0, 0].tolist() == list(RED)
    assert found[0, 3].tolist() == list(WHITE)


def test_a_transparent_key_colour_is_white() -> None:
    grey = Image.new("L", (2, 2), 7)
    colour = Image.new("RGB", (2, 2), (1, 2, 3))
    assert pixels(read_image(encoded(grey, "PNG", transparency=7)))[0, 0].tolist() == list(WHITE)
    assert pixels(read_image(encoded(colour, "PNG", transparency=(1, 2, 3))))[0, 0].tolist() == list(WHITE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_every_mode_becomes_the_same_colours(mode: str) -> None:
    picture = Image.new("RGB", (6, 4), WHITE)
    picture.paste((0, 0, 0), (3, 0, 6, 4))
    found = pixels(read_image(picture.convert(mode)))
    assert np.abs(found.astype(int) - np.asarray(picture)).max() <= 2


def test_lab_and_cmyk_files_keep_their_colours() -> None:
    lab = Image.new("LAB", (4, 4), (255, 128, 128))
    assert pixels(read_image(encoded(lab, "TIFF"))).min() > 250
    for kind in ("JPEG", "TIFF"):
        cmyk = encoded(Image.new("RGB", (16, 16), RED).convert("CMYK"), kind)
        assert np.abs(pixels(read_image(cmyk)).astype(int) - RED).max() <= 4


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_eight_bit_grey_is_what_convert_gives(values: np.ndarray) -> None:
    grey = Image.fromarray(values)
    expected = np.asarray(grey.convert("RGB"))
    for source in (grey, values, values[:, :, None], encoded(grey, "PNG")):
        assert np.array_equal(pixels(read_image(source)), expected)


@pytest.mark.parametrize(
    ("highest", "ceiling"),
    [(255, 255), (256, 1023), (1023, 1023), (4000, 4095), (4095, 4095), (16383, 16383), (16384, 65535), (65535, 65535)],
)
def test_sixteen_bits_are_scaled_by_the_range_that_holds_them(highest: int, ceiling: int, tmp_path: Path) -> None:
    values = np.array([[0, highest // 2, highest]], dtype=np.uint16)
    expected = np.rint(values * (255 / ceiling)).astype(int).tolist()[0]
    big_endian = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    big_endian.save(tmp_path / "big.tif")
    thirty_two = Image.fromarray(values.astype(np.int32))
    assert thirty_two.mode == "I"
    sources = [
        values,
        values.astype(">u2"),
        encoded(Image.frombytes("I;16", (3, 1), values.tobytes()), "PNG"),
        encoded(thirty_two, "TIFF"),
        big_endian,
        Image.frombytes("I;16L", (3, 1), values.astype("<u2").tobytes()),
        tmp_path / "big.tif",
    ]
    for source in sources:
        found = pixels(read_image(source))
        assert found[0, :, 0].tolist() == expected
        assert (found == found[:, :, :1]).all()


@given(arrays(np.uint16, st.tuples(st.integers(1, 6), st.integers(2, 6))))
def test_sixteen_bits_are_never_clipped(values: np.ndarray) -> None:
    found = pixels(read_image(values))[:, :, 0].ravel().astype(int)
    order = np.argsort(values.ravel(), kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    if values.max() > 255:
        assert 63 <= found.max() <= 255  # the next smaller range would not have held it


@pytest.mark.parametrize("values", [[-100, 0, 300], [0, 35_000, 70_000], [-2_000_000_000, 0, 2_000_000_000]])
def test_integers_beyond_sixteen_bits_are_scaled_from_their_own_range(values: list[int]) -> None:
    picture = Image.fromarray(np.array([values], dtype=np.int32))
    expected = [round((value - values[0]) * 255 / (values[2] - values[0])) for value in values]
    assert pixels(read_image(picture))[0, :, 0].tolist() == expected


def test_floats_are_scaled_from_one_or_from_their_own_range() -> None:
    assert pixels(read_image(np.array([[0.0, 0.25, 0.5]])))[0, :, 0].tolist() == [0, 64, 128]
    assert pixels(read_image(np.array([[0.0, 1.0]], dtype=np.float16)))[0, :, 0].tolist() == [0, 255]
    elevation = np.array([[-3.0, 0.0, 7.0]], dtype=np.float32)
    for source in (elevation, encoded(Image.fromarray(elevation), "TIFF")):
        assert pixels(read_image(source))[0, :, 0].tolist() == [0, 76, 255]
    assert pixels(read_image(np.full((2, 2), 7.0)))[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused(value: float) -> None:
    values = np.array([[0.5, value]], dtype=np.float32)
    assert reason(values) == "holds values that are not finite"
    assert reason(encoded(Image.fromarray(values), "TIFF")) == "holds values that are not finite"


# ---- arrays


def test_arrays_of_every_accepted_kind() -> None:
    rgb = np.asarray(noise())
    assert np.array_equal(pixels(read_image(rgb[:, ::-1])), rgb[:, ::-1])
    assert np.array_equal(pixels(read_image(rgb.astype(np.uint16) * 257)), rgb)
    assert np.array_equal(pixels(read_image(rgb / 255)), rgb)
    alpha = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert (pixels(read_image(alpha)) == 255).all()
    assert pixels(read_image(np.array([[True, False]])))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5, np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), np.complex64),
        np.array([["a"]]),
    ],
    ids=lambda array: f"{array.shape}-{array.dtype}",
)
def test_other_arrays_are_named_by_shape_and_dtype(array: np.ndarray) -> None:
    text = reason(array)
    assert str(array.shape) in text
    assert str(array.dtype) in text


def test_something_else_is_refused_by_its_type() -> None:
    with pytest.raises(UnreadablePicture, match="list given: not a path, bytes, array or PIL image"):
        read_image([1, 2, 3])  # type: ignore[arg-type]


# ---- frames and reduced scale


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_frame_counts(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), (0, 0, 255))
    content = encoded(first, kind, save_all=True, append_images=[second])
    assert np.abs(pixels(read_image(content)).astype(int) - RED).max() <= 2


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 420))
def test_a_reduced_jpeg_keeps_what_is_needed(width: int, height: int, at_least: int) -> None:
    found = read_image(encoded(Image.new("RGB", (width, height), RED), "JPEG"), at_least=at_least)
    assert min(found.size) >= min(at_least, width, height)
    assert any(found.size == (-(-width // scale), -(-height // scale)) for scale in (1, 2, 4, 8))


def test_only_a_large_jpeg_file_is_reduced() -> None:
    large = noise(600, 800)
    assert read_image(encoded(large, "JPEG"), at_least=150).size == (200, 150)
    assert read_image(encoded(large, "JPEG"), at_least=301).size == (800, 600)
    assert read_image(encoded(large, "JPEG")).size == (800, 600)
    assert read_image(encoded(large, "PNG"), at_least=150).size == (800, 600)
    lazy = Image.open(io.BytesIO(encoded(large, "JPEG")))
    assert read_image(lazy, at_least=150).size == (800, 600)
    assert lazy.size == (800, 600)


# ---- the bound on pixels


@pytest.mark.parametrize(
    ("size", "told"),
    [((30_000, 30_000), "900 megapixels"), ((10_000, 9_000), "10000x9000 is 90 megapixels")],
    ids=["far over", "just over"],
)
def test_a_claimed_size_over_the_bound_is_refused_before_decoding(size: tuple[int, int], told: str) -> None:
    text = reason(png_header(*size))
    assert told in text
    assert "over the bound of 89.5 (--max-pixels)" in text


def test_the_bound_holds_for_every_source() -> None:
    picture = noise(100, 100)
    for source in (picture, np.asarray(picture), encoded(picture, "PNG"), encoded(picture, "JPEG")):
        assert read_image(source, max_pixels=10_000).size == (100, 100)
        assert "100x100 is 0.01 megapixels" in reason(source, max_pixels=9_999)


def test_max_pixels_may_be_above_the_bound_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(encoded(noise(40, 40), "PNG"), max_pixels=1600).size == (40, 40)
    assert "over the bound" in reason(encoded(noise(40, 41), "PNG"), max_pixels=1600)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert "over the bound" in reason(encoded(noise(40, 41), "PNG"), max_pixels=1600)
    assert Image.MAX_IMAGE_PIXELS is None


def test_reading_in_threads_restores_the_state_of_the_process() -> None:
    palette = encoded(noise(60, 60).quantize(8), "PNG", transparency=bytes(8))
    before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    failures: list[BaseException] = []

    def read(max_pixels: int) -> None:
        try:
            for _ in range(30):
                read_image(palette, max_pixels=max_pixels)
                reason(png_header(30_000, 30_000), max_pixels=max_pixels)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(bound,)) for bound in (MAX_PIXELS, 500_000_000, 5_000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


# ---- what cannot be read


def test_reasons_are_short_and_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not at all")
    (tmp_path / "cut.jpg").write_bytes(encoded(noise(), "JPEG")[:-200])
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    expected = {
        "empty.jpg": "empty file",
        "text.jpg": "not a picture",
        "cut.jpg": "cut short",
        "link.jpg": "broken link",
        "circle.jpg": "too many levels of symbolic links",
        "folder.jpg": "not a file",
        "pipe.jpg": "not a file",
        "absent.jpg": "no such file",
        "text.jpg/below.jpg": "not a directory",
    }
    assert {name: reason(tmp_path / name) for name in expected} == expected
    with pytest.raises(InputError, match=r"empty\.jpg: empty file"):
        read_image(tmp_path / "empty.jpg")
    with pytest.raises(UnreadablePicture, match="bytes given: empty file"):
        read_image(b"")


def test_a_forbidden_file_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.jpg").touch()
    monkeypatch.setattr(Path, "read_bytes", forbidden)
    assert reason(tmp_path / "a.jpg") == "permission denied"
    with pytest.raises(UnreadablePicture, match="permission denied"):
        read_content(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "PPM"])
def test_a_file_cut_in_the_middle_is_cut_short(kind: str) -> None:
    content = encoded(noise(), kind)
    assert reason(content[: len(content) // 2]) in {"cut short", "not a picture"}
    if kind != "TIFF":  # which has what it takes to know it at its end
        assert reason(content[: len(content) - 40]) == "cut short"


def test_a_file_of_another_trade_is_not_handed_on() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    assert reason(postscript) == "not a picture"


KINDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(noise(), "JPEG", exif=Image.Exif()),
    "png": lambda: encoded(noise(), "PNG"),
    "palette": lambda: encoded(noise().quantize(16), "PNG", transparency=bytes(16)),
    "gif": lambda: encoded(noise().quantize(), "GIF"),
    "bmp": lambda: encoded(noise(), "BMP"),
    "tiff": lambda: encoded(noise(), "TIFF"),
    "webp": lambda: encoded(noise(), "WEBP"),
    "ppm": lambda: encoded(noise(), "PPM"),
    "sixteen bits": lambda: encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99), "PNG"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_a_picture_or_unreadable(kind: str) -> None:
    whole = KINDS[kind]()
    random = np.random.default_rng(0)
    for attempt in range(80):
        damaged = bytearray(whole)
        reach = min(len(damaged), (40, 300, 10**6)[attempt % 3])
        for position in random.integers(0, reach, 6):
            damaged[position] = random.integers(256)
        with suppress(UnreadablePicture):
            assert read_image(bytes(damaged), max_pixels=1_000_000).mode == "RGB"


@pytest.mark.parametrize("error", [OSError("x"), SyntaxError("x"), struct.error("x"), MemoryError(), KeyError("x")])
def test_whatever_pillow_raises_is_one_error(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(picture: ImageFile.ImageFile) -> None:
        raise error

    content = encoded(noise(), "PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    assert reason(content) == ("too large for the memory" if isinstance(error, MemoryError) else f"damaged ({error})")


def test_a_mistake_of_our_own_is_not_taken_for_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(images, "eight_bits", mistaken)
    with pytest.raises(ZeroDivisionError):
        read_image(np.zeros((2, 2), np.uint16))
    with pytest.raises(ZeroDivisionError):
        read_image(encoded(Image.new("I;16", (2, 2)), "PNG"))


# ---- HEIC

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100)


def test_heic_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert reason(HEIC) == "HEIC needs a package that is missing: pip install 'fewtune[heic]'"


def test_heic_is_left_to_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand(ImageFile.ImageFile):
        format = "HEIF"

        def _open(self) -> None:
            self._mode, self._size = "RGB", (3, 2)
            self.tile = [ImageFile._Tile("raw", (0, 0, 3, 2), 30, ("RGB", 0, 1))]

    def register() -> None:
        Image.register_open("HEIF", Stand, lambda prefix: prefix[4:12] == b"ftypheic")

    for registry in ("ID", "OPEN"):
        monkeypatch.setattr(Image, registry, getattr(Image, registry).copy())
    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    assert pixels(read_image(HEIC)).tolist() == np.zeros((2, 3, 3)).tolist()
