"""Compaction of a table, and its versions."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple

from fewshot.search.table import vector_index
from fewshot.search.table.header import TableHeader, Tuning
from fewshot.search.table.library import is_conflict, lance_errors
from finetune.errors import InputError

# Files of vectors from which compaction is advised. A search opens each of them.
MANY_FILES = 100


class TableVersion(NamedTuple):
    """A state of a table that can be opened.

    Attributes:
        number: For `version` of `Index.open`.
        time: When it was written, in local time.
        vectors: Number of vectors.
    """

    number: int
    time: datetime
    vectors: int


def versions_of(dataset: Any, place: str) -> list[TableVersion]:
    with lance_errors(f"{place} cannot be read"):
        return [
            TableVersion(each["version"], each["timestamp"], int(each["metadata"]["total_rows"]))
            for each in dataset.versions()
        ]


def compact(dataset: Any, header: TableHeader, place: str, *, keep: int | None, workers: int | None) -> TableHeader:
    """Merge small files, renew the indexes, tune, and remove older versions. Returns the new header.

    Without a header that says how to search it, a vector index is not used: a process that ends early leaves a table
    whose searches are exact.
    """
    try:
        with lance_errors(f"{place} cannot be compacted"):
            header = _compacted(dataset, header, workers)
            if keep is not None:
                dataset.cleanup_old_versions(retain_versions=keep)
    except Exception as error:
        if is_conflict(error):
            raise InputError(f"{place} was changed by another process meanwhile; compact it again") from error
        raise
    return header


def write_header(dataset: Any, header: TableHeader) -> None:
    texts = {name.decode(): text.decode() for name, text in header.as_metadata().items()}
    dataset.update_schema_metadata(texts)


def _compacted(dataset: Any, header: TableHeader, workers: int | None) -> TableHeader:
    rows = dataset.count_rows()
    structure = vector_index.structure_for(header.kind, rows)
    stale = vector_index.is_stale(dataset, header, rows)
    if stale and header.tuning is not None:
        header = replace(header, tuning=None)
        write_header(dataset, header)
    if stale or structure == "exact":
        vector_index.drop(dataset)
    # Files that an index holds are merged among themselves alone, so new rows go into the indexes first.
    vector_index.optimise(dataset)
    dataset.optimize.compact_files()
    vector_index.index_keys(dataset, rows)
    if structure == "exact":
        return header
    lists = header.tuning.lists if header.tuning is not None else None
    if lists is None:
        lists = vector_index.build(dataset, structure, rows, header.width, workers)
    built_at = rows if header.tuning is None else header.tuning.rows
    tuning: Tuning = vector_index.tune(dataset, structure, lists, rows, header.least_recall, header.width)
    header = replace(header, tuning=replace(tuning, rows=built_at))
    write_header(dataset, header)
    return header
