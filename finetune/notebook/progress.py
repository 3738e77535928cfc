"""Progress in a notebook: a bar is one output, which is updated while the job runs; a message is a line that wraps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from finetune.notebook.parts import Bar, bars, block, line
from finetune.terminal import printable

# Seconds between two updates: every one is kept in the messages of the notebook until its end.
_BETWEEN = 0.5


@dataclass(frozen=True)
class _Shown:
    """Words, and a bar where there is one. Places that show no HTML show the words."""

    words: str
    bar: Bar | None = None

    def __repr__(self) -> str:
        return printable(self.words)

    def _repr_html_(self) -> str:
        return block(line(self.words) if self.bar is None else bars([self.bar]))


def notebook_line(words: str) -> None:
    """Show a message."""
    from IPython.display import display  # in a notebook it is there

    display(_Shown(words))


@contextmanager
def notebook_bar(label: str, total: int | None) -> Iterator[Callable[[int, str], None]]:
    """A bar for `total` pictures, whose output becomes one line of words when they are done."""
    from IPython.display import display  # in a notebook it is there

    began = shown = time.monotonic()
    count, last = 0, ""
    handle = display(_state(label, 0, total, began, ""), display_id=True)

    def advance(done: int, note: str = "") -> None:
        nonlocal count, last, shown
        count += done
        last = note or last
        if (now := time.monotonic()) - shown >= _BETWEEN and handle is not None:
            shown = now
            handle.update(_state(label, count, total, began, last))

    try:
        yield advance
    finally:
        took = time.monotonic() - began
        words = f"{count:,} pictures in {took:.1f} s" + (f", {last}" if last else "")
        if handle is not None:
            handle.update(_Shown(f"{label}: {words}"))


def _state(label: str, count: int, total: int | None, began: float, note: str) -> _Shown:
    rate = count / max(1e-3, time.monotonic() - began)
    words = f"{count:,}" + ("" if total is None else f" of {total:,}") + (f", {rate:.3g} pictures/s" if count else "")
    words += f", {note}" if note else ""
    bar = None if total is None else Bar(label, count / max(1, total), words)
    return _Shown(f"{label}: {words}", bar)
