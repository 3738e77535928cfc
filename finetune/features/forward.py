"""A network that does not learn, run over pictures: each batch once, no gradients, evaluation mode."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.data.images import Content
from finetune.data.loader import Batch, Pictures, cores, in_order, worker_count
from finetune.data.transforms import Preprocessing
from finetune.features.acceleration import CPU_BATCH, GPU_BATCH, Forward, plain
from finetune.progress import Advance

# The readable pictures of a batch, (n, ...) uint8 as their view made them, to outputs (n, ...) float32 on the CPU.
See = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outputs:
    """values: (n, views, width) float32 on the CPU, a row for each readable picture. index: (n,) which picture that is.

    contents: what reading told of every picture, readable or not, by index.
    """

    values: Tensor
    index: Tensor
    contents: dict[int, Content]


def run_frozen(
    fabric: Fabric,
    module: nn.Module,
    preprocessing: Preprocessing,
    pictures: Pictures | Sequence[Batch],
    *,
    workers: int | None = None,
    test_time: str = "plain",
    advance: Advance | None = None,
) -> Outputs:
    """`module` on every one of `pictures`, in evaluation mode, which is left as it was found.

    workers: who reads pictures that are not in memory: processes beside a GPU, threads on a CPU; None for one a core.
    test_time "flip" adds the mirror image as a second view; with "ten-crop" the pictures already are ten.
    """
    was_training = module.training
    module.eval()
    try:
        see = partial(_see, fabric, plain(fabric, module), preprocessing, test_time)
        return run_over(fabric.device, see, pictures, workers=workers, advance=advance)
    finally:
        module.train(was_training)


def run_over(
    device: torch.device,
    see: See,
    pictures: Pictures | Sequence[Batch],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    advance: Advance | None = None,
) -> Outputs:
    """What `see` makes of every one of `pictures`; workers as for run_frozen.

    batch_size: pictures at once; None for what suits the device.
    """
    values, indices, contents = [], [], {}
    for batch, seen in _on_each(device, pictures, batch_size, workers, lambda batch: _seen(see, batch)):
        contents.update(batch.contents)
        if seen is not None:
            values.append(seen)
            indices.append(batch.index)
        if advance is not None:
            advance(len(batch), "")
    empty = torch.empty(0, 1, 0), torch.empty(0, dtype=torch.int64)
    found = (torch.cat(values), torch.cat(indices)) if values else empty
    return Outputs(*found, contents)


def in_memory(fabric: Fabric, pictures: Pictures, workers: int | None) -> list[Batch]:
    """The batches of `pictures`, read once, for several runs over them."""
    return [batch for batch, _ in _on_each(fabric.device, pictures, None, workers, lambda batch: None)]


def _on_each(
    device: torch.device,
    pictures: Pictures | Sequence[Batch],
    batch_size: int | None,
    workers: int | None,
    see: Callable[[Batch], Tensor | None],
) -> Iterator[tuple[Batch, Tensor | None]]:
    if device.type == "cpu":
        yield from _on_cores(pictures, batch_size or CPU_BATCH, workers, see)
        return
    batches: Iterable[Batch]
    if isinstance(pictures, Pictures):
        processes = worker_count(workers, len(pictures), beside_cpu=False)
        batches = in_order(pictures, batch_size=batch_size or GPU_BATCH, workers=processes)
    else:
        batches = pictures
    for batch in batches:
        yield batch, see(batch)


def _on_cores(
    pictures: Pictures | Sequence[Batch], batch_size: int, workers: int | None, see: Callable[[Batch], Tensor | None]
) -> Iterator[tuple[Batch, Tensor | None]]:
    """Each core takes a small batch from file to output by itself.

    Faster than one network on all cores beside processes that decode: no core waits for another at the end of
    each layer, and what passes between layers stays in its cache. Random views come from processes all the same: the
    threads of one share the generator that they draw from.
    """

    def work(job: Callable[[], Batch]) -> tuple[Batch, Tensor | None]:
        batch = job()
        return batch, see(batch)

    # torch keeps the number that a thread was last told for every thread that starts later.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        max(1, cores() if workers is None else workers), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        if isinstance(pictures, Pictures) and pictures.view.random:
            processes = worker_count(workers, len(pictures) * (pictures.views or 1), beside_cpu=False)
            yield from _soon(pool, work, in_order(pictures, batch_size=batch_size, workers=processes))
        else:
            yield from pool.map(work, _jobs(pictures, batch_size))
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _jobs(pictures: Pictures | Sequence[Batch], batch_size: int) -> list[Callable[[], Batch]]:
    """Each gives a batch, which a picture in a file is not before."""
    if not isinstance(pictures, Pictures):
        return [partial(_itself, batch) for batch in pictures]
    every = range(len(pictures))
    return [partial(pictures.batch, every[start : start + batch_size]) for start in every[::batch_size]]


def _soon(
    pool: ThreadPoolExecutor,
    work: Callable[[Callable[[], Batch]], tuple[Batch, Tensor | None]],
    batches: Iterable[Batch],
) -> Iterator[tuple[Batch, Tensor | None]]:
    """As the pool's `map`, which would take all of the batches before it gives the first."""
    under_way: deque[Future[tuple[Batch, Tensor | None]]] = deque()
    for batch in batches:
        under_way.append(pool.submit(work, partial(_itself, batch)))
        if len(under_way) > 2 * cores():
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _itself(batch: Batch) -> Batch:
    return batch


def _seen(see: See, batch: Batch) -> Tensor | None:
    return see(batch.pixels) if len(batch.index) else None


def _see(fabric: Fabric, run: Forward, preprocessing: Preprocessing, test_time: str, pixels: Tensor) -> Tensor:
    """(n, views, width) float32 on the CPU for n pictures, or n times ten crops."""
    pixels = pixels.to(fabric.device, non_blocking=True)
    views = pixels.unsqueeze(1) if pixels.ndim == 4 else pixels
    if test_time == "flip":
        views = torch.cat([views, views.flip(-1)], dim=1)
    outputs = run(preprocessing.normalize(views.flatten(0, 1)))
    shaped: Tensor = outputs.unflatten(0, views.shape[:2])
    return shaped.cpu()
