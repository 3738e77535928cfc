"""The columns of a table, and rows for them.

key         text; see `stored_key`
place       64-bit: order of adding; see `first_place`
vector      32-bit floats, all of one length
metadata    JSON text, empty without
others      for each name of metadata that can be filtered by: text, number (64-bit) or bool
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fewshot.search.engines import Vectors
from finetune.errors import InputError

KEY, PLACE, VECTOR, TEXT = "key", "place", "vector", "metadata"
FIXED = (KEY, PLACE, VECTOR, TEXT)
MOST_COLUMNS = 100  # of metadata; further names are stored in the JSON text alone
_FILTERABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_STORED = re.compile("\x00(.{4})", re.DOTALL)


def new_schema(width: int, header: Mapping[bytes, bytes]) -> Any:
    import pyarrow as pa

    # Lance refuses two writers that add one value of the primary key at once.
    primary = {"lance-schema:unenforced-primary-key": "true"}
    return pa.schema(
        [
            pa.field(KEY, pa.string(), nullable=False, metadata=primary),
            pa.field(PLACE, pa.int64(), nullable=False),
            pa.field(VECTOR, pa.list_(pa.float32(), width), nullable=False),
            pa.field(TEXT, pa.string(), nullable=False),
        ],
        metadata=dict(header),
    )


def check_schema(schema: Any, width: int, source: str) -> None:
    """InputError unless a table has the columns of an index with vectors of this width."""
    for expected in new_schema(width, {}):
        at = schema.get_field_index(expected.name)
        if at < 0 or schema.field(at).type != expected.type:
            raise InputError(f"{source}: column {expected.name} is not {expected.type}; the table may be damaged")


# --- keys -------------------------------------------------------------------------------------------------------------


def stored_key(key: str) -> str:
    """A key as the table holds it. Its text allows no lone surrogates, which file names may contain: they become a null
    character and four hexadecimal digits, and so does the null character itself."""
    return _UNSTORABLE.sub(lambda found: f"\x00{ord(found[0]):04x}", key)


def key_of(stored: str) -> str:
    """The inverse of `stored_key`. InputError for text that it does not make."""
    if "\x00" not in stored:
        return stored
    try:
        return _STORED.sub(lambda found: chr(int(found[1], 16)), stored)
    except ValueError as error:
        raise InputError(f"the key {stored!r} is not valid; the table may be damaged") from error


def has_key(keys: Iterable[str]) -> str:
    """The SQL condition that a row has one of these keys. SQL has one sign to escape in a text: the quote."""
    texts = ", ".join("'" + stored_key(key).replace("'", "''") + "'" for key in keys)
    return f"{KEY} IN ({texts})"


def first_place(version: int) -> int:
    """The place of the first row that a change of this version adds: later changes have higher versions."""
    return (version + 1) << 32


# --- metadata ---------------------------------------------------------------------------------------------------------


def new_columns(schema: Any, texts: Iterable[str]) -> list[Any]:
    """Columns for names of metadata that the table has none for. The first value of a name decides on its type."""
    import pyarrow as pa

    taken = {name.lower() for name in schema.names}
    found: list[Any] = []
    for text in texts:
        for name, value in json.loads(text).items():
            kind = _type_of(value)
            if kind is None or name.lower() in taken or not _FILTERABLE.fullmatch(name):
                continue
            if len(taken) >= MOST_COLUMNS + len(FIXED):
                return found
            taken.add(name.lower())
            found.append(pa.field(name, kind))
    return found


def filterable(schema: Any) -> list[str]:
    """Names of the columns that a condition may use."""
    return [KEY, *(name for name in schema.names if name not in FIXED)]


def _type_of(value: Any) -> Any:
    import pyarrow as pa

    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int | float):
        return pa.float64()
    return pa.string() if isinstance(value, str) else None


def rows(
    schema: Any,
    keys: Sequence[str],
    vectors: Vectors | None,
    texts: Mapping[str, str] | None,
    first: int | None,
) -> Any:
    """Rows as a pyarrow table.

    schema: Of the table.
    vectors: None leaves the column out, and so does None for the others.
    texts: Key -> JSON text of its metadata.
    first: Place of the first row.
    """
    import pyarrow as pa

    columns = {KEY: pa.array([stored_key(key) for key in keys], pa.string())}
    if first is not None:
        columns[PLACE] = pa.array(np.arange(first, first + len(keys)), pa.int64())
    if vectors is not None:
        columns[VECTOR] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    if texts is not None:
        columns[TEXT] = pa.array([texts.get(key, "") for key in keys], pa.string())
        values = [json.loads(texts.get(key, "{}")) for key in keys]
        for name in schema.names:
            if name not in FIXED:
                kind = schema.field(name).type
                columns[name] = pa.array([_value(entry.get(name), kind) for entry in values], kind)
    fields = [schema.field(name) for name in columns]
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _value(value: Any, kind: Any) -> Any:
    """A value of metadata for a column of this type; None where it does not fit."""
    if _type_of(value) != kind:
        return None
    if isinstance(value, str):
        return None if _UNSTORABLE.search(value) else value
    try:
        return value if isinstance(value, bool) else float(value)
    except OverflowError:
        return None


def as_vectors(batch: Any, width: int) -> Vectors:
    """The vectors (n, width) of a batch or a table."""
    column = batch.column(VECTOR)
    if hasattr(column, "combine_chunks"):
        column = column.combine_chunks()
    found: Vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return found
