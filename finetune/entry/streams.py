"""The streams of a command, each of which may be closed, full, without a reader, or not UTF-8."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


@contextmanager
def usable_streams() -> Iterator[None]:
    """Inside, every stream of the command can be used; the streams of before are restored.

    A closed stream is the null device, so that no file that the command opens takes its number. Characters that the
    stream cannot encode are escaped. stderr that cannot be written to is dropped, and the work goes on. stdout without
    a reader, as after `| head`, ends the command without a word and with exit code 0.
    """
    _fill_closed()
    before = sys.stdin, sys.stdout, sys.stderr
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _replaced(before[1], sys.__stdout__, _Output(1))
    sys.stderr = _replaced(before[2], sys.__stderr__, _Messages(2))
    try:
        yield
    finally:
        try:
            for stream in (sys.stdout, sys.stderr):
                raw = getattr(getattr(stream, "buffer", None), "raw", None)
                if isinstance(raw, _Raw):
                    raw.ends = False  # the command has ended
                    stream.flush()
        finally:
            sys.stdin, sys.stdout, sys.stderr = before


class _Raw(io.FileIO):
    """Descriptor of a stream. What is written after an error is dropped."""

    def __init__(self, descriptor: int):
        super().__init__(descriptor, "w", closefd=False)
        self.ends = True  # whether a lost reader ends the command
        self._lost = False

    def write(self, data: Any, /) -> int:
        if not self._lost:
            try:
                return super().write(data) or 0
            except OSError as error:
                self._lost = True
                self._failed(error)
        return memoryview(data).nbytes

    def _failed(self, error: OSError) -> None:
        raise NotImplementedError


class _Output(_Raw):
    def _failed(self, error: OSError) -> None:
        # A terminal that was closed answers EIO.
        if error.errno != errno.EPIPE and not (error.errno == errno.EIO and self.isatty()):
            error.filename = "stdout"
            raise error
        if self.ends:
            raise SystemExit(0)


class _Messages(_Raw):
    def _failed(self, error: OSError) -> None:
        pass  # nobody could read of it


def _fill_closed() -> None:
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != descriptor:
                os.dup2(null, descriptor)
                os.close(null)


def _replaced(stream: TextIO | None, first: TextIO | None, raw: _Raw) -> TextIO:
    """`stream` on `raw`. One that the host process has replaced stays, with escapes for what it cannot encode."""
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    if stream is not first or not isinstance(stream, io.TextIOWrapper):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
