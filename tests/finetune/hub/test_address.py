from __future__ import annotations

from pathlib import Path

import pytest

from finetune.errors import InputError
from finetune.hub.address import Address, is_address, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://me/colours", Address("me/colours")),
        ("me/colours", Address("me/colours")),
        ("hf://me/my.colours_2@v1.0", Address("me/my.colours_2", "v1.0")),
        ("hf://me/colours@refs/pr/3", Address("me/colours", "refs/pr/3")),
        (Path("hf://me/colours@main"), Address("me/colours", "main")),
    ],
)
def test_an_address_is_parsed(text: str | Path, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "hf://", "hf://me", "hf://me/", "hf://me/colours/more", "hf://../colours", "hf://me/..", "hf://me/a--b",
        "hf://me/colours@", "hf://me/colours@../../x", "hf://me/colours@/x", "hf://me/colours@-x", "hf://me/a b",
        "hf://datasets/me/colours", "hf://me/-a", "hf://me/a.", "hf://me/" + 97 * "a", "hf://me/colours@a\nb", "",
    ],
)  # fmt: skip
def test_another_form_is_refused_in_one_line_that_shows_the_right_one(text: str) -> None:
    with pytest.raises(InputError, match="write hf://USER/NAME") as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


def test_paths_are_no_addresses() -> None:
    assert is_address("hf://me/colours")
    assert is_address(Path("hf://me/colours"))
    assert not any(is_address(place) for place in ("runs/photos", Path("hf"), "hf", "/hf://", 3, None))
