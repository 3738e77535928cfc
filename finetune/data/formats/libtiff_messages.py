"""What libtiff has to say while pictures are read, collected instead of printed to the file descriptor of stderr."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import PIL
from PIL import Image

from finetune.shared_change import SharedChange

# void (const char* module, const char* format, va_list arguments). A va_list is passed as a pointer wherever this is
# used: as an array on x86-64, by reference on 64-bit ARM, as a plain pointer on macOS.
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_SETTERS = ("TIFFSetErrorHandler", "TIFFSetWarningHandler")
_LONGEST = 200


class _Messages:
    """Routes libtiff's messages of reading threads to lists, those of other threads to the handlers that were there.

    libtiff has one pair of handlers for the process, and Pillow does not expose it. It is replaced while any thread
    reads. Where libtiff is no library of its own, as on Windows, its messages are printed.
    """

    def __init__(self) -> None:
        self._readers: dict[int, list[str]] = {}
        self._before: dict[str, Any] = {}
        self._ours = {setter: _Handler(self._receiver(setter)) for setter in _SETTERS}
        self._installed = SharedChange(self._handlers)

    @contextmanager
    def collected(self) -> Iterator[list[str]]:
        """The messages of this thread in the block."""
        library = _library()
        found: list[str] = []
        if library is None:
            yield found
            return
        with self._installed(library):
            self._readers[threading.get_ident()] = found
            try:
                yield found
            finally:
                del self._readers[threading.get_ident()]

    @contextmanager
    def _handlers(self, library: ctypes.CDLL) -> Iterator[None]:
        for setter, handler in self._ours.items():
            self._before[setter] = getattr(library, setter)(ctypes.cast(handler, ctypes.c_void_p))
        try:
            yield
        finally:
            for setter, before in self._before.items():
                getattr(library, setter)(before)

    def _receiver(self, setter: str) -> Any:
        def receive(module: int | None, form: int | None, arguments: int | None) -> None:
            found = self._readers.get(threading.get_ident())
            if found is None:
                if before := self._before.get(setter):
                    _Handler(before)(module, form, arguments)
            elif setter == "TIFFSetErrorHandler" and len(found) < 10:
                text = ctypes.create_string_buffer(_LONGEST)
                ctypes.CDLL(None).vsnprintf(text, _LONGEST, ctypes.c_void_p(form), ctypes.c_void_p(arguments))
                found.append(text.value.decode(errors="replace"))

        return receive


collected_messages = _Messages().collected


@cache
def _library() -> ctypes.CDLL | None:
    """The libtiff that Pillow has loaded; None where there is none of its own."""
    if os.name == "nt":
        return None
    _ = Image.core  # loads it
    for path in _loaded():
        try:
            library = ctypes.CDLL(path, mode=os.RTLD_NOW | getattr(os, "RTLD_NOLOAD", 0))
            for setter in _SETTERS:
                function = getattr(library, setter)
                function.restype, function.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
        except (OSError, AttributeError):  # not loaded, or another library of this name
            continue
        return library
    return None


def _loaded() -> list[str]:
    if sys.platform == "darwin":
        return [str(path) for path in (Path(PIL.__file__).parent / ".dylibs").glob("libtiff*")]
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not on this system
        return []
    return sorted({path for line in lines if "libtiff" in (path := line.split(maxsplit=5)[-1])})
