"""JSON and tensors read from files that may be damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors import SafetensorError, safe_open
from torch import Tensor

from finetune.errors import InputError

T = TypeVar("T")


def read_json(path: Path) -> Any:
    """The JSON value in `path`. InputError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); it may be damaged") from error


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is not a number")


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
        return msgspec.convert(value, kind)
    except (ValueError, RecursionError) as error:  # a lone surrogate makes msgspec raise UnicodeEncodeError
        reason, _, field = str(error).replace("`", "").partition(" - at $.")
        where = f"{field}: " if field else ""
        raise InputError(f"{source} may be damaged: {where}{reason[:1].lower()}{reason[1:]}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file. InputError when it is missing or damaged."""
    return read_tensors_and_metadata(path)[0]


def read_tensors_and_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a safetensors file and its header's metadata. InputError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path} is not a valid safetensors file ({error}); it may be damaged") from error
