"""Progress of a job: bars with rate and remaining time, single lines, durations; silent by default."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from finetune.notebook.progress import notebook_bar, notebook_line
from finetune.terminal import printable

# Called with how many more are done, and a few words on how it goes.
Advance = Callable[[int, str], None]


# Pictures and seconds after which the speed of a job is known.
_ESTIMATED, _ESTIMATED_SECONDS = 96, 1.5


class Display:
    """Shows on `console`; shows nothing when that is None.

    Example:
        >>> from finetune import Display, fit
        >>> from rich.console import Console
        >>> display = Display(Console(stderr=True))  # shows bars and messages, in notebooks too; Display() nothing
    """

    def __init__(self, console: Console | None = None):
        self.console = console

    def say(self, line: str) -> None:
        if self.console is not None and self.console.is_jupyter:
            notebook_line(line)
        elif self.console is not None:
            self.console.print(Text(printable(line)), soft_wrap=True)  # a Text: no markup and no :emoji: in names

    @contextmanager
    def bar(self, label: str, total: int | None) -> Iterator[Advance]:
        """A bar for `total` pictures on a terminal and in a notebook; elsewhere, in a log, one line when they are done.
        None where their number is not known in advance."""
        if self.console is None:
            yield _ignore
            return
        if self.console.is_jupyter:
            with notebook_bar(printable(label), total) as advance:
                yield advance
            return
        if not self.console.is_terminal:
            with self._line(label) as advance:
                yield advance
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(printable(label), total=total, note="")

            def advance(done: int, note: str = "") -> None:
                if note:
                    progress.update(task, note=printable(note))
                progress.update(task, advance=done)

            yield advance

    @contextmanager
    def _line(self, label: str) -> Iterator[Advance]:
        started, count, last = time.monotonic(), 0, ""

        def advance(done: int, note: str) -> None:
            nonlocal count, last
            count += done
            last = note or last

        try:
            yield advance
        finally:
            took = time.monotonic() - started
            self.say(f"{label}: {count} pictures in {took:.1f} s" + (f", {last}" if last else ""))


class Stopwatch:
    """Seconds of the named parts of a job, and since its start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to `name`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def summary(self) -> str:
        """The parts in words, such as "reading 3 s, threshold 12 s"."""
        return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())


@dataclass(frozen=True)
class TimeLimit:
    """The time that a job may take.

    Attributes:
        seconds: Duration of the whole job.
        started: When it started, by `time.monotonic`.
        spent: Seconds that earlier parts of an interrupted job took.
    """

    seconds: float
    started: float
    spent: float = 0.0

    @property
    def used(self) -> float:
        """Seconds that the job has taken so far."""
        return self.spent + time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds until the job must end; negative after that."""
        return self.seconds - self.used


def with_estimate(advance: Advance, total: int, told: Callable[[float, float], None]) -> Advance:
    """`advance`, which estimates the remaining time once, as soon as the speed is known.

    Args:
        advance: Called with every progress.
        total: Number of pictures.
        told: Called with the seconds that the rest takes, and with the share of the time in which this process had a
            core; it may be above 1 for several cores. Not called where the job is done before the speed is known.
    """
    count, first, known = 0, (0, 0.0, 0.0), False

    def estimating(done: int, note: str) -> None:
        nonlocal count, first, known
        advance(done, note)
        count += done
        now = (count, time.monotonic(), time.process_time())
        if not first[0]:  # the first pictures wait for the network to be prepared
            first = now
        pictures, seconds, worked = (after - before for after, before in zip(now, first, strict=True))
        if not known and count < total and pictures >= _ESTIMATED and seconds >= _ESTIMATED_SECONDS:
            known = True
            told((total - count) * seconds / pictures, worked / seconds)

    return estimating


def in_words(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> in_words(100)
        'about 2 min'
    """
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def _ignore(done: int, note: str) -> None:
    pass


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.{0 if speed >= 10 else 1}f} pictures/s")
