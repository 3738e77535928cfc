"""A table made or opened, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from fewshot.search.faiss_format import MOST_WIDTH
from fewshot.search.table.columns import check_schema, new_schema
from fewshot.search.table.header import TableHeader, TableKind, read_header
from fewshot.search.table.library import import_lance, lance_errors
from fewshot.search.table.location import check_files_of, check_folder, is_free_for_table, lance_uri
from finetune.errors import InputError


def checked_header(
    width: int, kind: str, fingerprint: str | None, about: Mapping[str, Any] | None, least_recall: float
) -> TableHeader:
    """The header of a new table. InputError for wrong arguments."""
    if not 1 <= width <= MOST_WIDTH:
        raise InputError(f"width must be from 1 to {MOST_WIDTH}, not {width}")
    if kind not in get_args(TableKind):
        raise InputError(f"kind of a Lance table must be one of {', '.join(get_args(TableKind))}, not {kind!r}")
    if not 0 < least_recall <= 1:
        raise InputError(f"least_recall must be above 0 and at most 1, not {least_recall}")
    return TableHeader(
        width=width,
        kind=cast(TableKind, kind),
        fingerprint=fingerprint,
        about=dict(about or {}),
        least_recall=least_recall,
    )


def make_table(place: str | Path, header: TableHeader) -> Any:
    """Make an empty table. InputError if something is there, or it cannot be written."""
    lance, uri = import_lance(), lance_uri(place)
    if not is_free_for_table(place):
        raise InputError(f"{place} exists; choose a new name for the table")
    schema = new_schema(header.width, header.as_metadata())
    with lance_errors(f"{place} cannot be written"):
        return lance.write_dataset(schema.empty_table(), uri, mode="create")


def open_table(place: str | Path, fingerprint: str | None, version: int | None) -> tuple[Any, TableHeader]:
    """Open a table at a version, None for the newest. InputError if it is not there, damaged, or of another embedder
    than `fingerprint`."""
    lance, uri = import_lance(), lance_uri(place)
    check_folder(place)
    with lance_errors(f"{place} cannot be opened"):
        dataset = lance.dataset(uri)
        if version is not None and all(each["version"] != version for each in dataset.versions()):
            raise InputError(f"{place} has no version {version}; those before its last compact(keep=...) are gone")
        if version is not None:
            dataset = dataset.checkout_version(version)
        schema = dataset.schema
    check_files_of(dataset, place)
    header = read_header(schema, str(place))
    check_schema(schema, header.width, str(place))
    if fingerprint is not None and fingerprint != header.fingerprint:
        raise InputError(
            f"{place} holds vectors of embedder {header.fingerprint}, not of {fingerprint}: embed again, or "
            "open it with its own embedder"
        )
    return dataset, header
