"""Signals that stop a command: SIGINT (Ctrl-C), SIGTERM and SIGHUP raise one exception in its main thread."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

TYPE_CHECKING = False  # importing typing takes longer than everything else here
if TYPE_CHECKING:
    from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)

# `timeout` and supervisors signal a process twice, itself and its group. Later than this, a signal is a second one.
TWICE_SECONDS = 0.5
# An exception in the middle of an import may be lost or become another one, so it waits until the import ends.
_LONGEST_WAIT, _WAIT = 5.0, 0.02


class Stopped(KeyboardInterrupt):
    """A signal asked the command to stop. Its clean-up is that of Ctrl-C."""


class StopSignals:
    """The handlers of one command.

    Until `command_runs`, and while a command imports its job, a signal ends the process at once: there is nothing to
    clean up. Else it raises `Stopped`, and a second signal ends the process at once. After `work_is_done`, a signal
    ends it with the command's own exit code. After `ignore`, it does nothing. Signals that the parent process ignores,
    as nohup does, stay ignored.
    """

    installed: StopSignals | None = None

    def __init__(self, program: str):
        self.program = program
        self.received: int | None = None
        self._process = os.getpid()
        self._running = False
        self._code: int | None = None  # known when the work is done
        self._first = 0.0  # time of the first signal
        self._delayed = False  # whether the next signal is the first one, delivered later
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    @classmethod
    def install(cls, program: str) -> StopSignals:
        """Handle the signals of this process, until `restore`."""
        signals = cls.installed = cls(program)
        if _in_main_thread():  # no other thread may set handlers
            for number in _stop_numbers():
                if (handler := signal.getsignal(number)) in _DEFAULTS:
                    signals._before[number] = handler
                    signal.signal(number, signals._handle)
            sys.unraisablehook = signals._unraisable
        return signals

    def restore(self) -> None:
        """Handle signals as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before or sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._hook
        StopSignals.installed = None

    def ignore(self) -> None:
        """From here on, signals do nothing. Python resets handlers while it ends, but not ignored signals."""
        for number in self._before:
            if number in _stop_numbers():
                signal.signal(number, signal.SIG_IGN)

    def command_runs(self) -> None:
        """From here on, a signal raises `Stopped`."""
        self._running = True

    def work_is_done(self, code: object) -> None:
        """From here on, a signal ends the process with `code`."""
        self._code = code if isinstance(code, int) else int(code is not None)

    @property
    def exit_code(self) -> int:
        """Exit code of a command that a signal stopped: 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + (signal.SIGINT if self.received is None else self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a process that decodes pictures; the one that started it ends it
        if self._code is not None:
            os._exit(self._code)
        now = time.monotonic()
        delayed, self._delayed = self._delayed, False
        if self.received is None:
            self.received, self._first = number, now
        elif not delayed:
            if now - self._first > TWICE_SECONDS:
                self._end()
            return
        importer = _importer(frame)
        if not self._running or (importer is not None and _is_command(importer)):
            self._end()
        if importer is not None and now - self._first < _LONGEST_WAIT:
            self._deliver_later()
            return
        if hasattr(signal, "SIGCHLD"):
            # The same signal may have ended processes that decode pictures. torch raises a RuntimeError for that.
            self._before.setdefault(signal.SIGCHLD, signal.signal(signal.SIGCHLD, signal.SIG_DFL))
        raise Stopped

    def say_stopped(self) -> None:
        """The line, without the streams that the interrupted code may be writing to."""
        if int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or "0"):
            return  # the first of several processes says it
        with suppress(OSError):  # a closed stream
            os.write(2, f"{self.program}: stopped\n".encode())

    def _end(self) -> None:
        self.say_stopped()
        os._exit(self.exit_code)

    def _deliver_later(self) -> None:
        def deliver() -> None:
            time.sleep(_WAIT)
            self._delayed = True
            number = self.received or signal.SIGINT
            if os.name == "nt":
                signal.raise_signal(number)  # where os.kill ends the process
            else:
                os.kill(self._process, number)

        # Not by threading, whose locks the interrupted code may hold.
        _thread.start_new_thread(deliver, ())

    def _unraisable(self, unraisable: Any) -> None:
        """A destructor or a callback cannot pass an exception on; Python would print and forget it."""
        if isinstance(unraisable.exc_value, Stopped):
            self._deliver_later()
        else:
            self._hook(unraisable)


@contextmanager
def stoppable(program: str) -> Iterator[StopSignals]:
    """Inside, signals raise `Stopped`. Handlers that `start` installed stay; others are restored."""
    signals, installed = StopSignals.installed, StopSignals.installed is None
    if signals is None:
        signals = StopSignals.install(program)
    try:
        signals.command_runs()
        yield signals
    except Stopped:  # outside the command, as when its output is flushed
        signals.say_stopped()
        raise SystemExit(signals.exit_code) from None
    finally:
        if installed:
            signals.restore()


def stopped_exit_code() -> int:
    """Exit code of the running command where it was stopped."""
    signals = StopSignals.installed
    return 128 + signal.SIGINT if signals is None else signals.exit_code


def _stop_numbers() -> tuple[int, ...]:
    return tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


def _in_main_thread() -> bool:
    threading = sys.modules.get("threading")
    return threading is None or threading.current_thread() is threading.main_thread()


def _importer(frame: FrameType | None) -> FrameType | None:
    """The function that waits for an import, if any."""
    importer = None
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            importer = frame.f_back
        frame = frame.f_back
    while importer is not None and (
        importer.f_code.co_name == "__getattr__" or importer.f_globals.get("__name__") == "importlib"
    ):
        importer = importer.f_back
    return importer


def _is_command(frame: FrameType) -> bool:
    return ".cli." in str(frame.f_globals.get("__name__"))
