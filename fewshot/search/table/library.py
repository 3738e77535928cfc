"""Lance, imported on first use, and its errors as one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune.errors import InputError
from finetune.extras import check_extra
from finetune.terminal import in_one_line

# Where in Lance's source an error arose, and words that say nothing to a user.
_SOURCE = re.compile(r",? ?/\S+\.rs:\d+(?::\d+)?|LanceError\(\w+\): |Invalid user input: |External error: ")
# What Lance and pyarrow raise for files, conditions and arguments.
_KNOWN = (OSError, ValueError, RuntimeError, NotImplementedError)
# An error of its own where Lance commits what this package has planned; elsewhere an OSError with one of these texts.
_CONFLICTS = ("Too many concurrent writers", "Retryable commit conflict", "Incompatible transaction")
_used_by: int | None = None  # the process that uses Lance


def import_lance() -> Any:
    """Import pylance. Any: it is an extra.

    InputError if it is missing, or in a forked child of a process that uses it: Lance's threads do not survive a fork,
    and the child would crash or wait forever.
    """
    global _used_by
    check_extra("lance", "a Lance table")
    import lance

    _used_by = _used_by or os.getpid()
    if _used_by != os.getpid():
        raise InputError(
            "Lance cannot be used in a forked process: open the table there first, or start the process with spawn"
        )
    return lance


@contextmanager
def lance_errors(doing: str) -> Iterator[None]:
    """Raise an InputError, "`doing`: reason", for what Lance raises."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if is_conflict(error) or not (isinstance(error, _KNOWN) or _is_panic(error)):
            raise
        raise InputError(f"{doing}: {reason_of_lance(error)}") from error


def is_conflict(error: BaseException) -> bool:
    """Whether another process has changed the table meanwhile, so that the change must be made again."""
    return type(error).__name__ == "CommitConflictError" or any(text in str(error) for text in _CONFLICTS)


def reason_of_lance(error: BaseException) -> str:
    return in_one_line(_SOURCE.sub("", str(error)) or type(error).__name__)


def _is_panic(error: BaseException) -> bool:
    """Whether an assertion of Rust's has failed, as in damaged files. Its type, which cannot be imported, is no
    Exception."""
    return type(error).__name__ == "PanicException"
