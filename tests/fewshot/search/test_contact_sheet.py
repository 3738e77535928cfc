from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hostile import hostile
from PIL import Image

from fewshot.search.contact_sheet import APART, Row, Tile, write_sheet
from finetune.data.folder import list_unlabelled
from finetune.errors import InputError
from finetune.report.contact_sheet import CELL, GAP, HEADING, MARGIN, MAT, PAPER

QUERY = (MARGIN, MARGIN + HEADING)
FIRST = (MARGIN + CELL + APART, MARGIN + HEADING)


def square(colour: str, name: str = "a.png", similarity: float | None = None) -> Tile:
    return Tile(Image.new("RGB", (8, 8), colour), name, similarity)


def written(path: Path, *rows: Row) -> Image.Image:
    write_sheet(path, rows)
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        return sheet.convert("RGB")


def cell(sheet: Image.Image, corner: tuple[int, int]) -> np.ndarray:
    return np.asarray(sheet.crop((*corner, corner[0] + CELL, corner[1] + CELL)))


def caption(sheet: Image.Image, corner: tuple[int, int]) -> np.ndarray:
    """The caption of a cell, up to the right edge of the gap."""
    return np.asarray(sheet.crop((corner[0], corner[1] + CELL, corner[0] + CELL + GAP, corner[1] + CELL + 44)))


def hexadecimal(pixel: np.ndarray) -> str:
    return "#" + bytes(pixel).hex()


def test_a_sheet_has_one_line_for_each_query(tmp_path: Path) -> None:
    rows = [
        Row(square("red"), [square("lime"), square("blue")]),
        Row(square("yellow"), [square("aqua")]),
        Row(square("black"), []),
    ]
    sheet = written(tmp_path / "new" / "sheet.png", *rows)
    height = (sheet.height - QUERY[1] - MARGIN + GAP) // 3
    second = (FIRST[0] + CELL + GAP, FIRST[1])
    for corner, colour in (
        (QUERY, "#ff0000"), (FIRST, "#00ff00"), (second, "#0000ff"),
        ((QUERY[0], QUERY[1] + height), "#ffff00"), ((FIRST[0], FIRST[1] + height), "#00ffff"),
        ((second[0], second[1] + height), PAPER), ((QUERY[0], QUERY[1] + 2 * height), "#000000"),
    ):  # fmt: skip
        found = cell(sheet, corner)
        assert {hexadecimal(found[y, x]) for y in (0, -1) for x in (0, -1)} == {colour}


def test_pictures_are_drawn_whole_and_upright_in_equal_cells(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[274] = 6
    image = Image.new("RGB", (400, 200), "red")
    image.save(tmp_path / "turned.jpg", exif=turned)
    thin = Tile(Image.new("RGB", (4000, 1), "lime"), "thin.png")
    sheet = written(tmp_path / "sheet.png", Row(Tile(tmp_path / "turned.jpg", "turned.jpg"), [thin]))
    query, neighbour = cell(sheet, QUERY), cell(sheet, FIRST)
    middle = CELL // 2
    assert hexadecimal(query[middle, 2]) == hexadecimal(query[middle, -3]) == MAT
    assert query[2, middle, 0] > 240
    assert query[-3, middle, 0] > 240
    assert hexadecimal(neighbour[2, middle]) == MAT
    assert (neighbour[:, middle] == (0, 255, 0)).all(axis=1).sum() == 1


def test_an_unreadable_picture_is_drawn_as_its_reason(tmp_path: Path) -> None:
    hostile(tmp_path / "pictures")
    tiles = [Tile(path, path.name, 0.5) for path in list_unlabelled([tmp_path / "pictures"])]
    gone = Tile(tmp_path / "gone.jpg", "gone.jpg")
    nowhere = Tile("", "no path at all")
    sheet = written(tmp_path / "sheet.png", Row(gone, [*tiles, nowhere]))
    reason = cell(sheet, QUERY)
    assert hexadecimal(reason[0, 0]) == MAT
    assert 50 < (reason != reason[0, 0]).any(axis=2).sum() < CELL * CELL / 5
    # Another reason is another text.
    assert not np.array_equal(reason, cell(sheet, (FIRST[0] + len(tiles) * (CELL + GAP), FIRST[1])))


@pytest.fixture(params=["found", "none"])
def fonts(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the installed fonts, and as if Pillow found none."""
    if request.param == "none":
        for name in ("XDG_DATA_HOME", "XDG_DATA_DIRS", "WINDIR"):
            monkeypatch.setenv(name, str(tmp_path))
    return str(request.param)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        os.fsdecode(b"latin\xe9.png"), "größe 大.png", "line\nbreak\ttab\0.png", "e\u0301\u200d😀\u202e.png", "",
        "\ud800 alone", "W" * 5000, "\u0301" * 300,
    ],
    ids=["undecodable", "unicode", "control", "joined", "empty", "surrogate", "long", "marks"],
)  # fmt: skip
def test_any_name_is_drawn_inside_its_cell(tmp_path: Path, fonts: str, name: str) -> None:
    sheet = written(tmp_path / "sheet.png", Row(square("red"), [square("red", name, 0.5), square("red", "b")]))
    text = caption(sheet, FIRST)
    assert (text[:, CELL:] == 255).all()
    assert (text[:22] != 255).any() == bool(name)


def test_a_long_name_keeps_its_beginning_and_its_end(tmp_path: Path, fonts: str) -> None:
    def below(name: str) -> np.ndarray:
        return caption(written(tmp_path / "sheet.png", Row(square("red"), [square("red", name)])), FIRST)

    long = below(f"cats/{'x' * 40}.0001.jpg")
    assert np.array_equal(long, below(f"cats/{'x' * 90}.0001.jpg"))
    assert not np.array_equal(long, below(f"cats/{'x' * 40}.0002.jpg"))
    assert not np.array_equal(long, below(f"dogs/{'x' * 40}.0001.jpg"))


def test_characters_missing_in_the_font_are_not_drawn_as_boxes(tmp_path: Path, fonts: str) -> None:
    def below(name: str) -> np.ndarray:
        return caption(written(tmp_path / "sheet.png", Row(square("red"), [square("red", name)])), FIRST)

    assert np.array_equal(below("\ue000\U000f0000.png"), below("??.png"))
    if fonts == "none":
        assert np.array_equal(below("café.png"), below("cafe.png"))
    assert np.array_equal(below("cafe\u0301.png"), below("café.png"))


def test_similarities_have_two_digits(tmp_path: Path) -> None:
    def below(similarity: float | None) -> np.ndarray:
        tile = square("red", "a", similarity)
        return caption(written(tmp_path / "sheet.png", Row(square("red"), [tile])), FIRST)

    assert np.array_equal(below(0.871), below(0.869))
    assert not np.array_equal(below(0.871), below(0.88))
    assert np.array_equal(below(-0.001), below(0.0))
    assert (below(None)[22:] == 255).all()


def test_a_sheet_that_is_too_large_is_refused_before_a_picture_is_read(tmp_path: Path) -> None:
    tile = Tile(tmp_path / "gone.jpg", "gone.jpg")
    for rows in ([Row(tile, [])] * 200, [Row(tile, [tile] * 200)], [Row(tile, [tile] * 60)] * 60):
        with pytest.raises(InputError, match=r"a contact sheet of \d+ queries .* would be \d+x\d+ pixels"):
            write_sheet(tmp_path / "sheet.png", rows)
    with pytest.raises(InputError, match="needs at least one query"):
        write_sheet(tmp_path / "sheet.png", [])
    with pytest.raises(InputError, match=r"ends in \.png"):
        write_sheet(tmp_path / "sheet.jpg", [Row(tile, [])])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_sheet_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    before = written(path, Row(square("red"), []))
    with pytest.raises(AttributeError):
        write_sheet(path, [Row(square("blue"), [None])])  # type: ignore[list-item]
    with Image.open(path) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))
    assert list(tmp_path.iterdir()) == [path]
