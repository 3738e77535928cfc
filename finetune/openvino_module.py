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
    with _lock, nullcontext() if "openvino" in sys.modules else _hidden(_REPORTS):
        return import_module("openvino")


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """A module that cannot be imported meanwhile."""
    imported = name in sys.modules
    before = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if imported and before is not None:
            sys.modules[name] = before
        else:
            del sys.modules[name]
