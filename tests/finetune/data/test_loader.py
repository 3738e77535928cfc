from __future__ import annotations

import sys

import pytest

from finetune.data.loader import _without_broken_transfers


def test_a_worker_says_nothing_of_a_transfer_that_was_broken_off(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.excepthook
    try:
        _without_broken_transfers(0)
        sys.excepthook(ConnectionResetError, ConnectionResetError("the other end is gone"), None)
        assert capsys.readouterr().err == ""
        sys.excepthook(ValueError, ValueError("an error of its own"), None)
        assert "an error of its own" in capsys.readouterr().err
    finally:
        sys.excepthook = before
