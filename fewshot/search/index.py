"""An index of named vectors: add, remove, search by cosine with FAISS, save."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewshot.search.engines import Approximate, Engine, Exact, Structure, Vectors, build, on_gpu, restore
from fewshot.search.faiss_format import MOST_WIDTH, SQUARED_WITHIN
from fewshot.search.index_files import IndexHeader, Kind, read_folder, write_folder
from fewshot.search.key_table import Entry
from finetune.errors import InputError

Metadata = Mapping[str, Any]  # JSON values

# "auto" tries inverted lists from this number of vectors on. It keeps exact search if the lists must compare a larger
# share than AUTO_SHARE to reach the recall. Both are well beyond the point where lists win in benchmarks/search.py.
AUTO_FROM = 200_000
AUTO_SHARE = 1 / 8


class Neighbour(NamedTuple):
    """A key found by a search, and the cosine similarity of its vector, 1 for the same direction.

    Example:
        >>> from fewshot import Neighbour
        >>> Neighbour("cat.png", 0.9).key
        'cat.png'
    """

    key: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Result of a search; iterating gives a list of `Neighbour` for each query, the most similar first.

    Attributes:
        similarity: Shape (m, k), float32; -inf where `at_least` left a place empty.
        keys: Shape (m, k), str objects; None there.
    """

    similarity: NDArray[np.float32]
    keys: NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, query: int) -> list[Neighbour]:
        found = zip(self.keys[query].tolist(), self.similarity[query].tolist(), strict=True)
        return [Neighbour(key, similarity) for key, similarity in found if key is not None]

    def __iter__(self) -> Iterator[list[Neighbour]]:
        return (self[query] for query in range(len(self)))


class Index:
    """Vectors of unit length by key, and a search for the most similar.

    Args:
        width: Length of a vector.
        kind: "exact" compares every vector. "ivf" (inverted lists) and "hnsw" (a graph) compare as many as
            `least_recall` needs, measured on the index's own vectors. "auto" is exact until the collection is so large
            that inverted lists are much faster.
        fingerprint: Of the embedder that made the vectors.
        about: JSON values by name, saved with the index.
        device: "auto", "cpu" or "cuda". With a GPU, exact search runs there and "auto" stays exact.
        least_recall: Floor of the recall of an approximate kind, in (0, 1].

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
    ):
        if not 1 <= width <= MOST_WIDTH:
            bound = ">= 1" if width < 1 else f"<= {MOST_WIDTH}"
            raise InputError(f"width must be {bound}, not {width}")
        if kind not in get_args(Kind):
            raise InputError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
        if not 0 < least_recall <= 1:
            raise InputError(f"least_recall must be above 0 and at most 1, not {least_recall}")
        self.width = width
        self.kind = cast(Kind, kind)
        self.fingerprint = fingerprint
        self.about = dict(about or {})
        self.least_recall = least_recall
        self._gpu = on_gpu(device)
        self._read_only = False
        empty = np.empty((0, width), np.float32)
        self._take(build(self._structure_for(0), empty, floor=least_recall, gpu=self._gpu), [])

    def _take(self, engine: Engine, entries: Sequence[Entry]) -> None:
        """Use `engine`, whose rows `entries` name."""
        self._engine = engine
        self._rows = {entry.key: entry.row for entry in entries}
        self._metadata = {entry.key: entry.metadata for entry in entries if entry.metadata is not None}
        self._keys = np.full(engine.faiss_index.ntotal, None, object)  # by row; None for a removed one
        self._keys[list(self._rows.values())] = list(self._rows)
        self._built_at = len(self._rows)  # number of vectors when the engine was built
        self._changed = 0  # number of vectors added and removed since then

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __repr__(self) -> str:
        recall = "" if self.structure == "exact" else f", recall {self.recall:.3f}"
        return f"Index({len(self)} x {self.width}, {self.structure}{recall})"

    @property
    def keys(self) -> tuple[str, ...]:
        """In the order of adding; a replaced one keeps its place."""
        return tuple(self._rows)

    @property
    def structure(self) -> Structure:
        """The current engine: "exact", "ivf" or "hnsw"."""
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
        self._check_keys(keys)
        for key in keys:
            if key in self._rows:
                raise InputError(f"key {key!r} is in the index already; use replace for another vector")
        self._add(keys, self._checked(vectors, keys), _as_json(keys, metadata))

    def _add(self, keys: Sequence[str], vectors: Vectors, metadata: Mapping[str, str]) -> None:
        self._changed += len(keys)
        if self._outgrown(len(self) + len(keys)):
            self._rebuild([*self.keys, *keys], np.concatenate([self.vectors(self.keys), vectors]), metadata)
            return
        first = self._engine.faiss_index.ntotal
        self._engine.add(vectors)
        self._name(first, keys)
        self._metadata.update(metadata)

    def remove(self, keys: Sequence[str]) -> None:
        """Remove keys. InputError for a key that is not in the index.

        An approximate index keeps the vectors, unused, until it is rebuilt.
        """
        self._refuse_if_read_only()
        rows = self._rows_of(keys)
        moved = self._engine.remove(rows)
        self._keys[rows] = None
        for key in keys:
            del self._rows[key]
            self._metadata.pop(key, None)
        for source, target in moved:
            key = self._keys[source]
            self._keys[source], self._keys[target], self._rows[key] = None, key, target
        self._settle(len(keys))

    def replace(
        self, keys: Sequence[str], vectors: NDArray[np.float32], metadata: Sequence[Metadata] | None = None
    ) -> None:
        """Replace the vectors of keys in the index; metadata None keeps the old. InputError as for `add`."""
        self._refuse_if_read_only()
        rows = self._rows_of(keys)
        checked, texts = self._checked(vectors, keys), _as_json(keys, metadata)
        if isinstance(self._engine, Exact):
            self._engine.replace(rows, checked)
        else:
            first = self._engine.faiss_index.ntotal
            self._engine.add(checked)
            self._engine.remove(rows)
            self._keys[rows] = None
            self._name(first, keys)
        if metadata is not None:
            for key in keys:
                self._metadata.pop(key, None)
            self._metadata.update(texts)
        self._settle(2 * len(keys))

    def merge(self, other: Index) -> None:
        """Add all vectors of `other`. InputError if widths or fingerprints differ, or a key is in both."""
        self._refuse_if_read_only()
        if other.width != self.width:
            raise InputError(f"widths differ: {other.width} and {self.width}")
        if other.fingerprint != self.fingerprint:
            raise InputError(
                f"the vectors are of different embedders, {other.fingerprint} and {self.fingerprint}: embed again"
            )
        for key in other.keys:
            if key in self._rows:
                raise InputError(f"key {key!r} is in both indexes; remove it from one of them")
        self._add(other.keys, other.vectors(other.keys), other._metadata)

    def compact(self) -> None:
        """Rebuild: frees the memory of removed vectors, chooses and tunes the engine, measures the recall."""
        self._refuse_if_read_only()
        self._rebuild(self.keys, self.vectors(self.keys), {})

    def vectors(self, keys: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (n, width) of keys, as they were added. InputError for a key that is not in the index."""
        return self._engine.vectors(self._rows_of(keys))

    def metadata(self, key: str) -> dict[str, Any]:
        """A copy of the key's metadata, {} without. InputError for a key that is not in the index."""
        self._rows_of([key])
        try:
            found = json.loads(self._metadata.get(key, "{}"))
        except (ValueError, RecursionError) as error:
            raise InputError(f"metadata of key {key!r} are not valid JSON ({error}); the index is damaged") from error
        if not isinstance(found, dict):
            raise InputError(f"metadata of key {key!r} are not a mapping; the index is damaged")
        return found

    def search(self, vectors: NDArray[np.float32], k: int = 10, *, at_least: float | None = None) -> Neighbours:
        """Find the most similar vectors of each query.

        Args:
            vectors: Queries, shape (m, width), unit length.
            k: Number of neighbours; all if the index holds fewer.
            at_least: Smallest similarity of a neighbour.

        Raises:
            InputError: For k below 1 and other vectors.
        """
        if k < 1:
            raise InputError(f"k must be >= 1, not {k}")
        if at_least is not None and not -np.inf <= at_least <= np.inf:
            raise InputError(f"at_least must be a similarity, not {at_least}")
        queries = self._checked(vectors)
        k = min(k, len(self))
        if not k or not len(queries):
            return Neighbours(np.empty((len(queries), k), np.float32), np.empty((len(queries), k), object))
        similarity, rows = self._engine.search(queries, k)
        keys = self._keys[rows]
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
        entries = (Entry(key, row, self._metadata.get(key)) for key, row in self._rows.items())
        header = IndexHeader(
            width=self.width,
            vectors=len(self),
            kind=self.kind,
            structure=self.structure,
            fingerprint=self.fingerprint,
            about=self.about,
            recall=self.recall,
            least_recall=self.least_recall,
            effort=self._engine.effort,
            rows=self._engine.faiss_index.ntotal,
            built_at=self._built_at,
            changed=self._changed,
        )
        write_folder(Path(folder), header, self._engine.faiss_index, entries, check)

    @classmethod
    def load(
        cls, folder: str | Path, *, fingerprint: str | None = None, memory_mapped: bool = False, device: str = "auto"
    ) -> Index:
        """Read a saved index.

        Args:
            folder: Where it was saved.
            fingerprint: Of the embedder that will make the queries.
            memory_mapped: Leave the vectors in their file, for an index larger than memory. It is then read-only, is
                searched on the CPU, and the checksum of its vectors is not verified.
            device: As for `Index`.

        Raises:
            InputError: If there is no index, it is damaged, of a newer format, or of another embedder.
        """
        header, faiss_index, entries = read_folder(Path(folder), memory_mapped)
        if fingerprint is not None and fingerprint != header.fingerprint:
            raise InputError(
                f"{folder} holds vectors of embedder {header.fingerprint}, not of {fingerprint}: embed again, or "
                "open it with its own embedder"
            )
        index = cls(
            header.width,
            kind=header.kind,
            fingerprint=header.fingerprint,
            about=header.about,
            device="cpu" if memory_mapped else device,
            least_recall=header.least_recall,
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
        if len(self._rows) != len(entries):
            raise ValueError("two keys are the same")
        self._built_at, self._changed = header.built_at, header.changed

    def _name(self, first: int, keys: Sequence[str]) -> None:
        """Assign keys to the rows from `first` on."""
        end = first + len(keys)
        if end > len(self._keys):
            self._keys = np.concatenate([self._keys, np.full(max(end, 2 * first) - len(self._keys), None, object)])
        self._keys[first:end] = keys
        self._rows.update(zip(keys, range(first, end), strict=True))

    def _settle(self, changed: int) -> None:
        self._changed += changed
        if self._outgrown(len(self)):
            self.compact()

    def _outgrown(self, n: int) -> bool:
        """Whether the engine must be rebuilt for `n` vectors: as many have changed as it was built with, or more are
        removed than remain."""
        if self.structure == "exact":
            return self._structure_for(n) != "exact" and n >= 2 * self._built_at
        return self._changed > self._built_at or self._engine.removed > n

    def _structure_for(self, n: int) -> Structure:
        if self.kind == "auto":
            return "ivf" if n >= AUTO_FROM and not self._gpu else "exact"
        return self.kind

    def _rebuild(self, keys: Sequence[str], vectors: Vectors, metadata: Mapping[str, str]) -> None:
        """Build the engine that suits the number of `keys`. metadata: Of the new keys."""
        structure = self._structure_for(len(keys))
        order = np.random.default_rng(0).permutation(len(keys)) if structure != "exact" else np.arange(len(keys))
        engine = build(structure, vectors[order], floor=self.least_recall, gpu=self._gpu)
        if self.kind == "auto" and isinstance(engine, Approximate) and engine.share_compared() > AUTO_SHARE:
            engine, order = Exact.of(vectors), np.arange(len(keys))
        texts, rows = self._metadata | dict(metadata), np.argsort(order).tolist()
        self._take(engine, [Entry(key, row, texts.get(key)) for key, row in zip(keys, rows, strict=True)])

    def _rows_of(self, keys: Sequence[str]) -> list[int]:
        self._check_keys(keys)
        try:
            return [self._rows[key] for key in keys]
        except KeyError as error:
            raise InputError(f"key {error.args[0]!r} is not in the index") from error

    def _check_keys(self, keys: Sequence[str]) -> None:
        if isinstance(keys, str):
            raise InputError(f"keys must be a list, not the single key {keys!r}")
        seen: set[str] = set()
        for at, key in enumerate(keys):
            if not isinstance(key, str) or not key:
                raise InputError(f"key {at} is {key!r}; a key must be a str that is not empty")
            if key in seen:
                raise InputError(f"key {key!r} is given twice")
            seen.add(key)

    def _checked(self, vectors: ArrayLike, keys: Sequence[str] | None = None) -> Vectors:
        """Vectors as FAISS takes them. InputError unless (n, width), one for each of `keys`, and each of length 1."""
        given = np.asarray(vectors)
        if given.ndim != 2 or given.shape[1] != self.width or given.dtype.kind not in "fiu":
            shape = f"{given.dtype} of shape {given.shape}"
            raise InputError(f"vectors must be numbers of shape (n, {self.width}), not {shape}")
        if keys is not None and len(given) != len(keys):
            raise InputError(f"{len(given)} vectors for {len(keys)} keys; give one for each")
        with np.errstate(over="ignore"):  # an overflow is refused below
            checked = np.ascontiguousarray(given, np.float32)
            squared = np.einsum("ij,ij->i", checked, checked)
        good = np.abs(squared - 1) <= SQUARED_WITHIN
        if not good.all():
            at = int(np.argmin(good))
            length = float(np.sqrt(squared[at]))
            name = f"vector {at}" if keys is None else f"vector {at}, of key {keys[at]!r},"
            what = f"has length {length:.6g}" if np.isfinite(length) else "holds a number that is not finite"
            raise InputError(f"{name} {what}; the length must be 1: divide each vector by its length")
        return checked

    def _refuse_if_read_only(self) -> None:
        if self._read_only:
            raise InputError("this index is memory-mapped and cannot be changed; load it without memory_mapped")


def _as_json(keys: Sequence[str], metadata: Sequence[Metadata] | None) -> dict[str, str]:
    """Key -> JSON text of its metadata; keys without metadata are absent."""
    if metadata is None:
        return {}
    if len(metadata) != len(keys):
        raise InputError(f"{len(metadata)} entries of metadata for {len(keys)} keys; give one for each")
    texts = {}
    for key, entry in zip(keys, metadata, strict=True):
        if not isinstance(entry, Mapping):
            raise InputError(f"metadata of key {key!r}: it must be a mapping, not {type(entry).__name__}")
        try:
            text = json.dumps(dict(entry), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"metadata of key {key!r} cannot be written as JSON: {error}") from error
        if entry:
            texts[key] = text
    return texts
