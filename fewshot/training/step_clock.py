"""Durations of the parts of training steps, by the clock of a CPU or by events of a GPU."""

from __future__ import annotations

import time

import torch

# Events that are kept before their times are read.
_UNREAD = 512


class StepClock:
    """Durations of the parts of steps, the device's work included.

    On a GPU each part ends with an event, so that nothing waits. Parts follow on each other without gaps, from step to
    step: the time in which the GPU has no work counts to the part that follows.

    Args:
        device: Where the steps run.

    Example:
        >>> clock = StepClock(torch.device("cpu"))
        >>> clock.begin()
        >>> clock.end("batch")
        >>> clock.share("batch")
        1.0
    """

    def __init__(self, device: torch.device):
        self._by_events = device.type == "cuda"
        self._last: float | torch.cuda.Event | None = None
        self._unread: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}

    def begin(self) -> None:
        """A step begins. On a GPU, one that follows a timed step begins where that ended."""
        if not self._by_events or self._last is None:
            self._last = self._now()

    def end(self, part: str) -> None:
        """A part ends; it began with `begin` or where the part before ended."""
        before, self._last = self._last, self._now()
        if isinstance(before, torch.cuda.Event) and isinstance(self._last, torch.cuda.Event):
            self._unread.append((part, before, self._last))
            if len(self._unread) > _UNREAD:
                self._read(_UNREAD // 2)
        elif isinstance(before, float) and isinstance(self._last, float):
            self._add(part, self._last - before)

    def stop(self) -> None:
        """Work that is not timed follows."""
        self._last = None

    def total(self) -> float:
        """Seconds of all parts."""
        self._read(len(self._unread))
        return sum(self._seconds.values())

    def share(self, part: str) -> float:
        """Share of a part in the total, in [0, 1]."""
        total = self.total()
        return self._seconds.get(part, 0.0) / max(1e-9, total)

    def _now(self) -> float | torch.cuda.Event:
        if not self._by_events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _add(self, part: str, seconds: float) -> None:
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds

    def _read(self, count: int) -> None:
        for part, before, after in self._unread[:count]:
            after.synchronize()
            self._add(part, before.elapsed_time(after) / 1000)
        del self._unread[:count]
