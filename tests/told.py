"""A display that keeps what it was told."""

from __future__ import annotations

from finetune.progress import Display


class Told(Display):
    """Keeps what it was told to say."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
