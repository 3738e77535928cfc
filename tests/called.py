"""A command called in this process, as the console script would."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Answer:
    """Exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def caller(
    main: Callable[[], None], name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Answer]:
    """What calls the command `name`, whose entry point is `main`, with the words it is given."""

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Answer(code, *capfd.readouterr())

    return call
