"""Options as frozen dataclasses: each field is checked, is one flag of the command line, and goes to config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Self

from finetune.errors import InputError
from finetune.options.suggestions import CHOICES, did_you_mean


def option(
    default: Any,
    about: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    below: float | None = None,
    word: str | None = None,
    unset: str = "",
    metavar: str | None = None,
    section: str = "Options",
) -> Any:
    """A field of `Options`.

    Args:
        default: Its value where it is not given.
        about: Sentences for the help text; each starts with a capital and ends with a full stop.
        choices: All allowed values, where there are few.
        low: The smallest allowed value.
        below: The value that it must stay below.
        word: A word that is allowed instead of a number.
        unset: What None means, in words, for an option whose default is None.
        metavar: What the help text calls the value, such as FILE.
        section: Heading of the help text that lists the option.

    Returns:
        A dataclass field.
    """
    metadata = {
        "about": about,
        "choices": choices,
        "low": low,
        "below": below,
        "word": word,
        "unset": unset,
        "metavar": metavar,
        "section": section,
    }
    return field(default=default, metadata=metadata)


class Options:
    """Base of a frozen dataclass of options. InputError, naming the option, for a wrong name, type or value.

    Choices are accepted in any case: "Head" is "head".
    """

    def __new__(cls, **values: Any) -> Self:
        # Before __init__, whose TypeError suggests nothing.
        known = [known.name for known in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in values:
            if name not in known:
                meant = did_you_mean(name, known) or f"; known are {', '.join(sorted(known))}"
                raise InputError(f"unknown option {name!r}{meant}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for known in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, known.name)
            for choice in known.metadata["choices"]:
                if isinstance(value, str) and value.casefold() == choice.casefold():
                    object.__setattr__(self, known.name, choice)
            _check(known, getattr(self, known.name))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The options saved as `values`. InputError for an unknown key."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]


def described(options: type[Options]) -> list[str]:
    """One line for each option, for a docstring: name, first sentence of the help text, choices, default."""
    lines = []
    for known in dataclasses.fields(options):  # type: ignore[arg-type]
        sentence = known.metadata["about"].split(". ")[0].rstrip(".")
        default = known.metadata["unset"] if known.default is None else repr(known.default)
        choices = known.metadata["choices"]
        one_of = "" if all(choice in sentence for choice in choices) else f" One of {', '.join(choices)}."
        lines.append(f"{known.name}: {sentence}.{one_of} Default: {default}.")
    return lines


def flag(name: str) -> str:
    """The command-line spelling of an option's name."""
    return "--" + name.replace("_", "-")


def kind(option: dataclasses.Field[Any]) -> Callable[[str], Any]:
    """What makes a value of an option from its text: str, int, float, bool, or a reader of a number or a word."""
    word, number = option.metadata["word"], _type(option)
    if word is None:
        return number

    def read(text: str) -> Any:
        try:
            return word if text.casefold() == word else number(text)
        except ValueError:
            return text  # which the options then refuse

    read.__name__ = f"{number.__name__}|{word}"
    return read


def _type(option: dataclasses.Field[Any]) -> type:
    return {"str": str, "int": int, "float": float, "bool": bool}[str(option.type).split(" | ")[0]]


def _check(option: dataclasses.Field[Any], value: Any) -> None:
    choices, low, below, word = (option.metadata[key] for key in ("choices", "low", "below", "word"))
    if (value is None and str(option.type).endswith("| None")) or (word is not None and value == word):
        return
    expected = _type(option)
    right = isinstance(value, (int, float) if expected is float else expected)
    if not right or (isinstance(value, bool) and expected is not bool):
        or_word = "" if word is None else f", or {word!r}"
        raise InputError(f"{flag(option.name)} must be of type {expected.__name__}{or_word}, not {value!r}")
    if expected is float and not math.isfinite(value):
        raise InputError(f"{flag(option.name)} must be a finite number, not {value}")
    if choices and value not in choices:
        meant = did_you_mean(value, choices, CHOICES)
        raise InputError(f"{flag(option.name)} must be one of {', '.join(choices)}, not {value!r}{meant}")
    if low is not None and value < low:
        raise InputError(f"{flag(option.name)} must be at least {low}, not {value}")
    if below is not None and value >= below:
        raise InputError(f"{flag(option.name)} must be below {below}, not {value}")
