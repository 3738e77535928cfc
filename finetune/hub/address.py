"""The address of a repository on the hub, hf://USER/NAME or hf://USER/NAME@REVISION."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from finetune.errors import InputError

SCHEME = "hf://"
# Path("hf://user/name") has one slash.
_START = re.compile(r"hf:[/\\]{1,2}")
# Names as the hub allows them: at most 96 characters, no leading or trailing - or ., no -- and no "..".
_NAME = r"(?![-.])(?!\S*?(?:--|\.\.))[A-Za-z0-9_.-]{1,96}(?<![-.])"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_REVISION = re.compile(r"(?![-./])(?!.*(?:\.\.|//))[A-Za-z0-9_./+-]{1,200}(?<![./])")
_FORM = f"write {SCHEME}USER/NAME, or {SCHEME}USER/NAME@REVISION for a branch, a tag or a commit"


@dataclass(frozen=True)
class Address:
    """A repository of the hub. revision: A branch, a tag or a commit; None for the newest commit."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")

    @property
    def name(self) -> str:
        """The name without that of the user."""
        return self.repository.split("/")[1]


def is_address(place: object) -> bool:
    """Whether `place` is an address of the hub rather than a path of this machine."""
    return isinstance(place, str | os.PathLike) and bool(_START.match(str(os.fspath(place))))


def parse_address(text: str | os.PathLike[str]) -> Address:
    """The repository at an address, hf://USER/NAME or USER/NAME, with or without @REVISION.

    Raises:
        InputError: If it has another form.
    """
    given = os.fspath(text)
    found = _START.sub("", given, count=1).replace("\\", "/")
    repository, at, revision = found.partition("@")
    if not _REPOSITORY.fullmatch(repository) or (at and not _REVISION.fullmatch(revision)):
        raise InputError(f"{given!r} is no repository of the hub; {_FORM}")
    return Address(repository, revision or None)


def needs_folder(address: Address) -> str:
    """The message where a run is to be changed, which one on the hub cannot be."""
    return (
        f"{address} is on the hub, where nothing is changed; `hf download {address.repository} --local-dir RUN` makes "
        "a run folder of it"
    )
