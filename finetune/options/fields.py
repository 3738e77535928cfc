"""Options as frozen dataclasses. Each field is checked, becomes a flag, and is saved in config.json."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Self, get_args, get_type_hints

from finetune.errors import InputError
from finetune.options.suggestions import CHOICES, did_you_mean

# Types of the fields of each dataclass: resolving them takes milliseconds.
_HINTS: dict[Any, dict[str, Any]] = {}


def option(
    default: Any,
    about: str,
    *,
    choices: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
    above: float | None = None,
    word: str | None = None,
    unset: str = "",
    metavar: str | None = None,
    section: str = "Options",
    commands: tuple[str, ...] = (),
    only_with: tuple[str, tuple[str, ...]] | None = None,
) -> Any:
    """A field of `Options`.

    Args:
        default: Its value where it is not given.
        about: Sentences for the help text; each starts with a capital and ends with a full stop.
        choices: All allowed values, where there are few.
        low: Smallest allowed value.
        high: Largest allowed value.
        below: The value must be smaller than this.
        above: The value must be larger than this.
        word: A word that is allowed instead of a number.
        unset: What None means, in words, for an option whose default is None.
        metavar: What the help text calls the value, such as FILE.
        section: Heading of the help text that lists the option.
        commands: Further commands that use the option, beside the one that the dataclass is made for.
        only_with: Name of another option, and its values with which this one has an effect. None: it always has.

    Returns:
        A dataclass field.
    """
    metadata = {
        "about": about,
        "choices": choices,
        "low": low,
        "high": high,
        "below": below,
        "above": above,
        "word": word,
        "unset": unset,
        "metavar": metavar,
        "section": section,
        "commands": commands,
        "only_with": only_with,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Base of a frozen dataclass of options. Choices are accepted in any case: "Head" is "head".

    Raises:
        InputError: For a wrong name, type or value; the message names the option.
    """

    def __new__(cls, **values: Any) -> Self:
        # Checked here because the TypeError of __init__ suggests no name.
        known = [known.name for known in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                meant = did_you_mean(name, known) or f"; known are {', '.join(sorted(known))}"
                raise InputError(f"unknown option {name!r}{meant}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for known in dataclasses.fields(self):
            value = getattr(self, known.name)
            for choice in known.metadata["choices"]:
                if isinstance(value, str) and value.casefold() == choice.casefold():
                    object.__setattr__(self, known.name, choice)
            _check(type(self), known, getattr(self, known.name))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The options saved as `values`. InputError for an unknown key."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Every option and its value."""
        return dataclasses.asdict(self)

    def without_effect(self, **resolved: str) -> list[str]:
        """Names of the options that differ from their defaults and have no effect with the others.

        Args:
            resolved: Values of options as the run has chosen them, such as `strategy="head"` where "auto" was given.
        """
        values = self.to_dict() | resolved
        unused = []
        for known in dataclasses.fields(self):
            needed = known.metadata["only_with"]
            if needed is not None and values[needed[0]] not in needed[1] and values[known.name] != known.default:
                unused.append(known.name)
        return unused


def no_effect(names: Sequence[str], chosen: str) -> str:
    """The sentence that names the options without effect. chosen: what was chosen, such as "strategy head"."""
    return f"{', '.join(map(flag, names))} {'has' if len(names) == 1 else 'have'} no effect with {chosen}."


def used_by(options: type[Options], command: str | None) -> list[dataclasses.Field[Any]]:
    """The options that `command` uses; all of them for None, the command that the dataclass is made for."""
    return [known for known in dataclasses.fields(options) if command in (None, *known.metadata["commands"])]


def described(options: type[Options]) -> list[str]:
    """One line for each option, for a docstring: name, first sentence of the help text, choices, default."""
    lines = []
    for known in dataclasses.fields(options):
        sentence = known.metadata["about"].split(". ")[0].rstrip(".")
        default = known.metadata["unset"] if known.default is None else repr(known.default)
        choices = known.metadata["choices"]
        one_of = "" if all(choice in sentence for choice in choices) else f" One of {', '.join(choices)}."
        lines.append(f"{known.name}: {sentence}.{one_of} Default: {default}.")
    return lines


def flag(name: str) -> str:
    """The command-line spelling of an option's name."""
    return "--" + name.replace("_", "-")


def value_type(options: type[Options], name: str) -> type:
    """The type of an option's value, beside None and a word: str, int, float or bool."""
    if options not in _HINTS:
        _HINTS[options] = get_type_hints(options)
    hint = _HINTS[options][name]
    types = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
    found: type = types[0]
    return found


def _check(options: type[Options], option: dataclasses.Field[Any], value: Any) -> None:
    keys = ("choices", "low", "high", "below", "above", "word")
    choices, low, high, below, above, word = (option.metadata[key] for key in keys)
    if (value is None and option.default is None) or (word is not None and value == word):
        return
    expected = value_type(options, option.name)
    right = isinstance(value, (int, float) if expected is float else expected)
    if not right or (isinstance(value, bool) and expected is not bool):
        or_word = "" if word is None else f", or {word!r}"
        raise InputError(f"{flag(option.name)} must be of type {expected.__name__}{or_word}, not {value!r}")
    if expected is float and not abs(value) <= sys.float_info.max:  # also whole numbers, of any size
        raise InputError(f"{flag(option.name)} must be a finite number, not {value}")
    if choices and value not in choices:
        meant = did_you_mean(value, choices, CHOICES)
        raise InputError(f"{flag(option.name)} must be one of {', '.join(choices)}, not {value!r}{meant}")
    if low is not None and value < low:
        raise InputError(f"{flag(option.name)} must be at least {low}, not {value}")
    if high is not None and value > high:
        raise InputError(f"{flag(option.name)} must be at most {high}, not {value}")
    if below is not None and value >= below:
        raise InputError(f"{flag(option.name)} must be below {below}, not {value}")
    if above is not None and value <= above:
        raise InputError(f"{flag(option.name)} must be above {above}, not {value}")
