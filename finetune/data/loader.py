"""Pictures read, decoded and handed on in batches of uint8 tensors, by worker processes where there are such."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from finetune.data.images import Content, Picture, read_content, read_image
from finetune.data.near_duplicates import fingerprint
from finetune.data.transforms import View, view_seed
from finetune.errors import InputError, UnreadablePicture

# Starting a worker costs about a second: small folders are decoded in the main process.
WORTH_WORKERS = 400


# A picture's index, what reading told of it, and its pixels, None when it cannot be read.
Item = tuple[int, Content, Tensor | None]


@dataclass(frozen=True)
class Batch:
    """Readable pictures: index (n,) into the sources, pixels uint8 (n, 3, h, w) or (n, views, 3, h, w).

    contents: of all, by index.
    """

    index: Tensor
    pixels: Tensor
    contents: dict[int, Content]

    def __len__(self) -> int:
        return len(self.contents)


@dataclass(frozen=True)
class Pictures(Dataset[Item]):
    """`sources`, files or pictures in memory, seen through `view`; what is random in a view depends on `seed`.

    views: None for pixels (3, h, w) of one view, which depends on the epoch; a number for those of so many epochs from
    the first, (views, 3, h, w), whatever the epoch. fingerprints: whether contents tell what pictures look like.
    """

    sources: Sequence[Picture]
    view: View
    at_least: int
    max_pixels: int
    seed: int = 0
    views: int | None = None
    fingerprints: bool = False

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Picture `index` as seen in `epoch`, for key (epoch, index); None for the pixels when it cannot be read."""
        epoch, index = key
        source = self.sources[index]
        digest = ""
        try:
            if isinstance(source, (str, Path)):
                source = read_content(Path(source))
                digest = hashlib.sha256(source).hexdigest()
            picture = read_image(source, at_least=self.at_least, max_pixels=self.max_pixels)
        except UnreadablePicture as error:
            return index, Content(digest, error.reason), None
        content = Content(digest, fingerprint=fingerprint(picture).hex() if self.fingerprints else None)
        if self.views is None:
            return index, content, self._seen(picture, epoch, index)
        return index, content, torch.stack([self._seen(picture, view, index) for view in range(self.views)])

    def batch(self, indices: Iterable[int]) -> Batch:
        """The pictures at `indices`, read here and now."""
        return _collate([self[0, index] for index in indices])

    def _seen(self, picture: Image.Image, epoch: int, index: int) -> Tensor:
        if not self.view.random:
            return self.view(picture)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(view_seed(self.seed, epoch, index))
            return self.view(picture)


def in_order(pictures: Pictures, *, batch_size: int, workers: int) -> Iterable[Batch]:
    """Every picture once, first to last."""
    indices = range(len(pictures))
    batches = [[(0, index) for index in indices[start : start + batch_size]] for start in indices[::batch_size]]
    return _loader(pictures, batches, workers)


def shuffled(
    pictures: Pictures, indices: Sequence[int], *, batch_size: int, first_epoch: int, epochs: int, workers: int
) -> Iterable[Batch]:
    """Every picture in `indices` once an epoch, in an order that depends on the seed and the epoch alone."""
    return _loader(pictures, Shuffle(pictures.seed, indices, batch_size, first_epoch, epochs), workers)


def check_unchanged(contents: Mapping[int, Content], pictures: Pictures, hashes: Sequence[str]) -> None:
    """InputError when a picture is no longer what it was. contents, hashes: by index; the sha256 of each, then."""
    for index, content in contents.items():
        if content.reason is not None or content.sha256 != hashes[index]:
            why = f" ({content.reason})" if content.reason else ""
            raise InputError(
                f"{pictures.sources[index]!s} was changed while the run was under way{why}; start a new run"
            )


def worker_count(requested: int | None, pictures: int, *, beside_cpu: bool) -> int:
    """Decoding processes: as asked for, else none for a small folder and one a core, at most 16, for a larger one.

    beside_cpu: the network runs on the same cores, which leaves half of them.
    """
    if requested is not None:
        return requested
    return 0 if pictures < WORTH_WORKERS else max(1, min(cores() // (2 if beside_cpu else 1), 16))


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """A permutation of n, (n,), that depends on seed and epoch alone."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(view_seed(seed, epoch, "order")))


def batches_per_epoch(pictures: int, batch_size: int) -> int:
    """A last picture that would be alone joins the batch before it: batch norm has nothing to learn from one."""
    alone = pictures % batch_size == 1 and pictures > batch_size > 1
    return -(-pictures // batch_size) - alone


@dataclass(frozen=True)
class Shuffle:
    """Batches of keys (epoch, index): every one of `indices` once an epoch, from `first_epoch` to before `epochs`."""

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


def _loader(pictures: Pictures, batches: Iterable[list[tuple[int, int]]], workers: int) -> Iterable[Batch]:
    with warnings.catch_warnings():
        # torch advises against more workers than cores; who asks for them knows.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return DataLoader(
            pictures,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            # A worker's own generator is never used: every view draws from its own seed.
            generator=torch.Generator().manual_seed(0),
        )


def _collate(items: list[Item]) -> Batch:
    readable = [(index, pixels) for index, _, pixels in items if pixels is not None]
    return Batch(
        index=torch.tensor([index for index, _ in readable], dtype=torch.int64),
        pixels=torch.stack([pixels for _, pixels in readable]) if readable else torch.empty(0, dtype=torch.uint8),
        contents={index: content for index, content, _ in items},
    )
