"""Displays that keep their lines, or fail when there is one."""

from __future__ import annotations

from finetune.progress import Display


class NothingSaid(Display):
    """Fails when it is to show a line."""

    def say(self, line: str) -> None:
        raise AssertionError(f"a line is shown: {line}")


class Told(Display):
    """Keeps the lines that it is to show."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
