"""The vector index of a table: which structure, building, tuning to a recall."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewshot.search.engines.library import RECALL_AT, ROUNDING, Vectors
from fewshot.search.table.columns import KEY, VECTOR, as_vectors, key_of
from fewshot.search.table.header import TableHeader, TableStructure, Tuning
from fewshot.search.table.library import lance_errors
from fewshot.search.table.searching import search_by_index, search_exact
from finetune.errors import InputError
from finetune.extras import check_extra

# "auto" builds an index from this number of vectors on: it then answers one query 10 times as fast as a pass over all,
# or more, and is built in the time in which as many pictures are embedded, or less.
AUTO_FROM = 100_000
# Product quantisation learns 256 codes of 8 bits from 256 vectors each; inverted lists want as many for each list.
PQ_FROM, LIST_OF = 256 * 256, 256
MEASURED_ON = 100  # vectors
_NAME = "vectors"
_KEY_NAME, _KEYS_FROM = "keys", 10_000  # an index of the keys, and the number of rows from which one is built
_DIMENSIONS_OF_CODE = 4
_MOST_REFINED = 128


def structure_for(kind: str, rows: int) -> TableStructure:
    """Structure for a table of `rows` vectors; exact or inverted lists where there are too few to learn from."""
    if kind == "exact" or (kind == "auto" and rows < AUTO_FROM) or rows < 2 * LIST_OF:
        return "exact"
    return "ivf" if kind == "ivf" or rows < PQ_FROM else "pq"


def is_stale(dataset: Any, header: TableHeader, rows: int) -> bool:
    """Whether the index must be built again: of another structure than the table's size wants, or half of it has
    changed."""
    tuning, wanted = header.tuning, structure_for(header.kind, rows)
    if tuning is None:
        return wanted != "exact"
    held = next((each.num_rows_indexed for each in dataset.describe_indices() if each.name == _NAME), 0)
    return tuning.structure != wanted or max(rows - held, held - rows, abs(rows - tuning.rows)) > tuning.rows // 2


def drop(dataset: Any) -> None:
    if any(each.name == _NAME for each in dataset.describe_indices()):
        dataset.drop_index(_NAME)


def index_keys(dataset: Any, rows: int) -> None:
    """Build the index of keys of a large table, so that a key is found without reading all of them."""
    if rows >= _KEYS_FROM and not any(each.name == _KEY_NAME for each in dataset.describe_indices()):
        dataset.create_scalar_index(KEY, "BTREE", name=_KEY_NAME)


def build(dataset: Any, structure: TableStructure, rows: int, width: int, workers: int | None) -> int:
    """Build the vector index.

    workers: Number of Ray tasks that build it; None builds it in this process.

    Returns:
        Number of its lists.
    """
    lists = max(1, min(int(np.sqrt(rows)), rows // LIST_OF))
    options: dict[str, Any] = {"metric": "cosine", "num_partitions": lists, "replace": True}
    if structure == "pq":
        options["num_sub_vectors"] = codes(width)
    kind = {"ivf": "IVF_FLAT", "pq": "IVF_PQ"}[structure]
    if workers is None:
        dataset.create_index(VECTOR, kind, name=_NAME, **options)
    else:
        import lance_ray

        lance_ray.create_index(dataset.uri, VECTOR, kind, name=_NAME, num_workers=workers, **options)
        dataset.checkout_latest()
    return lists


def codes(width: int) -> int:
    """Number of codes of a vector: about one for four dimensions; it must divide the width."""
    return max(count for count in range(1, max(1, width // _DIMENSIONS_OF_CODE) + 1) if width % count == 0)


def tune(dataset: Any, structure: TableStructure, lists: int, rows: int, floor: float, width: int) -> Tuning:
    """Raise the effort until the recall on some of the table's own vectors reaches `floor`, or the effort its maximum.

    A step doubles the lists probed or the candidates ranked again, whichever finds more.
    """
    at = np.sort(np.random.default_rng(0).choice(rows, min(MEASURED_ON, rows), replace=False))
    taken = dataset.take(at.tolist(), columns=[KEY, VECTOR])
    queries, own = as_vectors(taken, width), [key_of(key) for key in taken[KEY].to_pylist()]
    k = min(RECALL_AT, rows - 1) + 1  # a vector finds itself
    similarity, keys = search_exact(dataset, queries, k, None)
    least = np.array([_others(*found)[-1] for found in zip(similarity, keys, own, strict=True)])[:, None] - ROUNDING

    def measured(probes: int, refine: int) -> Tuning:
        effort = Tuning(structure=structure, lists=lists, probes=probes, refine=refine, recall=0, rows=rows)  # type: ignore[arg-type]
        (similarity, keys), _ = search_by_index(dataset, queries, k, None, effort)
        found = np.stack([_others(*each) for each in zip(similarity, keys, own, strict=True)])
        recall = float((found >= least).mean())
        return Tuning(structure=structure, lists=lists, probes=probes, refine=refine, recall=recall, rows=rows)  # type: ignore[arg-type]

    most_refined = _MOST_REFINED if structure == "pq" else 1
    best = measured(1, min(4, most_refined))
    while best.recall < floor:
        efforts = []
        if best.probes < lists:
            efforts.append((min(2 * best.probes, lists), best.refine))
        if best.refine < most_refined:
            efforts.append((best.probes, 2 * best.refine))
        if not efforts:
            break
        best = max((measured(*effort) for effort in efforts), key=lambda each: each.recall)
    return best


def _others(similarity: Vectors, keys: Any, own: str) -> Vectors:
    """Similarities of the neighbours but the query itself, or but the last where it is not among them."""
    others: Vectors = similarity[keys != own]
    return others[: len(similarity) - 1]


def optimise(dataset: Any) -> None:
    """Add new rows to the indexes."""
    with lance_errors("the vector index cannot be extended"):
        dataset.optimize.optimize_indices()


def check_ray() -> None:
    """InputError unless lance-ray is installed and this process is connected to a Ray cluster."""
    check_extra("lance-ray", "building with Ray")
    import ray

    if not ray.is_initialized():
        raise InputError("engine ray: this process is not connected to Ray; call ray.init() first")
