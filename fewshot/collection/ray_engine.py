"""A collection embedded by the workers of a Ray cluster: Ray Data streams it through reading, decoding and embedding.

Ray Data's own checkpoints of a job are not used. They would be a second record beside the parts, which a kill can leave
different from them, and they know a picture by its key alone, so that a changed one would keep its old vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from fewshot.collection.known import KnownPictures
from fewshot.collection.ray_cluster import imported_ray, ray_cluster
from fewshot.collection.ray_embedding import Embed, EmbedderParts, decoded
from fewshot.collection.ray_stages import BATCH, Known, Row, Written, listed, written
from fewshot.embedding.embedder import Embedder
from finetune.data.collection.collection import Collection
from finetune.data.collection.shard import Shard
from finetune.errors import FewtuneError, InputError, UnreadablePicture
from finetune.features.acceleration import CPU_BATCH, GPU_BATCH, WORTH_CONVERTING

# Batches of the network that a worker takes at once on a CPU: Ray needs some milliseconds each time.
_CPU_BATCHES = 4
# What workers take at once, as often as this, makes a part.
_TIMES = 32
# Shares of a core that the stages take. Together they are one core, so the smallest cluster can run all. Decoding takes
# as much as embedding on a CPU: Ray then runs both in one worker, and no pixels pass between processes.
_LISTING, _COMPUTING, _WRITING = 0.1, 0.8, 0.1


@dataclass(frozen=True)
class RayEngine:
    """Where Ray embeds a collection.

    Every machine must see the collection and the folder of the parts under the same paths, on a shared file system.

    Attributes:
        address: Of a running cluster, "host:port", or "auto" for the one on this machine; None for that of the
            environment variable RAY_ADDRESS, or else for a local cluster that ends with the job. Ray that is
            initialised in this process already comes first.
        device: "cpu" or "cuda"; "auto" for GPUs where the cluster has some.

    Example:
        >>> from fewshot import RayEngine
        >>> RayEngine("10.0.0.1:6379").device
        'auto'
    """

    address: str | None = None
    device: str = "auto"

    def check(self) -> None:
        """InputError where Ray is not installed or no cluster is at the address, before a job writes anything."""
        imported_ray(self.address)


def embedded_by_ray(
    engine: RayEngine,
    collection: Collection,
    shard: Shard,
    folder: Path,
    embedder: Embedder,
    known: KnownPictures,
    batch_size: int | None,
    workers: int | None,
) -> Iterator[Written]:
    """Embed a shard's pictures, except known ones, into parts, on a Ray cluster.

    A worker that dies costs its batch, which another one computes again. No more than some batches are in memory.

    Args:
        engine: The cluster.
        collection, shard: The pictures.
        folder: Folder of the parts.
        embedder: Makes the vectors; its device is not used.
        known: The pictures in the parts.
        batch_size: Pictures in a batch of the network; None for what suits the device.
        workers: Number of processes that embed; None for one per GPU of the cluster, or one per CPU core without.

    Yields:
        What was written or found, part by part.

    Raises:
        InputError: If there is no such cluster or device, and for errors of the workers.
    """
    with ray_cluster(engine.address, workers) as ray:
        resources = ray.cluster_resources()
        gpus = 0 if engine.device == "cpu" else int(resources.get("GPU", 0))
        if engine.device == "cuda" and not gpus:
            raise InputError("--device cuda: the Ray cluster has no GPU; use --device cpu or auto")
        batch_size = batch_size or (GPU_BATCH if gpus else CPU_BATCH)
        examples, pictures = _examples(collection, shard, batch_size)
        given = EmbedderParts(
            network=deepcopy(embedder.network).cpu(),
            spec=embedder.spec,
            views=embedder.views,
            tolerance=embedder.tolerance,
            examples=examples,
            pictures=pictures,
            batch_size=batch_size,
            device="cuda" if gpus else "cpu",
        )
        data = _stages(
            ray,
            partial(listed, collection=collection, shard=shard, size=batch_size if gpus else _CPU_BATCHES * batch_size),
            partial(decoded, spec=embedder.spec, known=ray.put(Known(known.hashes, known.unreadable))),
            ray.put(given),
            partial(written, folder=folder.absolute()),
            actors=workers or gpus or max(1, int(resources.get("CPU", 1))),
            gpus=1 if gpus else 0,
        )
        try:
            for rows in data.iter_batches(batch_size=None, prefetch_batches=0):
                yield from rows[BATCH]
        except ray.exceptions.RayError as error:
            raise _own(error) from error


def _stages(
    ray: Any,
    listing: Callable[[Row], Iterator[Row]],
    decoding: Callable[[Row], Row],
    embedder: Any,
    writing: Callable[[Row], Row],
    *,
    actors: int,
    gpus: int,
) -> Any:
    """The data set of what is written. embedder: In the object store; gpus: of each of the `actors`."""
    with ray.data.DataContext.current(_context(ray)):
        data = ray.data.from_items([0]).map_batches(listing, batch_size=1, num_cpus=_LISTING)
        data = data.map(decoding, num_cpus=_COMPUTING)
        data = data.map(
            Embed,
            fn_constructor_args=(embedder,),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=_COMPUTING,
            num_gpus=gpus or None,
        )
        return data.map_batches(writing, batch_size=_TIMES, num_cpus=_WRITING)


def _context(ray: Any) -> Any:
    """Ray Data's settings for the job; those of the process stay."""
    context = ray.data.DataContext.get_current().copy()
    context.target_max_block_size = 1  # each row is a block of its own
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    return context


def _examples(collection: Collection, shard: Shard, count: int) -> tuple[list[bytes], int]:
    """Contents of the readable ones of the first pictures, and how many pictures there are, as far as it matters."""
    first = list(islice(collection.pictures(shard), max(count, WORTH_CONVERTING)))
    contents = []
    for picture in first[:count]:
        try:
            contents.append(picture.read())
        except UnreadablePicture:  # the workers report it
            continue
    return contents, len(first)


def _own(error: BaseException) -> BaseException:
    """The project's own error that a worker raised, if it is one."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, FewtuneError):
        found = getattr(found, "cause", None) or found.__cause__
    return error if found is None else found
