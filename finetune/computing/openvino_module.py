"""OpenVINO's module, imported without its report of use over the network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from threading import Lock
from types import ModuleType

_REPORTS = "openvino_telemetry"
_lock = Lock()


def openvino_module() -> ModuleType:
    """The module `openvino`.

    Where its import finds the package `openvino_telemetry`, it writes a file in the home folder, starts a process and
    sends a report to a web address. Here the import does not find it, and openvino takes its own stub instead.
    """
    with _lock, nullcontext() if "openvino" in sys.modules else no_reports():
        return import_module("openvino")


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
