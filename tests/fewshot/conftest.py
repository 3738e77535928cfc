from __future__ import annotations

from collections.abc import Callable

import pytest
from called import Answer, caller

from fewshot.cli import main


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "fewshot", monkeypatch, capfd)
