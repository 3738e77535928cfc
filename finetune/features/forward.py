"""Forward passes of a network over pictures, in one process or in several: no gradients, each batch once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.computing.device_stream import copied_ahead, fetched_behind
from finetune.data.images import Content
from finetune.data.loader import Batch, Item, Pictures, by_threads, cores, in_order, worker_count
from finetune.data.transforms import Normalized, Preprocessing
from finetune.features.acceleration import (
    CPU_BATCH,
    GPU_BATCH,
    AcceleratedModel,
    Examples,
    Forward,
    plain,
    size_alone,
    unmixed,
)
from finetune.models.device import open_engine, reproducible_numerics
from finetune.progress import Advance, Display
from finetune.ranks.exchange import share
from finetune.ranks.group import Ranks, current

# A batch and the network's outputs for its readable pictures; None where there are no such pictures or no network.
_Result = tuple[Batch, Tensor | None]

# Name of what other processes keep between two passes.
_HELD = "forward pass"


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network for pictures.

    Attributes:
        values: Shape (n, views, width), float32 on the CPU; a row for each readable picture.
        index: Shape (n,), the position of each row's picture.
        contents: What reading each picture found, readable or not, by position.
    """

    values: Tensor
    index: Tensor
    contents: dict[int, Content]

    @classmethod
    def joined(cls, parts: Sequence[Outputs]) -> Outputs:
        """The outputs of several passes, one or more, in their order."""
        values = torch.cat([part.values for part in parts if len(part.index)] or [parts[0].values])
        contents = {position: content for part in parts for position, content in part.contents.items()}
        return cls(values, torch.cat([part.index for part in parts]), contents)


def run_frozen(
    fabric: Fabric,
    network: nn.Module,
    preprocessing: Preprocessing,
    pictures: Pictures | Sequence[Batch],
    *,
    workers: int | None = None,
    alone: bool = False,
    test_time: str = "plain",
    advance: Advance | None = None,
    compiled: Forward | None = None,
) -> Outputs:
    """Run a network over pictures in evaluation mode; its mode is restored afterwards.

    Args:
        fabric: Device and precision.
        network: Normalised pictures (n, 3, size, size) to outputs (n, width).
        preprocessing: Normalisation of the pictures.
        pictures: Pictures to read, or batches that are in memory.
        workers: Number of processes beside a GPU, or of threads on a CPU, that read pictures. None for one per core.
        alone: Whether the outputs of a picture are bit for bit the same, whatever the other pictures are.
        test_time: "flip" adds the mirror image as a second view. With "ten-crop" the pictures already have ten views.
        advance: Called with the number of pictures that are done.
        compiled: The network, compiled; it then runs instead, and `network` is not touched.
    """

    def over(run: Forward) -> Outputs:
        device, network = fabric.device, _OverViews(run, preprocessing, test_time)
        if not alone:
            return run_over(device, network, pictures, workers=workers, advance=advance)
        each, size = unmixed(network, device), size_alone(device)
        return run_over(device, each, pictures, batch_size=size, workers=workers, advance=advance)

    if compiled is not None:
        return over(compiled)
    was_training = network.training
    network.eval()
    try:
        return over(plain(fabric, network))
    finally:
        network.train(was_training)


class _OverViews:
    """A network on uint8 pictures (n, 3, h, w) or (n, views, 3, h, w), to (n, views, width), on its device."""

    def __init__(self, run: Forward, preprocessing: Preprocessing, test_time: str):
        self._run = run
        self._preprocessing, self._flips = preprocessing, test_time == "flip"

    def __call__(self, pixels: Tensor) -> Tensor:
        views = pixels.unsqueeze(1) if pixels.ndim == 4 else pixels
        if self._flips:
            views = torch.cat([views, views.flip(-1)], dim=1)
        outputs = self._run(self._preprocessing.normalize(views.flatten(0, 1)))
        of_views: Tensor = outputs.unflatten(0, views.shape[:2])
        return of_views


def run_over(
    device: torch.device,
    network: Forward,
    pictures: Pictures | Sequence[Batch],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    advance: Advance | None = None,
    keep: Callable[[Outputs], None] | None = None,
) -> Outputs:
    """Run a network over pictures, in their order.

    Args:
        device: Device of the network. On a CPU, several threads call the network at the same time.
        network: uint8 pixels (n, ...) as the pictures' view makes them to outputs (n, ...) float32, both on `device`.
        pictures: Pictures to read, or batches that are in memory.
        batch_size: Pictures in a batch. None for the usual size of the device.
        workers: As for `run_frozen`.
        advance: Called with the number of pictures that are done.
        keep: Called with the outputs of each batch, so that an interruption loses no more than a few.
    """
    values, indices, contents = [], [], {}
    with reproducible_numerics(device):
        for batch, outputs in _on_each(device, network, pictures, batch_size, workers):
            contents.update(batch.contents)
            if outputs is not None:
                values.append(outputs)
                indices.append(batch.index)
                if keep is not None:
                    keep(Outputs(outputs, batch.index, batch.contents))
            if advance is not None:
                advance(len(batch), "")
    empty = torch.empty(0, 1, 0), torch.empty(0, dtype=torch.int64)
    found = (torch.cat(values), torch.cat(indices)) if values else empty
    return Outputs(*found, contents)


def in_memory(fabric: Fabric, pictures: Pictures, workers: int | None) -> list[Batch]:
    """The batches of `pictures`, read once, for several passes over them."""
    return [batch for batch, _ in _on_each(fabric.device, None, pictures, None, workers)]


def _on_each(
    device: torch.device,
    network: Forward | None,
    pictures: Pictures | Sequence[Batch],
    batch_size: int | None,
    workers: int | None,
) -> Iterator[_Result]:
    if device.type == "cpu":
        yield from _on_cores(network, pictures, batch_size or CPU_BATCH, workers)
    else:
        yield from _streamed(device, network, pictures, batch_size or GPU_BATCH, workers)


def _streamed(
    device: torch.device,
    network: Forward | None,
    pictures: Pictures | Sequence[Batch],
    batch_size: int,
    workers: int | None,
) -> Iterator[_Result]:
    """Runs one network, which does not wait for its results to be fetched. Processes decode the pictures; where they
    are few, threads do."""
    batches: Iterable[Batch]
    if isinstance(pictures, Pictures):
        processes = worker_count(workers, len(pictures), beside_cpu=False)
        if processes or pictures.view.random:
            batches = in_order(pictures, batch_size=batch_size, workers=processes)
        else:
            batches = by_threads(pictures, batch_size)
    else:
        batches = pictures
    if network is None:
        yield from ((batch, None) for batch in batches)
        return
    on_device = copied_ahead(((batch, batch.pixels) for batch in batches), device)
    yield from fetched_behind(
        ((batch, network(pixels) if len(batch.index) else None) for batch, pixels in on_device), device
    )


def _on_cores(
    network: Forward | None, pictures: Pictures | Sequence[Batch], batch_size: int, workers: int | None
) -> Iterator[_Result]:
    """Each core takes a small batch from file to output by itself.

    This is faster than one network on all cores beside processes that decode: no core waits for another at the end of
    each layer, and activations between layers stay in the core's cache. Random views are decoded by processes all the
    same, because the threads of one process share the random generator.
    """
    # torch gives a thread that starts later the number of threads that was set last, in any thread.
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        max(1, cores() if workers is None else workers), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        if not isinstance(pictures, Pictures):
            yield from pool.map(partial(_run, network), pictures)
        elif pictures.view.random:
            processes = worker_count(workers, len(pictures) * (pictures.views or 1), beside_cpu=False)
            yield from _ahead(pool, network, in_order(pictures, batch_size=batch_size, workers=processes))
        else:
            every = range(len(pictures))
            parts = [every[start : start + batch_size] for start in every[::batch_size]]
            yield from pool.map(partial(_read_and_run, network, pictures), parts)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _ahead(pool: ThreadPoolExecutor, network: Forward | None, batches: Iterable[Batch]) -> Iterator[_Result]:
    """The pool's `map`, with a bounded number of batches in memory."""
    under_way: deque[Future[_Result]] = deque()
    for batch in batches:
        under_way.append(pool.submit(_run, network, batch))
        if len(under_way) > 2 * cores():
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _read_and_run(network: Forward | None, pictures: Pictures, indices: Sequence[int]) -> _Result:
    return _run(network, pictures.batch(indices))


def _run(network: Forward | None, batch: Batch) -> _Result:
    return batch, None if network is None or not len(batch.index) else network(batch.pixels)


# --- shared out among the processes of a job --------------------------------------------------------------------------


@dataclass
class ForwardPass:
    """Runs a model over some of the pictures of a set.

    Attributes:
        fabric: Device and precision.
        model: The accelerated network.
        full_batches: Whether the network runs in batches of one size.
        workers: As for `run_over`.
    """

    fabric: Fabric
    model: AcceleratedModel
    full_batches: bool
    workers: int | None
    _sent: Pictures | None = field(default=None, init=False)

    def run(self, pictures: Pictures, chosen: Sequence[int], advance: Advance | None) -> Outputs:
        """Outputs of the pictures at the positions `chosen`, ascending. Several processes take a share each."""
        ranks = current()
        if ranks is None:
            return self.run_here(pictures, chosen, advance)
        if self._sent is not pictures:
            self._send(ranks, pictures)
        with ranks.asked(_run_share, chosen):
            own = self.run_here(pictures, _share(ranks, chosen, self._batch_size(pictures)), advance)
            parts = ranks.gathered(own)
        if advance is not None:
            advance(len(chosen) - len(own.contents), "")
        return Outputs.joined(parts)

    def run_here(self, pictures: Pictures, chosen: Sequence[int], advance: Advance | None) -> Outputs:
        """As `run`, in this process alone."""
        self.model.prepare()
        return run_over(
            self.fabric.device,
            self._of_views,
            _Subset(**vars(pictures), chosen=chosen),
            batch_size=self._batch_size(pictures),
            workers=self.workers,
            advance=advance,
        )

    def _batch_size(self, pictures: Pictures) -> int:
        # On a GPU a batch holds as many views as it otherwise holds pictures. A core splits one batch into several.
        return CPU_BATCH if self.fabric.device.type == "cpu" else max(1, GPU_BATCH // (pictures.views or 1))

    def _of_views(self, pixels: Tensor) -> Tensor:
        """Outputs (n, views, width) for uint8 (n, 3, size, size) or (n, views, 3, size, size)."""
        views = pixels.unsqueeze(1) if pixels.ndim == 4 else pixels
        run = self.model.in_full_batches if self.full_batches else self.model
        rows: Tensor = run(views.flatten(0, 1)).unflatten(0, views.shape[:2])
        return rows

    def _send(self, ranks: Ranks, pictures: Pictures) -> None:
        """Let the other processes have the network and the pictures."""
        network, examples, count, precision = self.model.given
        given = deepcopy(network).cpu(), examples, count, precision
        with ranks.asked(_receive, given, self.full_batches, self.workers, pictures):
            self._sent = pictures


def _receive(
    ranks: Ranks,
    given: tuple[Normalized, Examples, int, str],
    full_batches: bool,
    workers: int | None,
    pictures: Pictures,
) -> None:
    network, examples, count, precision = given
    fabric = open_engine(ranks.device.type, precision)
    network = network.to(fabric.device).eval()
    model = AcceleratedModel(fabric, network, examples, pictures=count, precision=precision, display=Display())
    ranks.held[_HELD] = ForwardPass(fabric, model, full_batches, workers), pictures


def _run_share(ranks: Ranks, chosen: Sequence[int]) -> None:
    forward, pictures = ranks.held[_HELD]
    ranks.gathered(forward.run_here(pictures, _share(ranks, chosen, forward._batch_size(pictures)), None))


def _share(ranks: Ranks, chosen: Sequence[int], batch_size: int) -> Sequence[int]:
    """The part of a rank: whole batches, so that every picture is in the same batch as in one process."""
    batches = share(-(-len(chosen) // batch_size), ranks.rank, ranks.size)
    return chosen[batches.start * batch_size : batches.stop * batch_size]


@dataclass(frozen=True)
class _Subset(Pictures):
    """The pictures at the positions `chosen`. Each keeps its position, on which a random view depends."""

    chosen: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, position = key
        return super().__getitem__((epoch, self.chosen[position]))
