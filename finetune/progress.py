"""What a person sees while a job runs: bars with rate and remaining time, and single lines; silent by default."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

# Called with how many more are done, and a few words on how it goes.
Advance = Callable[[int, str], None]


class Display:
    """Shows on `console`; shows nothing when that is None."""

    def __init__(self, console: Console | None = None):
        self.console = console

    def say(self, line: str) -> None:
        if self.console is not None:
            self.console.print(line, markup=False, highlight=False)

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "pictures") -> Iterator[Advance]:
        if self.console is None:
            yield _ignore
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=self.console, transient=not self.console.is_terminal) as progress:
            task = progress.add_task(label, total=total, note="")

            def advance(done: int, note: str = "") -> None:
                if note:
                    progress.update(task, note=note)
                progress.update(task, advance=done)

            yield advance


def _ignore(done: int, note: str) -> None:
    pass


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(
            "" if speed is None else f"{speed:.0f} {self.unit}/s" if speed >= 10 else f"{speed:.1f} {self.unit}/s"
        )
