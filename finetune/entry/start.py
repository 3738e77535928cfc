"""The start of a command's process: signals are handled first, then the command is imported."""

from __future__ import annotations

import atexit
import sys

from finetune.entry.deferred_compiler import DeferredCompiler
from finetune.entry.signals import StopSignals


def start(program: str, module: str) -> None:
    """Run `module.main()`. From here to the end of the process, a signal ends it with one line and no traceback.

    Args:
        program: Name of the command, for messages.
        module: Module to import.
    """
    signals = StopSignals.install(program)
    atexit.register(signals.ignore)  # the first one that is registered runs last
    DeferredCompiler.install()
    code: str | int | None = 1
    try:
        __import__(module)
        sys.modules[module].main()
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        signals.work_is_done(code)
