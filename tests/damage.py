"""Damage to files: JSON with other values in it, and bytes that are flipped, cut off or added."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from finetune.errors import InputError

# The same few examples on every machine: a property test costs as much as an example test.
FEW = settings(
    max_examples=30,
    phases=[Phase.generate],  # a failing example is small already
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "../x", "\x1b[31m", "\ud800", "head", "a" * 300]),
    st.sampled_from([[], {}, [[]], [0, 0], {"a": 1}, [1e300, -1, 0.5]]),
)


MISSING = object()


def places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON value, its own first."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above, *(place for key, child in children for place in places(child, (*above, key)))]


def with_value(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy of a JSON value with another value at a place, or for MISSING without the place."""
    if not place:
        return None if new is MISSING else new
    copied = json.loads(json.dumps(value))
    at = copied
    for key in place[:-1]:
        at = at[key]
    if new is MISSING:
        del at[place[-1]]
    else:
        at[place[-1]] = new
    return copied


def other_json(value: Any) -> st.SearchStrategy[Any]:
    """`value` with an arbitrary value in the place of one of its values, or without that."""
    return st.builds(with_value, st.just(value), st.sampled_from(places(value)), JSON | st.just(MISSING))


def other_bytes(content: bytes, until: int | None = None) -> st.SearchStrategy[bytes]:
    """`content` with a byte flipped, its end cut off, or bytes added. until: Flips bytes before this one alone."""
    place = st.integers(0, (until or len(content)) - 1)
    return st.one_of(
        st.builds(lambda at, bits: _flipped(content, at, bits), place, st.integers(1, 255)),
        st.builds(lambda at: content[:at], place),
        st.builds(lambda more: content + more, st.binary(min_size=1, max_size=20)),
    )


def with_header(content: bytes, header: Any) -> bytes:
    """A safetensors file with another header, a JSON value, before the same tensors."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + header_length(content) :]


def header_of(content: bytes) -> Any:
    """The header of a safetensors file."""
    return json.loads(content[8 : 8 + header_length(content)])


def header_length(content: bytes) -> int:
    return int.from_bytes(content[:8], "little")


def refusal(call: Callable[[], object]) -> str | None:
    """The message of the InputError that a call raises, in one printable line; None where it raises none."""
    try:
        call()
    except InputError as error:
        message = str(error)
        assert message.isprintable(), message
        return message
    return None


def replaced(path: Path, content: bytes) -> None:
    """Write `content` to another file of this name: tensors that are mapped from the old one stay whole."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _flipped(content: bytes, at: int, bits: int) -> bytes:
    return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]
