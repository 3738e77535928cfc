"""Changes to what all threads share, such as the settings of a library: the last thread undoes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any


class SharedChange:
    """A context that makes a change which threads share: the first thread makes it, and the last one undoes it.

    change: Makes and undoes it, called with the arguments of the first thread.
    """

    def __init__(self, change: Callable[..., AbstractContextManager[object]]):
        self._change = change
        self._lock = threading.Lock()
        self._threads = 0
        self._undo = ExitStack()

    @contextmanager
    def __call__(self, *arguments: Any) -> Iterator[None]:
        with self._lock:
            if self._threads == 0:
                self._undo.enter_context(self._change(*arguments))
            self._threads += 1
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if self._threads == 0:
                    self._undo.close()
