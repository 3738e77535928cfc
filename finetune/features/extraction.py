"""What is frozen is computed once: activations come from the cache, and what is missing there is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.config import Config
from finetune.data.folder import Listing
from finetune.data.images import Content, read_content
from finetune.data.loader import Item, Pictures, cores, in_order, worker_count
from finetune.data.near_duplicates import FINGERPRINT_BYTES
from finetune.data.transforms import Normalized, Preprocessing, evaluation_view
from finetune.errors import UnreadablePicture
from finetune.features.acceleration import CPU_BATCH, AcceleratedModel
from finetune.features.cache import ActivationCache, Activations, Values
from finetune.features.cache_keys import FeatureKey, feature_key, fingerprint_key, view_of
from finetune.features.forward import Outputs, run_over
from finetune.models.pooled import PooledStages
from finetune.progress import Advance, Display

# Pictures computed before their activations are put away: few until it is known how large these are, then as many as
# make about so many bytes, and no more than a killed run can afford to lose.
_FIRST_CHUNK, _CHUNK_BYTES, _CHUNK = 512, 256 << 20, 8192


class Computed(Protocol):
    """What a pass over pictures gives; `Outputs` is such. values: a row for each readable picture, in its `index`."""

    @property
    def values(self) -> Values: ...
    @property
    def index(self) -> Tensor: ...
    @property
    def contents(self) -> Mapping[int, Content]: ...


@dataclass(frozen=True)
class Features:
    """activations: a row for each readable picture. index: (n,) which picture that is, ascending.

    contents: what reading told of every picture, readable or not, by index. computed: how many were not known before.
    """

    activations: Activations
    index: Tensor
    contents: dict[int, Content]
    computed: int

    def outputs(self) -> Outputs:
        """All of them in memory, in float32, as a pass over the pictures would have given them."""
        values = self.activations[:]
        if isinstance(values, tuple):
            raise ValueError("several values cross this cut; take them from `activations`")
        return Outputs(values.float(), self.index, self.contents)


def cached(
    cache: ActivationCache,
    family: FeatureKey,
    pictures: Pictures,
    compute: Callable[[Pictures], Computed],
    *,
    indices: Sequence[int] | None = None,
    row_bytes: int | None = None,
    workers: int | None = None,
    advance: Advance | None = None,
) -> Features:
    """What `compute` makes of every one of `pictures`, of which it is given those alone that `cache` does not know.

    indices: of the pictures that are wanted, ascending; None for all. row_bytes: of one picture's activations, where
    that is known beforehand.

    A known picture is read and hashed, never decoded; where nothing of the family is known, nothing is hashed
    beforehand. An unreadable picture is never known: it is decoded again, and its reason found again. Where pictures
    ask for fingerprints, one whose fingerprint is not known is not known either. `compute` tells
    progress of what it is given, `advance` is told of the rest. workers: threads that hash, None for one a core.
    ValueError for pictures in memory, which have no hash, and for a family that is not of these pictures' view.
    """
    if any(not isinstance(source, (str, Path)) for source in pictures.sources):
        raise ValueError("only pictures in files are cached")
    if not view_of(pictures).items() <= {entry.name: getattr(family, entry.name) for entry in fields(family)}.items():
        raise ValueError("the family is of pictures that are read or seen otherwise")
    wanted = range(len(pictures)) if indices is None else indices
    hashes = _hashes(pictures, wanted, workers) if cache.holds(family) else {}
    found = cache.known(family, [family.row_key(sha256, index) for index, sha256 in hashes.items()])
    contents = {index: Content(sha256) for (index, sha256), known in zip(hashes.items(), found, strict=True) if known}
    looks = fingerprint_key(family) if pictures.fingerprints else None
    if looks is not None:
        contents = _with_fingerprints(cache, looks, contents)
    missing = [index for index in wanted if index not in contents]
    if advance is not None:
        advance(len(contents), "")
    for chunk in _chunks(cache, family, missing, row_bytes):
        computed = compute(_Some(**vars(pictures), chosen=chunk))
        keys = [family.row_key(computed.contents[index].sha256, index) for index in computed.index.tolist()]
        cache.put(family, keys, computed.values)
        if looks is not None:
            _put_fingerprints(cache, looks, [computed.contents[index] for index in computed.index.tolist()])
        cache.flush()
        contents |= computed.contents
    readable = [index for index in wanted if contents[index].reason is None]
    activations = cache.get(family, [family.row_key(contents[index].sha256, index) for index in readable])
    return Features(activations, torch.tensor(readable, dtype=torch.int64), contents, len(missing))


def _with_fingerprints(
    cache: ActivationCache, looks: FeatureKey, contents: Mapping[int, Content]
) -> dict[int, Content]:
    """Those of `contents` whose fingerprint is known, with it."""
    known = cache.known(looks, [content.sha256 for content in contents.values()])
    found = [index for index, there in zip(contents, known, strict=True) if there]
    if not found:
        return {}
    rows = cache.get(looks, [contents[index].sha256 for index in found])[:]
    assert isinstance(rows, Tensor)
    kept = zip(found, rows.numpy(), strict=True)
    return {index: replace(contents[index], fingerprint=row.tobytes().hex()) for index, row in kept}


def _put_fingerprints(cache: ActivationCache, looks: FeatureKey, contents: Sequence[Content]) -> None:
    told = {content.sha256: content.fingerprint for content in contents if content.fingerprint is not None}
    if told:
        rows = np.frombuffer(bytes.fromhex("".join(told.values())), np.uint8).reshape(len(told), FINGERPRINT_BYTES)
        cache.put(looks, list(told), torch.from_numpy(rows.copy()))


@dataclass(frozen=True)
class _Some(Pictures):
    """Those of the pictures whose indices are `chosen`; each keeps its index, on which a random view depends."""

    chosen: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        epoch, position = key
        return super().__getitem__((epoch, self.chosen[position]))


def _hashes(pictures: Pictures, wanted: Sequence[int], workers: int | None) -> dict[int, str]:
    """sha256 in hex by index, of every one that is there: one that is not has its reason told where it is seen."""

    def digest(index: int) -> str | None:
        try:
            return hashlib.sha256(read_content(Path(pictures.sources[index]))).hexdigest()  # type: ignore[arg-type]
        except UnreadablePicture:
            return None

    def digests(indices: Sequence[int]) -> list[str | None]:
        return [digest(index) for index in indices]

    with ThreadPoolExecutor(max(1, cores() if workers is None else workers)) as pool:
        # Several files a job: of a million jobs, the jobs would take more memory than all else.
        found = pool.map(digests, [wanted[start : start + 64] for start in range(0, len(wanted), 64)])
        pairs = zip(wanted, chain.from_iterable(found), strict=True)
        return {index: sha256 for index, sha256 in pairs if sha256 is not None}


def _chunks(
    cache: ActivationCache, family: FeatureKey, indices: Sequence[int], row_bytes: int | None
) -> Iterator[Sequence[int]]:
    start = 0
    while start < len(indices):
        size = cache.row_bytes(family) if row_bytes is None else row_bytes
        count = _FIRST_CHUNK if size is None else min(_CHUNK, max(1, _CHUNK_BYTES // max(1, size)))
        yield indices[start : start + count]
        start += count


def read_pictures(fabric: Fabric, stages: PooledStages, listing: Listing, config: Config, display: Display) -> Outputs:
    """Pooled activations of every stage, (n, 1, sum of widths), of the pictures that can be read.

    What an earlier run has kept of the same backbone and the same pictures is not computed again.
    """
    preprocessing = stages.backbone.preprocessing
    paths = [listing.root / sample.path for sample in listing.samples]
    pictures = Pictures(
        paths, evaluation_view(preprocessing), preprocessing.shortest_side, config.max_pixels, fingerprints=True
    )
    module = Normalized(stages, preprocessing).eval()
    run = AcceleratedModel(
        fabric,
        module,
        lambda: pictures.batch(range(min(CPU_BATCH, len(pictures)))).pixels,
        pictures=len(pictures),
        precision=config.precision,
        announce=display.say,
    )
    with ExitStack() as stack:
        advance = stack.enter_context(display.bar("reading", len(paths)))
        disk = None if config.cache else 0
        cache = stack.enter_context(ActivationCache(disk=disk, announce=display.say))

        def compute(missing: Pictures) -> Outputs:
            run.prepare()
            return run_over(
                fabric.device, lambda pixels: run(pixels)[:, None], missing, workers=config.workers, advance=advance
            )

        family = feature_key(
            fabric,
            module,
            pictures,
            preprocessing,
            backbone=stages.backbone.name,
            cut="stages",
            runtime=run.name,
        )
        return cached(cache, family, pictures, compute, workers=config.workers, advance=advance).outputs()


def read_contents(
    listing: Listing, preprocessing: Preprocessing, config: Config, display: Display
) -> dict[int, Content]:
    """What `read_pictures` says of every picture, by index, without a network run over them."""
    paths = [listing.root / sample.path for sample in listing.samples]
    view, side = evaluation_view(preprocessing), preprocessing.shortest_side
    pictures = Pictures(paths, view, side, config.max_pixels, fingerprints=True)
    workers = worker_count(config.workers, len(pictures), beside_cpu=False)
    contents: dict[int, Content] = {}
    with display.bar("reading", len(paths)) as advance:
        for batch in in_order(pictures, batch_size=CPU_BATCH, workers=workers):
            contents |= batch.contents
            advance(len(batch), "")
    return contents
