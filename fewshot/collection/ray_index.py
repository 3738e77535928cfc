"""An index of a collection that Ray embeds: the parts stand beside it, and are merged into it."""

from __future__ import annotations

from pathlib import Path

from fewshot.collection.merging import merge_parts
from fewshot.collection.ray_engine import RayEngine
from fewshot.collection.shards import ShardUpdate, Tell, embed_shard
from fewshot.embedding.embedder import Embedder
from fewshot.search.index import Index
from fewshot.search.index_files import is_free
from fewshot.search.picture_index import about_collection, check_source
from fewshot.search.table.lance_index import LanceIndex
from fewshot.search.table.location import is_free_for_table, is_table
from finetune.data.collection.collection import open_collection
from finetune.data.collection.shard import Shard
from finetune.errors import InputError
from finetune.extras import check_extra
from finetune.progress import Display


def embed_with_ray(
    source: str | Path,
    out: str | Path,
    embedder: Embedder,
    *,
    engine: RayEngine = RayEngine(),  # noqa: B008  frozen
    kind: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    display: Display | None = None,
    tell: Tell | None = None,
) -> tuple[Index | LanceIndex, ShardUpdate]:
    """Create or update the index in `out` on a Ray cluster: the index that `embed_folder` makes in one process.

    The vectors are first written to parts, in the folder `out` with ".parts" added. They stay there: a job that was
    stopped or killed goes on from them, and a later one embeds what is new or has another content. An index that was
    made without Ray has no parts, so its pictures are embedded again.

    Ray that is initialised in this process is used and left running; `engine` says what happens otherwise.

    Args:
        source: The collection, as `open_collection` takes it.
        out: Folder of the index; created if missing. A path that ends in .lance is a new Lance table.
        embedder: Makes the vectors. The workers get its weights; its device is not used.
        engine: The Ray cluster.
        kind: As for `Index`.
        batch_size: Pictures in a batch of the network; None for what suits the device.
        workers: Number of processes that embed; None for one per GPU of the cluster, or one per CPU core without.
        display: Shows bars.
        tell: Called with the key of each unreadable picture and the reason, at once.

    Returns:
        The index, which is saved, and the numbers of pictures that were embedded, kept and removed.

    Raises:
        InputError: If Ray is not installed or no cluster answers, if the collection cannot be read, or if `out` was
            made with another embedder or of another collection.

    Example:
        >>> from fewshot import Embedder, embed_with_ray
        >>> embedder = Embedder.load("omniglot", device="cpu")
        >>> index, update = embed_with_ray("signs", "signs.index", embedder, workers=2)  # doctest: +SKIP
        >>> len(index) == update.pictures  # doctest: +SKIP
        True
    """
    _check_out(source, out, embedder)
    parts = _parts_of(Path(out))
    update = embed_shard(
        source,
        parts,
        embedder,
        Shard(),
        batch_size=batch_size,
        workers=workers,
        ray=engine,
        display=display,
        tell=tell,
    )
    index, _ = merge_parts(out, [parts], kind=kind, device="cpu", display=display)
    return index, update


def _check_out(source: str | Path, out: str | Path, embedder: Embedder) -> None:
    """InputError where the index cannot be written to `out`, before the hours that embedding may take."""
    if not is_table(out):
        check_extra("search", "an index")
        if not is_free(Path(out)):
            there = Index.load(out, fingerprint=embedder.fingerprint, memory_mapped=True).about
            check_source(out, there, about_collection(open_collection(source)))
    elif "://" in str(out):
        raise InputError(
            f"--engine ray writes parts beside the index, so {out} must be a path: give --shard 1/1 and a folder as "
            "--out, and then merge it into the table"
        )
    elif not is_free_for_table(out):
        raise InputError(f"{out} is there already; give a new table, or delete it: only its parts go on")


def _parts_of(out: Path) -> Path:
    """The folder of the parts of the index in `out`."""
    return out.parent / f"{out.absolute().name}.parts"
