from __future__ import annotations

import click
import pytest
from called import Answer, caller

from finetune.options.command_line import run_command


def test_too_little_memory_is_one_line_and_other_errors_of_the_same_kind_keep_their_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def answer(error: Exception) -> Answer:
        def job() -> None:
            raise error

        return caller(lambda: run_command(click.Command("made", callback=job), "made"), "made", monkeypatch, capfd)()

    told = "made: too little memory ({}); close other programs, or allow it more\n"
    assert answer(MemoryError()) == Answer(2, "", told.format("MemoryError"))
    for said in ("libtorch_cpu.so: failed to map segment from shared object", "can't allocate memory: 9 bytes"):
        for kind in (ImportError, RuntimeError):
            assert answer(kind(said)) == Answer(2, "", told.format(said))
    with pytest.raises(ImportError, match="No module"):
        answer(ImportError("No module named x"))
