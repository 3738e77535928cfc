"""JSON and tensors read from files that may be damaged or made to do harm: sizes are checked before memory is taken."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import InputError
from finetune.terminal import in_one_line

T = TypeVar("T")

# Bytes of a JSON file. The largest of this project are records of splits, 70 bytes a picture; files that can be larger
# are read with a bound of their own.
MOST_JSON_BYTES = 128 << 20
# Nesting of arrays and objects. The files of this project have at most 8 levels.
MOST_JSON_DEPTH = 50
# Bytes of the header of a safetensors file. Weights have 0.2 MB; galleries and checkpoints keep more in theirs.
MOST_HEADER_BYTES = 32 << 20

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
# Brackets whose depths are computed at once.
_AT_ONCE = 1 << 20
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True)
class TensorForm:
    """A tensor in the header of a safetensors file: number format, shape, and where its bytes are."""

    dtype: str
    shape: tuple[Annotated[int, Meta(ge=0, le=2**62)], ...]
    data_offsets: tuple[Annotated[int, Meta(ge=0, le=2**62)], Annotated[int, Meta(ge=0, le=2**62)]]


@dataclass(frozen=True)
class TensorsHeader:
    """The header of a safetensors file: its tensors by name, and its metadata."""

    tensors: dict[str, TensorForm]
    metadata: dict[str, str]


# --- JSON -------------------------------------------------------------------------------------------------------------


def read_json(path: Path, *, most_bytes: int = MOST_JSON_BYTES) -> Any:
    """The JSON value in a file.

    Args:
        path: The file.
        most_bytes: Largest size of the file that is read.

    Raises:
        InputError: If it is missing, damaged, no regular file, too large or nested too deep. The message names it.
    """
    with _opened(path) as (file, size):
        if size > most_bytes:
            raise InputError(f"{path} has {size:,} bytes, and at most {most_bytes:,} are read; it may be damaged")
        content = file.read(most_bytes + 1)  # not more, where the file grows meanwhile
    return parse_json(content, str(path))


def parse_json(content: bytes | str, source: str) -> Any:
    """The JSON value in a text, such as one in the metadata of a file. InputError, which names `source`, for others.

    NaN, infinite numbers and objects with one key twice are refused: they mean different things to different readers.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
        _check_depth(text.encode(errors="surrogatepass") if isinstance(content, str) else content)
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not valid JSON ({_reason(error)}); it may be damaged") from error


def as_type(value: Any, kind: type[T], source: str) -> T:
    """A JSON value as a dataclass, with the type and the bounds of every field checked; unknown keys are ignored.

    Args:
        value: What `read_json` gave.
        kind: A dataclass. Its annotations are the types; `typing.Annotated` with `msgspec.Meta` adds bounds.
        source: Name of the file, for the error.

    Raises:
        InputError: If a field is missing or wrong; the message names `source` and the field.
    """
    try:
        return msgspec.convert(value, kind, str_keys=True)  # keys of JSON objects are texts
    # A lone surrogate in a key makes msgspec raise UnicodeEncodeError; a number without bounds, OverflowError.
    except (ValueError, RecursionError, OverflowError) as error:
        reason, _, field = str(error).replace("`", "").partition(" - at $.")
        where, why = f"{in_one_line(field)}: " if field else "", in_one_line(reason)
        raise InputError(f"{source} may be damaged: {where}{why[:1].lower()}{why[1:]}") from error


def _check_depth(content: bytes) -> None:
    """ValueError where brackets outside of strings are nested deeper than the bound. Found without recursion."""
    brackets = np.frombuffer(_STRING.sub(b"", content).translate(None, _NO_BRACKETS), np.uint8)
    depth = 0
    for start in range(0, len(brackets), _AT_ONCE):
        part = brackets[start : start + _AT_ONCE]
        depths = depth + np.where((part == ord("[")) | (part == ord("{")), 1, -1).cumsum()
        if depths.max() > MOST_JSON_DEPTH:
            raise ValueError(f"it is nested deeper than {MOST_JSON_DEPTH} levels")
        depth = int(depths[-1])


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is out of range")
    return number


# --- tensors ----------------------------------------------------------------------------------------------------------


def read_tensors(path: Path, *, most_header: int = MOST_HEADER_BYTES) -> dict[str, Tensor]:
    """The tensors in a safetensors file, as of `read_tensors_and_metadata`."""
    return read_tensors_and_metadata(path, most_header=most_header)[0]


def read_tensors_and_metadata(
    path: Path, *, most_header: int = MOST_HEADER_BYTES
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a safetensors file and its header's metadata.

    The tensors are mapped from the file, so that their memory is taken where values are used. What they must be called,
    their shapes, number formats and values are the caller's to check, with `finetune.files.tensors`.

    Args:
        path: The file.
        most_header: Largest header in bytes that is read.

    Raises:
        InputError: If the file is missing, damaged, or its header does not fit its contents. The message names it.
    """
    header = read_tensors_header(path, most_header=most_header)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in header.tensors}, header.metadata
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    # Number formats that torch or this version of safetensors does not know raise other errors.
    except (SafetensorError, AttributeError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise _not_safetensors(path, _reason(error)) from error


def read_tensors_header(path: Path, *, most_header: int = MOST_HEADER_BYTES) -> TensorsHeader:
    """The header of a safetensors file, without its tensors. Errors as of `read_tensors_and_metadata`."""
    with _opened(path) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _not_safetensors(path, f"it has {size:,} bytes, and its header claims {length:,}")
        if length > most_header:
            raise _not_safetensors(path, f"its header has {length:,} bytes, and at most {most_header:,} are read")
        content = file.read(length)
    try:
        values = parse_json(content, "its header")
        if not isinstance(values, dict):
            raise InputError("its header is no JSON object")
        metadata = values.pop("__metadata__", None) or {}
        found = {"tensors": values, "metadata": metadata}
        return as_type(found, TensorsHeader, "its header")
    except InputError as error:
        raise _not_safetensors(path, str(error).removesuffix("; it may be damaged")) from error


def _not_safetensors(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is not a valid safetensors file ({reason}); it may be damaged")


# --- files ------------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file and its size. A pipe or a device is refused unopened: reading it might never end."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _reason(error: BaseException) -> str:
    return in_one_line(str(error) or type(error).__name__)
