from __future__ import annotations

import io
import os

import pytest
from hostile_names import NAMES, assert_nothing_raw
from rich.console import Console

from finetune.errors import InputError
from finetune.progress import Display
from finetune.terminal import in_markup, printable


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_name_is_one_line_without_control_characters(name: str) -> None:
    for shown in (printable(name), in_markup(name)):
        assert_nothing_raw(shown)
        assert len(shown.splitlines()) == 1
    assert printable(printable(name)) == printable(name)


def test_ordinary_names_of_every_script_stay_as_they_are() -> None:
    names = ("größe 大.png", "क्‍ष", "👩‍🔬", "שלום", "a\\b", "a\xa0b", "")
    assert [printable(name) for name in names] == list(names)
    assert printable(os.fsdecode(b"latin\xe9.png")) == r"latin\udce9.png"
    assert printable("a\u200bb\ufeff") == r"a\u200bb\ufeff"


def test_rich_prints_markup_and_emoji_in_a_name_as_they_are() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, emoji=False, highlight=False, width=200)
    console.print(in_markup("[red]cat[/red] :cat:"))
    Display(console).say("[red]cat[/red] :cat: \x1b[2J")
    with Display(console).bar("[red]cat\x1b[2J :cat:", 1) as advance:
        advance(1, "dog\x1b[2J")
    assert text.getvalue().count("[red]cat[/red] :cat:") == 2
    assert "cat\\x1b[2J :cat:" in text.getvalue()
    assert "\x1b[2J" not in text.getvalue()


def test_a_display_replaces_no_emoji_names(capsys: pytest.CaptureFixture[str]) -> None:
    Display(Console()).say("folder :cat: of [bold]")
    assert capsys.readouterr().out == "folder :cat: of [bold]\n"


def test_an_error_keeps_its_lines_apart_from_those_in_names() -> None:
    error = InputError("2 pictures cannot be read:", "  a\nb: cut short", "  c: empty file")
    assert str(error) == "2 pictures cannot be read:\n  a\nb: cut short\n  c: empty file"
    assert [printable(line) for line in error.lines] == [
        "2 pictures cannot be read:",
        r"  a\nb: cut short",
        "  c: empty file",
    ]
