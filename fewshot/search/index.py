"""An index of named vectors: add, remove, search by cosine with FAISS, save."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from fewshot.search.arguments import (
    Metadata,
    as_json,
    check_mergeable,
    check_new_keys,
    check_search,
    checked_vectors,
    parsed_metadata,
)
from fewshot.search.choice import Choice, check_limits, memory_of_keys
from fewshot.search.engines import Engine, Exact, Structure, Vectors, build, on_gpu, restore
from fewshot.search.index_files import IndexHeader, Kind, beyond_memory, read_folder, write_folder
from fewshot.search.key_rows import KeyRows
from fewshot.search.key_table import Entry
from fewshot.search.neighbours import Neighbours
from finetune.errors import InputError

if TYPE_CHECKING:
    from fewshot.search.table.lance_index import LanceIndex


class Index:
    """Vectors of unit length by key, and a search for the most similar.

    Args:
        width: Length of a vector.
        kind: "exact" compares every vector. "ivf" (inverted lists), "hnsw" (a graph) and "pq" (short codes, whose
            best are compared exactly) compare as many as `least_recall` needs, measured on the index's own vectors.
            "pq" is exact below 64 vectors. "auto" is exact until the collection is so large that codes are much faster.
        fingerprint: Of the embedder that made the vectors.
        about: JSON values by name, saved with the index.
        device: "auto", "cpu" or "cuda". With a GPU, exact search runs there and "auto" stays exact.
        least_recall: Floor of the recall of an approximate kind, in (0, 1]. With codes, "auto" keeps 0.99.
        memory: Most bytes that vectors and keys may take in a process that searches the saved index; None for no limit.
            Where vectors do not fit, "auto" and "pq" keep codes in memory, and searches read the best candidates'
            vectors from disk. Building holds all vectors in memory in any case.

    An approximate index is rebuilt by a change that doubles it, or that removes more vectors than remain. Such a
    change takes long; `compact()` does it at another time.

    Several threads may search at once; a change must run alone. An InputError leaves the index unchanged.

    Example:
        >>> import numpy as np
        >>> from fewshot import Index
        >>> index = Index(2)
        >>> index.add(["right", "up"], np.eye(2, dtype=np.float32))
        >>> index.search(np.array([[0.6, 0.8]], np.float32), k=1)[0][0].key
        'up'
    """

    def __init__(
        self,
        width: int,
        *,
        kind: str = "auto",
        fingerprint: str | None = None,
        about: Metadata | None = None,
        device: str = "auto",
        least_recall: float = 0.95,
        memory: int | None = None,
    ):
        check_limits(width, least_recall, memory)
        if kind not in get_args(Kind):
            raise InputError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
        self.width = width
        self.kind = cast(Kind, kind)
        self.fingerprint = fingerprint
        self.about = dict(about or {})
        self.least_recall = least_recall
        self.memory = memory
        self._gpu = on_gpu(device)
        self._read_only = False
        empty = np.empty((0, width), np.float32)
        structure: Structure = "exact" if kind in ("auto", "pq") else cast(Structure, kind)
        self._take(build(structure, empty, floor=least_recall, gpu=self._gpu), [])

    def _take(self, engine: Engine, entries: Sequence[Entry]) -> None:
        """Use `engine`, whose rows `entries` name."""
        self._engine = engine
        self._keys = KeyRows(engine.faiss_index.ntotal, entries)
        self._built_at = len(entries)  # number of vectors when the engine was built
        self._changed = 0  # number of vectors added and removed since then

    def __len__(self) -> int:
        return len(self._keys.row_of)

    def __contains__(self, key: object) -> bool:
        return key in self._keys.row_of

    def __repr__(self) -> str:
        recall = "" if self.structure == "exact" else f", recall {self.recall:.3f}"
        return f"Index({len(self)} x {self.width}, {self.structure}{recall})"

    @property
    def keys(self) -> tuple[str, ...]:
        """In the order of adding; a replaced one keeps its place."""
        return tuple(self._keys.row_of)

    @property
    def structure(self) -> Structure:
        """The current engine: "exact", "ivf", "hnsw" or "pq"."""
        return self._engine.structure

    @property
    def recall(self) -> float:
        """Share of the 10 nearest that a search finds, measured when the engine was built; 1 if exact."""
        return self._engine.recall

    def add(
        self, keys: Sequence[str], vectors: NDArray[np.float32], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Add vectors under new keys.

        Args:
            keys: n different strings that are not in the index.
            vectors: Shape (n, width), unit length.
            metadata: For each key, JSON values by name.

        Raises:
            InputError: For other keys, vectors or metadata.
        """
        self._refuse_if_read_only()
        check_new_keys(keys, self)
        self._add(keys, checked_vectors(vectors, self.width, keys), as_json(keys, metadata))

    def _add(self, keys: Sequence[str], vectors: Vectors, metadata: Mapping[str, str]) -> None:
        n, changed = len(self) + len(keys), self._changed + len(keys)
        key_bytes = self._key_bytes(key + metadata.get(key, "") for key in keys)
        if self._choice.outgrown(self._engine, n, len(keys), changed, self._built_at, key_bytes):
            self._rebuild([*self.keys, *keys], np.concatenate([self.vectors(self.keys), vectors]), metadata, key_bytes)
            return
        self._changed = changed
        first = self._engine.faiss_index.ntotal
        self._engine.add(vectors)
        self._keys.assign(first, keys)
        self._keys.metadata.update(metadata)

    def remove(self, keys: Sequence[str]) -> None:
        """Remove keys. InputError for a key that is not in the index.

        An approximate index keeps the vectors, unused, until it is rebuilt.
        """
        self._refuse_if_read_only()
        self._keys.remove(keys, self._engine.remove(self._keys.rows(keys)))
        self._settle(len(keys))

    def replace(
        self, keys: Sequence[str], vectors: NDArray[np.float32], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Replace the vectors of keys in the index; metadata None keeps the old. InputError as for `add`."""
        self._refuse_if_read_only()
        rows = self._keys.rows(keys)
        checked, texts = checked_vectors(vectors, self.width, keys), as_json(keys, metadata)
        if isinstance(self._engine, Exact):
            self._engine.replace(rows, checked)
        else:
            first = self._engine.faiss_index.ntotal
            self._engine.add(checked)
            self._engine.remove(rows)
            self._keys.assign(first, keys)
        if metadata is not None:
            self._keys.describe(keys, texts)
        self._settle(2 * len(keys))

    def merge(self, other: Index | LanceIndex) -> None:
        """Add all vectors of `other`. InputError if widths or fingerprints differ, or a key is in both."""
        self._refuse_if_read_only()
        check_mergeable(self, other)
        texts = {key: text for key, text in other.metadata_texts(other.keys).items() if text}
        self._add(other.keys, other.vectors(other.keys), texts)

    def compact(self) -> None:
        """Rebuild: frees the memory of removed vectors, chooses and tunes the engine, measures the recall."""
        self._refuse_if_read_only()
        self._rebuild(self.keys, self.vectors(self.keys), {}, self._key_bytes())

    def vectors(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, width) of keys, as they were added. InputError for a key that is not in the index."""
        return self._engine.vectors(self._keys.rows(keys))

    def check_memory(self, texts: Sequence[str]) -> None:
        """InputError if the allowed memory does not hold so many vectors. texts: Key and metadata of each, as one."""
        self._choice.structure(len(texts), memory_of_keys(texts))

    def memory_use(self) -> str:
        """One sentence: the structure, and the memory that its searches take."""
        return self._choice.explained(self.structure, self._engine.faiss_index.ntotal, self._key_bytes())

    def metadata(self, key: str) -> dict[str, Any]:
        """A copy of the key's metadata, {} without. InputError for a key that is not in the index."""
        return parsed_metadata(self.metadata_texts([key])[key], key)

    def metadata_texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Key -> JSON text of its metadata, empty without. InputError for a key that is not in the index."""
        self._keys.rows(keys)
        return {key: self._keys.metadata.get(key, "") for key in keys}

    def which(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that are in the index."""
        return {key for key in keys if key in self}

    def search(self, vectors: NDArray[np.float32], k: int = 10, *, at_least: float | None = None) -> Neighbours:
        """Find the most similar vectors of each query.

        Args:
            vectors: Queries, shape (m, width), unit length.
            k: Number of neighbours; all if the index holds fewer.
            at_least: Smallest similarity of a neighbour.

        Raises:
            InputError: For k below 1 and other vectors.
        """
        check_search(k, at_least)
        queries = checked_vectors(vectors, self.width)
        k = min(k, len(self))
        if not k or not len(queries):
            return Neighbours(np.empty((len(queries), k), np.float32), np.empty((len(queries), k), object))
        similarity, rows = self._engine.search(queries, k)
        keys = self._keys.at(rows)
        if at_least is not None:
            below = similarity < at_least
            similarity[below], keys[below] = -np.inf, None
        return Neighbours(similarity, keys)

    def save(self, folder: str | Path, *, check: Callable[[Metadata], None] | None = None) -> None:
        """Write the index to a folder that is new, empty or an index's. A crash leaves the old state or the new.

        Args:
            folder: Where to save.
            check: Called with the `about` of an index in the folder, before it is replaced and while no other process
                can write there. It may raise to keep that index.

        Raises:
            InputError: If the folder holds something else, or cannot be written.
        """
        header = IndexHeader.of(self, self._engine, self._built_at, self._changed)
        write_folder(Path(folder), header, self._engine.faiss_index, self._keys.entries(), check)

    @classmethod
    def open(
        cls,
        place: str | Path,
        *,
        fingerprint: str | None = None,
        version: int | None = None,
        memory_mapped: bool | None = False,
        device: str = "auto",
    ) -> Index | LanceIndex:
        """Read the index of a folder, or open a Lance table.

        Args:
            place: Folder of an index; or path of a table, or its address, such as s3://bucket/name.lance.
            version: Of a table, to read only; None opens the newest.
            fingerprint, memory_mapped, device: As for `load`. A table leaves its vectors on disk anyway, and is
                searched on the CPU.

        Raises:
            InputError: As for `load` and `LanceIndex.open`.
        """
        from fewshot.search.table.location import is_table

        if is_table(place):
            from fewshot.search.table.lance_index import LanceIndex

            return LanceIndex.open(place, fingerprint=fingerprint, version=version)
        if version is not None:
            raise InputError(f"{place} is no Lance table, and other indexes keep no versions")
        return cls.load(place, fingerprint=fingerprint, memory_mapped=memory_mapped, device=device)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        fingerprint: str | None = None,
        memory_mapped: bool | None = False,
        device: str = "auto",
    ) -> Index:
        """Read a saved index.

        Args:
            folder: Where it was saved.
            fingerprint: Of the embedder that will make the queries.
            memory_mapped: Leave the vectors in their file, for an index larger than memory. It is then read-only, is
                searched on the CPU, and the checksum of its vectors is not verified. None: where the index was
                made for less memory than its vectors take.
            device: As for `Index`.

        Raises:
            InputError: If there is no index, it is damaged, of a newer format, or of another embedder.
        """
        if memory_mapped is None:
            memory_mapped = beyond_memory(Path(folder))
        header, faiss_index, entries = read_folder(Path(folder), memory_mapped, fingerprint)
        index = cls(
            header.width,
            kind=header.kind,
            fingerprint=header.fingerprint,
            about=header.about,
            device="cpu" if memory_mapped else device,
            least_recall=header.least_recall,
            memory=header.memory,
        )
        try:
            index._restore(header, faiss_index, entries)
        except ValueError as error:
            raise InputError(f"{folder}: the vectors and the keys do not match ({error}); it is damaged") from error
        index._read_only = memory_mapped
        return index

    def _restore(self, header: IndexHeader, faiss_index: Any, entries: Sequence[Entry]) -> None:
        rows = [entry.row for entry in entries]
        engine = restore(header.structure, faiss_index, rows, effort=header.effort, recall=header.recall, gpu=self._gpu)
        self._take(engine, entries)
        self._built_at, self._changed = header.built_at, header.changed

    def _settle(self, changed: int) -> None:
        self._changed += changed
        if self._choice.outgrown(self._engine, len(self), 0, self._changed, self._built_at, self._key_bytes()):
            self.compact()

    def _rebuild(self, keys: Sequence[str], vectors: Vectors, metadata: Mapping[str, str], key_bytes: int) -> None:
        """Build the engine that suits `keys`. metadata: Of the new keys."""
        engine, order = self._choice.build(vectors, key_bytes)
        self._take(engine, self._keys.renumbered(keys, np.argsort(order).tolist(), metadata))

    @property
    def _choice(self) -> Choice:
        return Choice(self.kind, self.width, self.least_recall, self.memory, self._gpu)

    def _key_bytes(self, texts: Iterable[str] = ()) -> int:
        """Of all keys with their metadata, and of new `texts`; 0 without a limit of memory."""
        return 0 if self.memory is None else self._keys.bytes() + memory_of_keys(texts)

    def _refuse_if_read_only(self) -> None:
        if self._read_only:
            raise InputError("this index is memory-mapped and cannot be changed; load it without memory_mapped")
