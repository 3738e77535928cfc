"""Options as frozen dataclasses: each field is checked, is one flag of the command line, and goes to config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Self

from finetune.errors import InputError


def option(
    default: Any, about: str, *, choices: tuple[str, ...] = (), low: float | None = None, below: float | None = None
) -> Any:
    """A field of `Options`. choices: all that are allowed. low: the smallest value; below: what it stays below."""
    return field(default=default, metadata={"about": about, "choices": choices, "low": low, "below": below})


class Options:
    """What a frozen dataclass of options derives from. InputError, naming the flag, for a wrong type or value."""

    def __post_init__(self) -> None:
        for known in dataclasses.fields(self):  # type: ignore[arg-type]
            _check(known, getattr(self, known.name))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The options saved as `values`. InputError for an unknown key."""
        known = {known.name for known in dataclasses.fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        if unknown:
            raise InputError(f"unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]


def flag(name: str) -> str:
    """The command-line spelling of an option's name."""
    return "--" + name.replace("_", "-")


def kind(option: dataclasses.Field[Any]) -> type:
    """str, int, float or bool: the type of an option's values."""
    return {"str": str, "int": int, "float": float, "bool": bool}[str(option.type).removesuffix(" | None")]


def _check(option: dataclasses.Field[Any], value: Any) -> None:
    if value is None and str(option.type).endswith("| None"):
        return
    expected = kind(option)
    right = isinstance(value, (int, float) if expected is float else expected)
    if not right or (isinstance(value, bool) and expected is not bool):
        raise InputError(f"{flag(option.name)} must be of type {expected.__name__}, not {value!r}")
    if expected is float and not math.isfinite(value):
        raise InputError(f"{flag(option.name)} must be a finite number, not {value}")
    choices, low, below = (option.metadata[key] for key in ("choices", "low", "below"))
    if choices and value not in choices:
        raise InputError(f"{flag(option.name)} must be one of {', '.join(choices)}, not {value!r}")
    if low is not None and value < low:
        raise InputError(f"{flag(option.name)} must be at least {low}, not {value}")
    if below is not None and value >= below:
        raise InputError(f"{flag(option.name)} must be below {below}, not {value}")
