"""Pictures read and decoded into batches of uint8 tensors, by worker processes where it pays."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from pathlib import Path
from types import TracebackType

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data.collection.stored import StoredPicture
from finetune.data.images import Content, Picture, read_content, read_image
from finetune.data.near_duplicates import fingerprint
from finetune.data.transforms import View, view_seed
from finetune.errors import InputError, UnreadablePicture
from finetune.ranks.group import joined_ranks

# Starting a worker takes about a second, so the pictures of small folders are decoded in the main process.
WORTH_WORKERS = 400


# Position of a picture, what reading it found, and its pixels; None for an unreadable one.
Item = tuple[int, Content, Tensor | None]


@dataclass(frozen=True)
class Batch:
    """A batch of pictures.

    Attributes:
        index: Positions of the readable pictures, shape (n,).
        pixels: Their pixels, uint8, shape (n, 3, h, w) or (n, views, 3, h, w).
        contents: What reading each picture found, readable or not, by position.
    """

    index: Tensor
    pixels: Tensor
    contents: dict[int, Content]

    def __len__(self) -> int:
        return len(self.contents)


@dataclass(frozen=True)
class Pictures(Dataset[Item]):
    """A data set of pictures in one view.

    Attributes:
        sources: Files, members of archives, or pictures in memory.
        view: The steps from a picture to pixels.
        at_least: Shortest side in pixels that the view needs.
        max_pixels: Largest number of pixels of a picture; a larger one is unreadable.
        seed: Seed of random views.
        views: None for pixels (3, h, w), which depend on the epoch in a random view. A number for the pixels
            (views, 3, h, w) of the first epochs, in every epoch.
        fingerprints: Whether contents have fingerprints.
    """

    sources: Sequence[Picture | StoredPicture]
    view: View
    at_least: int
    max_pixels: int
    seed: int = 0
    views: int | None = None
    fingerprints: bool = False

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """The picture at position `index` in an epoch, for the key (epoch, index)."""
        epoch, index = key
        source = self.sources[index]
        digest = ""
        try:
            if isinstance(source, (str, Path)):
                source = read_content(Path(source))
                digest = hashlib.sha256(source).hexdigest()
            elif isinstance(source, StoredPicture):
                source = source.read()
                digest = hashlib.sha256(source).hexdigest()
            picture = read_image(source, at_least=self.at_least, max_pixels=self.max_pixels)
        except UnreadablePicture as error:
            return index, Content(digest, error.reason), None
        content = Content(digest, fingerprint=fingerprint(picture).hex() if self.fingerprints else None)
        if self.views is None:
            return index, content, self._in_view(picture, epoch, index)
        return index, content, torch.stack([self._in_view(picture, view, index) for view in range(self.views)])

    def batch(self, indices: Iterable[int]) -> Batch:
        """The pictures at `indices`, read in this thread."""
        return _collate([self[0, index] for index in indices])

    def _in_view(self, picture: Image.Image, epoch: int, index: int) -> Tensor:
        if not self.view.random:
            return self.view(picture)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(view_seed(self.seed, epoch, index))
            return self.view(picture)


def in_order(pictures: Pictures, *, batch_size: int, workers: int) -> Iterable[Batch]:
    """Batches of all pictures, in their order."""
    indices = range(len(pictures))
    batches = [[(0, index) for index in indices[start : start + batch_size]] for start in indices[::batch_size]]
    return decoded(pictures, batches, workers=workers)


def by_threads(pictures: Pictures, batch_size: int) -> Iterator[Batch]:
    """Batches of all pictures, in their order, decoded by threads of this process, one batch ahead: for views that need
    no random numbers."""
    every, ahead = range(len(pictures)), deque[Iterator[Item]]()
    with ThreadPoolExecutor(cores()) as pool:
        for start in every[::batch_size]:
            keys = [(0, index) for index in every[start : start + batch_size]]
            ahead.append(pool.map(pictures.__getitem__, keys))
            if len(ahead) > 1:
                yield _collate(list(ahead.popleft()))
        while ahead:
            yield _collate(list(ahead.popleft()))


def decoded(pictures: Pictures, batches: Iterable[list[tuple[int, int]]], *, workers: int) -> Iterable[Batch]:
    """Batches of the pictures with these keys (epoch, index), such as those of `Shuffle`."""
    with warnings.catch_warnings():
        # torch warns about more workers than cores, which the user asked for.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return DataLoader(
            pictures,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            # The generator of a worker is never used, because every view has its own seed.
            generator=torch.Generator().manual_seed(0),
            worker_init_fn=_without_broken_transfers,
        )


def check_unchanged(contents: Mapping[int, Content], pictures: Pictures, hashes: Sequence[str]) -> None:
    """InputError for a picture that no longer has its hash. contents, hashes: By position."""
    for index, content in contents.items():
        if content.reason is not None or content.sha256 != hashes[index]:
            why = f" ({content.reason})" if content.reason else ""
            raise InputError(f"{pictures.sources[index]!s} was changed during the run{why}; start a new run")


def worker_count(requested: int | None, pictures: int, *, beside_cpu: bool) -> int:
    """Number of processes that decode pictures.

    Args:
        requested: The number itself. None for no process for a small folder, else one per core, at most 16.
        pictures: Number of pictures.
        beside_cpu: Whether the network runs on the same cores; half of them are then left.
    """
    if requested is not None:
        return requested
    return 0 if pictures < WORTH_WORKERS else max(1, min(cores() // (2 if beside_cpu else 1), 16))


def cores() -> int:
    """Number of processor cores that this process may use: its share, beside other processes of the job."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = joined_ranks()
    return found if ranks is None else max(1, found // ranks.local_size)


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """A permutation of n positions, shape (n,), that depends only on the seed and the epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(view_seed(seed, epoch, "order")))


def batches_per_epoch(pictures: int, batch_size: int) -> int:
    """Number of batches. A last picture alone joins the batch before it, because batch norm needs two pictures."""
    alone = pictures % batch_size == 1 and pictures > batch_size > 1
    return -(-pictures // batch_size) - alone


@dataclass(frozen=True)
class Shuffle:
    """Batches of keys (epoch, index): each of `indices` once an epoch, from `first_epoch` to before `epochs`."""

    seed: int
    indices: Sequence[int]
    batch_size: int
    first_epoch: int
    epochs: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.first_epoch, self.epochs):
            order = epoch_order(self.seed, epoch, len(self.indices)).tolist()
            batches = batches_per_epoch(len(order), self.batch_size)
            for batch in range(batches):
                stop = len(order) if batch == batches - 1 else (batch + 1) * self.batch_size
                yield [(epoch, self.indices[position]) for position in order[batch * self.batch_size : stop]]

    def __len__(self) -> int:
        return (self.epochs - self.first_epoch) * batches_per_epoch(len(self.indices), self.batch_size)


def _without_broken_transfers(_: int) -> None:
    """In a worker: say nothing of a transfer that Ctrl-C breaks off. Its thread would print a traceback of its own."""
    shown = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, (ConnectionError, EOFError, AuthenticationError)):
            shown(kind, error, trace)

    sys.excepthook = hook


def _collate(items: list[Item]) -> Batch:
    readable = [(index, pixels) for index, _, pixels in items if pixels is not None]
    return Batch(
        index=torch.tensor([index for index, _ in readable], dtype=torch.int64),
        pixels=torch.stack([pixels for _, pixels in readable]) if readable else torch.empty(0, dtype=torch.uint8),
        contents={index: content for index, content, _ in items},
    )
