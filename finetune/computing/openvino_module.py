"""OpenVINO's module, imported without its report of use over the network, and its core, made once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib import import_module
from threading import Lock
from types import ModuleType
from typing import Any

_REPORTS = "openvino_telemetry"
_lock, _core_lock = Lock(), Lock()


def openvino_module() -> ModuleType:
    """The module `openvino`.

    Where its import finds the package `openvino_telemetry`, it writes a file in the home folder, starts a process and
    sends a report to a web address. Here the import does not find it, and openvino takes its own stub instead.
    """
    with _lock, nullcontext() if "openvino" in sys.modules else no_reports():
        return import_module("openvino")


def openvino_core() -> Any:
    """OpenVINO's core, one for the process.

    Its plugin for CPUs gives the thread that loads it another stack for signals, and unmaps that stack with the
    core. Where another thread drops it, the next signal of the first thread, such as that of Ctrl-C, would end
    the process with a segmentation fault.
    """
    with _core_lock:  # `cache` alone lets two threads make one each
        return _core()


@cache
def _core() -> Any:
    return openvino_module().Core()


@contextmanager
def no_reports() -> Iterator[None]:
    """The package that reports cannot be imported meanwhile; openvino and its tools then report nothing."""
    before = sys.modules.get(_REPORTS)
    sys.modules[_REPORTS] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if before is None:
            del sys.modules[_REPORTS]
        else:
            sys.modules[_REPORTS] = before
