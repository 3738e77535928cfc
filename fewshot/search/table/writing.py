"""Changes of a table, each as one commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fewshot.search.engines import Vectors
from fewshot.search.table.columns import KEY, first_place, new_columns, rows
from fewshot.search.table.library import import_lance, is_conflict, lance_errors
from fewshot.search.table.rows_by_key import found_keys, refuse_missing
from finetune.errors import InputError

_ATTEMPTS = 20
_ROWS_AT_ONCE = 8192


def commit(dataset: Any, change: Callable[[Any], Any], place: str) -> Any:
    """Make a change of a table; again on the newest version where another process has committed one meanwhile that this
    one cannot follow. Returns the table after it."""
    import_lance()
    with lance_errors(f"{place} cannot be written"):
        for _ in range(_ATTEMPTS):
            try:
                return change(dataset)
            except Exception as error:
                if not is_conflict(error):
                    raise
                dataset.checkout_latest()
    raise InputError(f"{place} cannot be written: other processes change it all the time; try again")


def add_columns(dataset: Any, texts: Mapping[str, str]) -> None:
    """Add columns for new names of metadata. They are empty, so no file is written again."""
    import pyarrow as pa

    fields = new_columns(dataset.schema, texts.values())
    if fields:
        dataset.add_columns(pa.schema(fields))


def insertion(
    dataset: Any, keys: Sequence[str], vectors: Callable[[slice], Vectors], texts: Mapping[str, str], if_there: str
) -> Any:
    """Add rows, written a block at a time. Returns the table after it.

    vectors: Gives those of a part of the keys.
    if_there: What is wrong with a key that is in the table.
    """
    import pyarrow as pa

    there = found_keys(dataset, keys)
    for key in keys:
        if key in there:
            raise InputError(f"key {key!r} {if_there}")
    add_columns(dataset, texts)
    schema, first = dataset.schema, first_place(dataset.version)
    failed: list[BaseException] = []

    def blocks() -> Iterator[Any]:
        try:
            for start in range(0, len(keys), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                yield from rows(schema, keys[part], vectors(part), texts, first + start).to_batches()
        except BaseException as error:  # Lance raises another one instead
            failed.append(error)
            raise

    # Lance compares the inserted keys of two writers only where it commits the change itself and does not look them up
    # in the index of the keys: otherwise both writers of one new key succeed, and the table holds it twice.
    merge = dataset.merge_insert(KEY).when_matched_fail().when_not_matched_insert_all()
    try:
        merge.use_index(False).conflict_retries(0).execute(pa.RecordBatchReader.from_batches(schema, blocks()))
    except Exception:
        if failed:
            raise failed[0] from None
        raise
    return dataset


def removal(dataset: Any, keys: Sequence[str]) -> Any:
    """Remove rows; returns the table after it. InputError for a key that is not in the table."""
    gone = rows(dataset.schema, keys, None, None, None)
    plan, counts = dataset.merge_insert(KEY).when_matched_delete().execute_uncommitted(gone)
    if counts["num_deleted_rows"] != len(keys):
        refuse_missing(dataset, keys)
    return import_lance().LanceDataset.commit(dataset, plan)


def replacement(dataset: Any, keys: Sequence[str], vectors: Vectors, texts: Mapping[str, str] | None) -> Any:
    """Replace vectors, and metadata unless `texts` is None; returns the table after it. InputError as for `removal`."""
    add_columns(dataset, texts or {})
    new = rows(dataset.schema, keys, vectors, texts, None)
    plan, counts = dataset.merge_insert(KEY).when_matched_update_all().execute_uncommitted(new)
    if counts["num_updated_rows"] != len(keys):
        refuse_missing(dataset, keys)
    return import_lance().LanceDataset.commit(dataset, plan)
