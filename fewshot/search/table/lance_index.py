"""An index in a Lance table, which is on disk or in an object store and never loaded as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace as changed
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fewshot.search.arguments import (
    Metadata,
    as_json,
    check_keys,
    check_same_vectors,
    check_search,
    checked_vectors,
    parsed_metadata,
)
from fewshot.search.neighbours import Neighbours
from fewshot.search.table.header import TableHeader, TableStructure, read_header
from fewshot.search.table.library import import_lance, lance_errors
from fewshot.search.table.location import is_free_for_table, lance_uri
from fewshot.search.table.maintenance import MANY_FILES, TableVersion, compact, versions_of, write_header
from fewshot.search.table.opening import checked_header, make_table, open_table
from fewshot.search.table.rows_by_key import found_keys, keys_in_order, texts_of, vectors_of
from fewshot.search.table.searching import check_condition, search
from fewshot.search.table.vector_index import check_ray, is_stale
from fewshot.search.table.writing import commit, insertion, removal, replacement
from finetune.errors import InputError


class OtherIndex(Protocol):
    """What `LanceIndex.merge` needs of an index."""

    width: int
    fingerprint: str | None

    @property
    def keys(self) -> tuple[str, ...]: ...
    def vectors(self, keys: Sequence[str]) -> NDArray[np.float32]: ...
    def metadata_texts(self, keys: Sequence[str]) -> dict[str, str]: ...


class LanceIndex:
    """Vectors of unit length by key in a Lance table, and a search for the most similar.

    It has the methods of `Index`. Every change is written at once, as one new version of the table: `save` is not
    needed. Use `create`, `build` or `open`; `Index.open` opens tables too.

    Attributes:
        place: Path or address of the table.
        width: Length of a vector.
        kind: "exact" compares every vector. "ivf" (inverted lists) and "pq" (inverted lists of product-quantised
            vectors, with the best candidates ranked again by exact similarity) are approximate. "auto" is exact below
            100,000 vectors and "pq" from there on. `compact` builds these structures.
        fingerprint: Of the embedder that made the vectors.
        about: JSON values by name; `save` writes changes of it.
        least_recall: Floor of the recall of an approximate structure, in (0, 1].

    Several threads may search at once; a change must run alone. Several processes may change one table: a change is
    made on the newest version, and a search reads the version that this object has opened or made last.

    Example:
        >>> import numpy as np
        >>> from fewshot import LanceIndex
        >>> index = LanceIndex.create("signs.lance", 2)
        >>> index.add(["right", "up"], np.eye(2, dtype=np.float32), [{"label": "road"}, {"label": "sky"}])
        >>> index.search(np.array([[0.6, 0.8]], np.float32), k=1)[0][0].key
        'up'
        >>> index.search(np.array([[0.6, 0.8]], np.float32), k=1, where="label = 'road'")[0][0].key
        'right'
    """

    def __init__(self, dataset: Any, place: str | Path, header: TableHeader, read_only: bool):
        """Private: use `create`, `build` or `open`."""
        self._dataset = dataset
        self._header = header
        self._read_only = read_only
        self.place = place
        self.width = header.width
        self.kind = header.kind
        self.fingerprint = header.fingerprint
        self.about = dict(header.about)
        self.least_recall = header.least_recall

    # --- make and open ------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        place: str | Path,
        width: int,
        *,
        kind: str = "auto",
        fingerprint: str | None = None,
        about: Metadata | None = None,
        least_recall: float = 0.95,
    ) -> LanceIndex:
        """Make an empty table at a path, or an address such as s3://bucket/name.lance, where nothing is.

        Raises:
            InputError: For wrong arguments, if something is there, or if it cannot be written.
        """
        header = checked_header(width, kind, fingerprint, about, least_recall)
        return cls(make_table(place, header), place, header, read_only=False)

    @classmethod
    def build(
        cls,
        place: str | Path,
        keys: Sequence[str],
        vectors: NDArray[np.float32],
        metadata: Sequence[Metadata] | None = None,
        *,
        kind: str = "auto",
        fingerprint: str | None = None,
        about: Metadata | None = None,
        least_recall: float = 0.95,
    ) -> LanceIndex:
        """Make a table with these vectors, and its vector index where `kind` wants one.

        Args:
            place, kind, fingerprint, about, least_recall: As for `create`.
            keys, vectors, metadata: As for `add`. vectors may be memory-mapped.

        Raises:
            InputError: As for `create` and `add`.
        """
        index = cls.create(
            place, vectors.shape[-1], kind=kind, fingerprint=fingerprint, about=about, least_recall=least_recall
        )
        index.add(keys, vectors, metadata)
        index.compact()
        return index

    @classmethod
    def open(cls, place: str | Path, *, fingerprint: str | None = None, version: int | None = None) -> LanceIndex:
        """Open a table.

        Args:
            place: Its path or address.
            fingerprint: Of the embedder that will make the queries.
            version: One of `versions()`, to read only; None opens the newest.

        Raises:
            InputError: If there is no such table or version, it is damaged, of a newer format, or of another embedder.
        """
        dataset, header = open_table(place, fingerprint, version)
        return cls(dataset, place, header, read_only=version is not None)

    # --- what it holds ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        with lance_errors(f"{self.place} cannot be read"):
            return int(self._table.count_rows())

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and bool(found_keys(self._table, [key]))

    def __repr__(self) -> str:
        recall = "" if self.structure == "exact" else f", recall {self.recall:.3f}"
        return f"LanceIndex({len(self)} x {self.width}, {self.structure}{recall}, version {self.version})"

    @property
    def keys(self) -> tuple[str, ...]:
        """In the order of adding; a replaced one keeps its place. It reads all keys."""
        return keys_in_order(self._table)

    @property
    def structure(self) -> TableStructure:
        """How searches work now: "exact", "ivf" or "pq"."""
        return "exact" if self._header.tuning is None else self._header.tuning.structure

    @property
    def recall(self) -> float:
        """Share of the 10 nearest that a search finds, measured by the last `compact`; 1 if exact."""
        return 1.0 if self._header.tuning is None else self._header.tuning.recall

    @property
    def version(self) -> int:
        """The version that is read."""
        return int(self._table.version)

    def versions(self) -> list[TableVersion]:
        """The versions that can be opened, the newest last. They remain until `compact(keep=...)` removes them."""
        return versions_of(self._table, str(self.place))

    def vectors(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, width) of keys, as they were added. InputError for a key that is not in the index."""
        check_keys(keys)
        return vectors_of(self._table, keys, self.width)

    def metadata(self, key: str) -> dict[str, Any]:
        """A copy of the key's metadata, {} without. InputError for a key that is not in the index."""
        return parsed_metadata(self.metadata_texts([key])[key], key)

    def metadata_texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Key -> JSON text of its metadata, empty without. InputError for a key that is not in the index."""
        check_keys(keys)
        return texts_of(self._table, keys)

    def which(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that are in the index."""
        return found_keys(self._table, keys)

    def check_where(self, where: str) -> None:
        """InputError unless `where` is a condition that `search` takes."""
        check_condition(self._table, where)

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int = 10,
        *,
        at_least: float | None = None,
        where: str | None = None,
    ) -> Neighbours:
        """Find the most similar vectors of each query.

        Args:
            vectors: Queries, shape (m, width), unit length.
            k: Number of neighbours; all if the index holds fewer.
            at_least: Smallest similarity of a neighbour.
            where: Condition of SQL on `key` and on metadata: "label = 'oak' AND year >= 1990". Names of metadata are
                columns if they are letters, digits and _, for values that are text, numbers or bool; the first value
                of a name decides which, and a row with another type never meets a condition on it.

        Raises:
            InputError: For k below 1, other vectors, and a condition that is wrong.
        """
        check_search(k, at_least)
        queries, dataset, n = checked_vectors(vectors, self.width), self._table, len(self)
        if where is not None:
            check_condition(dataset, where)
        k = min(k, n)
        if not k or not len(queries):
            return Neighbours(np.empty((len(queries), k), np.float32), np.empty((len(queries), k), object))
        similarity, keys = search(dataset, queries, k, where, self._header.tuning, n)
        if at_least is not None:
            below = similarity < at_least
            similarity[below], keys[below] = -np.inf, None
        return Neighbours(similarity, keys)

    # --- changes ------------------------------------------------------------------------------------------------------

    def add(
        self, keys: Sequence[str], vectors: NDArray[np.float32], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Add vectors under new keys.

        Args:
            keys: n different strings that are not in the index.
            vectors: Shape (n, width), unit length.
            metadata: For each key, JSON values by name.

        Raises:
            InputError: For other keys, vectors or metadata. Nothing is then added.
        """
        check_keys(keys)
        texts = as_json(keys, metadata)
        checked = checked_vectors(vectors, self.width, keys)
        if len(keys):
            there = "is in the index already; use replace for another vector"
            self._commit(lambda dataset: insertion(dataset, keys, lambda part: checked[part], texts, there))

    def remove(self, keys: Sequence[str]) -> None:
        """Remove keys. InputError for a key that is not in the index; nothing is then removed.

        The vectors remain in older versions of the table until `compact(keep=...)`.
        """
        check_keys(keys)
        if not len(keys):
            self._refuse_if_read_only()
            return

        self._commit(lambda dataset: removal(dataset, keys))

    def replace(
        self, keys: Sequence[str], vectors: NDArray[np.float32], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Replace the vectors of keys in the index; metadata None keeps the old. InputError as for `add`."""
        check_keys(keys)
        checked = checked_vectors(vectors, self.width, keys)
        texts = as_json(keys, metadata) if metadata is not None else None
        if not len(keys):
            self._refuse_if_read_only()
            return

        self._commit(lambda dataset: replacement(dataset, keys, checked, texts))

    def merge(self, other: OtherIndex) -> None:
        """Add all vectors of an `Index` or `LanceIndex`. InputError if widths or fingerprints differ, or a key is in
        both."""
        self._refuse_if_read_only()
        check_same_vectors(self, other)
        keys = other.keys
        if keys:
            texts = {key: text for key, text in other.metadata_texts(keys).items() if text}
            there = "is in both indexes; remove it from one of them"
            self._commit(lambda dataset: insertion(dataset, keys, lambda part: other.vectors(keys[part]), texts, there))

    @property
    def needs_compaction(self) -> bool:
        """Whether `compact` would make searches faster: many small files, or a vector index that is missing or old."""
        with lance_errors(f"{self.place} cannot be read"):
            many = len(self._table.get_fragments()) > MANY_FILES
            return many or is_stale(self._table, self._header, len(self))

    def compact(self, *, keep: int | None = None, engine: str = "local", workers: int | None = None) -> None:
        """Merge small files, bring the vector index up to date, tune it and measure its recall.

        Every change adds files, and a search reads all of them: compact after many changes.

        Args:
            keep: Number of the newest versions that remain; None keeps all. Their files take disk space.
            engine: "local", or "ray" to build the vector index by tasks on the Ray cluster that `ray.init` has
                connected to, whose machines read the same place.
            workers: Number of Ray tasks; 4 if None.

        Raises:
            InputError: For wrong arguments, and if the table cannot be written.
        """
        self._refuse_if_read_only()
        if keep is not None and keep < 1:
            raise InputError(f"keep must be >= 1, not {keep}")
        if engine not in ("local", "ray"):
            raise InputError(f"engine must be local or ray, not {engine!r}")
        if workers is not None and (engine == "local" or workers < 1):
            raise InputError("workers is a number >= 1, for engine ray")
        if engine == "ray":
            check_ray()
        self._refresh()
        of_ray = (workers or 4) if engine == "ray" else None
        self._header = compact(self._table, self._header, str(self.place), keep=keep, workers=of_ray)

    def save(self, place: str | Path | None = None, *, check: Callable[[Metadata], None] | None = None) -> None:
        """Write changes of `about`; everything else is written already.

        Args:
            place: None or the table's own place; another one gets a copy of the newest version.
            check: Called with the `about` of the table before it is changed. It may raise to keep the table.

        Raises:
            InputError: If something is at another place, or it cannot be written.
        """
        if place is not None and lance_uri(place) != lance_uri(self.place):
            self._copy_to(place)
            return
        self._refuse_if_read_only()
        about = dict(self.about)

        def write(dataset: Any) -> Any:
            header = read_header(dataset.schema, str(self.place))
            if check is not None:
                check(header.about)
            if about != header.about:
                write_header(dataset, changed(header, about=about))
            return dataset

        self._commit(write)

    # --- private ------------------------------------------------------------------------------------------------------

    @property
    def _table(self) -> Any:
        import_lance()  # refuses in a forked process
        return self._dataset

    def _refuse_if_read_only(self) -> None:
        if self._read_only:
            raise InputError(f"this is version {self.version} of {self.place}, which is read-only; open it without one")

    def _refresh(self) -> None:
        """Read the newest version, which another process may have made."""
        with lance_errors(f"{self.place} cannot be read"):
            self._table.checkout_latest()
        self._header = read_header(self._dataset.schema, str(self.place))

    def _commit(self, change: Callable[[Any], Any]) -> None:
        """Make a change on the newest version."""
        self._refuse_if_read_only()
        self._refresh()
        self._dataset = commit(self._table, change, str(self.place))
        self._header = read_header(self._dataset.schema, str(self.place))

    def _copy_to(self, place: str | Path) -> None:
        if not is_free_for_table(place):
            raise InputError(f"{place} exists; choose a new name for the copy")
        with lance_errors(f"{place} cannot be written"):
            self._table.deep_clone(lance_uri(place), self.version)
