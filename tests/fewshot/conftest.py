from __future__ import annotations

import sys

import pytest

from fewshot.cli import main


class Answer:
    """Exit code, stdout and stderr of the command run in this process."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def called(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["fewshot", *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return Answer(code, *capfd.readouterr())

    return called
