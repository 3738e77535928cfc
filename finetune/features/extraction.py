"""Outputs of a frozen network for pictures: from the activation cache, or else by a forward pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.config import Config
from finetune.data.folder import Listing
from finetune.data.images import Content, read_content
from finetune.data.loader import Pictures, cores, in_order, worker_count
from finetune.data.near_duplicates import FINGERPRINT_BYTES
from finetune.data.transforms import Normalized, Preprocessing, evaluation_view
from finetune.errors import UnreadablePicture
from finetune.features.acceleration import CPU_BATCH, AcceleratedModel, Examples
from finetune.features.cache import ActivationCache, Activations
from finetune.features.cache_keys import FeatureKey, feature_key, fingerprint_key
from finetune.features.forward import ForwardPass, Outputs
from finetune.models.pooled import PooledStages
from finetune.progress import Advance, Display, with_estimate

# Pictures in a chunk, which is cached before the next one is computed: few until the size of an activation is known,
# then about so many bytes, and never more than a killed run can afford to lose.
_FIRST_CHUNK, _CHUNK_BYTES, _CHUNK = 512, 256 << 20, 8192


@dataclass(frozen=True)
class Features:
    """Outputs of a frozen network for pictures, in memory or mapped from the cache's files.

    Attributes:
        activations: A row (views, width) for each readable picture.
        index: Shape (n,), the position of each row's picture, ascending.
        contents: What reading each picture found, readable or not, by position.
        computed: Positions of the pictures that were not in the cache.
    """

    activations: Activations
    index: Tensor
    contents: dict[int, Content]
    computed: tuple[int, ...]

    def outputs(self) -> Outputs:
        """All rows in memory in float32, as one forward pass returns them."""
        return Outputs(self.activations[:].float(), self.index, self.contents)


class FeatureExtractor:
    """A frozen network, accelerated, with the cache of its outputs.

    Args:
        fabric: Device and precision.
        network: The frozen part of a backbone, in evaluation mode, with its normalisation: uint8 pictures
            (n, 3, size, size) to (n, width).
        backbone: timm's name of the backbone.
        cut: Where the network ends, see `FeatureKey.cut`.
        examples: Pictures on which faster ways to run the network are checked. Where their hashes are known, the
            outputs are cached under these as well, and the network runs in batches of one size: the same pictures then
            always give the same bits.
        pictures: Number of pictures in all, every view counted.
        kept_as: Number format in the cache: "float32", "bfloat16" or "float16".
        model: The accelerated network, where there is one already.
        config: Precision and number of workers.
        cache: Cache of the outputs.
        display: Shows one line when the network cannot be converted.
    """

    def __init__(
        self,
        fabric: Fabric,
        network: Normalized,
        backbone: str,
        cut: str,
        examples: Examples,
        pictures: int,
        config: Config,
        cache: ActivationCache,
        display: Display,
        *,
        kept_as: str = "float32",
        model: AcceleratedModel | None = None,
    ):
        self._fabric, self._network, self._backbone, self._cut, self._kept_as = fabric, network, backbone, cut, kept_as
        self._model = model or AcceleratedModel(
            fabric, network, examples, pictures=pictures, precision=config.precision, display=display
        )
        self._forward = ForwardPass(fabric, self._model, examples.hashes is not None, config.workers)
        self._runtime = self._model.name
        if examples.hashes is not None and self._model.checked:
            # Other examples might lead to another way to run the network, and so to other bits.
            hashes = "".join(examples.hashes[index] for index in examples.indices)
            self._runtime += f", checked by {hashlib.sha256(hashes.encode()).hexdigest()}"
        self._workers, self._cache = config.workers, cache

    def key(self, pictures: Pictures) -> FeatureKey:
        """The key of the network's outputs for `pictures`."""
        return feature_key(
            self._fabric,
            self._network,
            pictures,
            self._network.preprocessing,
            backbone=self._backbone,
            cut=self._cut,
            runtime=self._runtime,
            kept_as=self._kept_as,
        )

    def is_cached(self, pictures: Pictures) -> bool:
        """Whether the cache holds outputs of this network for pictures in this view."""
        return self._cache.holds(self.key(pictures))

    def extract(
        self,
        pictures: Pictures,
        indices: Sequence[int] | None = None,
        *,
        row_bytes: int | None = None,
        advance: Advance | None = None,
    ) -> Features:
        """The network's outputs for pictures; only those that the cache lacks are computed.

        A cached picture is read and hashed, never decoded; where the cache holds nothing under the key, nothing is
        hashed beforehand. An unreadable picture is decoded again each time, which finds its reason again. Where
        pictures ask for fingerprints, a picture without a cached fingerprint is decoded as well.

        Args:
            pictures: Pictures in files.
            indices: Positions of the wanted pictures, ascending. None for all.
            row_bytes: Size of one picture's outputs, where it is known.
            advance: Called with the number of pictures that are done.

        Returns:
            The outputs of the readable pictures.

        Raises:
            ValueError: For pictures in memory, which have no hash.
            OverflowError: For an output that the cache's number format cannot hold.
        """
        if any(not isinstance(source, (str, Path)) for source in pictures.sources):
            raise ValueError("only pictures in files are cached")
        cache, key = self._cache, self.key(pictures)
        wanted = range(len(pictures)) if indices is None else indices
        contents = self._known(key, pictures, wanted)
        missing = [index for index in wanted if index not in contents]
        if advance is not None:
            advance(len(contents), "")
        for chunk in _chunks(cache, key, missing, row_bytes):
            outputs = self._forward.run(pictures, chunk, advance)
            readable = [outputs.contents[index] for index in outputs.index.tolist()]
            keys = [key.row_key(outputs.contents[index].sha256, index) for index in outputs.index.tolist()]
            cache.put(key, keys, outputs.values)
            if pictures.fingerprints:
                _put_fingerprints(cache, fingerprint_key(key), readable)
            cache.flush()
            contents |= outputs.contents
        rows = [index for index in wanted if contents[index].reason is None]
        activations = cache.get(key, [key.row_key(contents[index].sha256, index) for index in rows])
        return Features(activations, torch.tensor(rows, dtype=torch.int64), contents, tuple(missing))

    def _known(self, key: FeatureKey, pictures: Pictures, wanted: Sequence[int]) -> dict[int, Content]:
        """The contents of the pictures whose outputs are cached, by position."""
        if not self._cache.holds(key):
            return {}
        hashes = _hashes(pictures, wanted, self._workers)
        known = self._cache.known(key, [key.row_key(sha256, index) for index, sha256 in hashes.items()])
        pairs = zip(hashes.items(), known, strict=True)
        contents = {index: Content(sha256) for (index, sha256), there in pairs if there}
        return _with_fingerprints(self._cache, fingerprint_key(key), contents) if pictures.fingerprints else contents


@dataclass(frozen=True)
class StageReader:
    """Reads the pooled activations of every stage for the pictures of a listing.

    Attributes:
        stages: The backbone, on the device of `fabric`.
        pictures: The listing in the view of evaluation.
        network: The stages with their normalisation.
        model: The network, accelerated for the number of pictures.
    """

    fabric: Fabric
    stages: PooledStages
    pictures: Pictures
    network: Normalized
    model: AcceleratedModel
    config: Config

    @classmethod
    def of(
        cls,
        fabric: Fabric,
        stages: PooledStages,
        listing: Listing,
        config: Config,
        display: Display,
        *,
        expected: int | None = None,
    ) -> StageReader:
        """A reader of `listing`. expected: number of pictures to read, on which it depends whether the network is
        converted; None for all."""
        preprocessing = stages.backbone.preprocessing
        pictures = _in_evaluation_view(listing, preprocessing, config)
        network = Normalized(stages, preprocessing).eval()
        model = AcceleratedModel(
            fabric,
            network,
            _first(pictures),
            pictures=len(pictures) if expected is None else expected,
            precision=config.precision,
            display=display,
        )
        return cls(fabric, stages, pictures, network, model, config)

    def examples(self) -> Tensor:
        """The readable ones of the first pictures, uint8 (n, 3, size, size); a grey one where there are none."""
        found, size = _first(self.pictures).read(), self.network.preprocessing.size
        return found if len(found) else torch.full((1, 3, size, size), 128, dtype=torch.uint8)

    def read(
        self,
        display: Display,
        indices: Sequence[int] | None = None,
        *,
        bar: str = "reading",
        told: Callable[[float, float], None] | None = None,
    ) -> Outputs:
        """Values (n, 1, sum of widths) of the readable pictures at `indices`, ascending; None for all. bar: name of the
        progress bar. told: as for `read_pictures`."""
        count = len(self.pictures) if indices is None else len(indices)
        with display.bar(bar, count) as advance, self.extractor(display) as extractor:
            advance = advance if told is None else with_estimate(advance, count, told)
            return extractor.extract(self.pictures, indices, advance=advance).outputs()

    @contextmanager
    def extractor(self, display: Display) -> Iterator[FeatureExtractor]:
        """Extracts activations of all pictures or of some, one part after the other."""
        with ActivationCache(disk=None if self.config.cache else 0, display=display) as cache:
            yield FeatureExtractor(
                self.fabric,
                self.network,
                self.stages.backbone.name,
                "stages",
                _first(self.pictures),
                len(self.pictures),
                self.config,
                cache,
                display,
                model=self.model,
            )


def _first(pictures: Pictures) -> Examples:
    return Examples(pictures, range(min(CPU_BATCH, len(pictures))))


def read_pictures(
    fabric: Fabric,
    stages: PooledStages,
    listing: Listing,
    config: Config,
    display: Display,
    *,
    told: Callable[[float, float], None] | None = None,
) -> Outputs:
    """Pooled activations of every stage for the readable pictures of a listing: values (n, 1, sum of widths).

    told: shows the expected time, as for `with_estimate`.
    """
    return StageReader.of(fabric, stages, listing, config, display).read(display, told=told)


def read_contents(
    listing: Listing, preprocessing: Preprocessing, config: Config, display: Display
) -> dict[int, Content]:
    """The `contents` that `read_pictures` returns, without running a network."""
    pictures = _in_evaluation_view(listing, preprocessing, config)
    workers = worker_count(config.workers, len(pictures), beside_cpu=False)
    contents: dict[int, Content] = {}
    with display.bar("reading", len(pictures)) as advance:
        for batch in in_order(pictures, batch_size=CPU_BATCH, workers=workers):
            contents |= batch.contents
            advance(len(batch), "")
    return contents


def _in_evaluation_view(listing: Listing, preprocessing: Preprocessing, config: Config) -> Pictures:
    paths = [listing.root / sample.path for sample in listing.samples]
    view, side = evaluation_view(preprocessing), preprocessing.shortest_side
    return Pictures(paths, view, side, config.max_pixels, fingerprints=True)


def _chunks(
    cache: ActivationCache, key: FeatureKey, indices: Sequence[int], row_bytes: int | None
) -> Iterator[Sequence[int]]:
    start = 0
    while start < len(indices):
        size = cache.row_bytes(key) if row_bytes is None else row_bytes
        count = _FIRST_CHUNK if size is None else min(_CHUNK, max(1, _CHUNK_BYTES // max(1, size)))
        yield indices[start : start + count]
        start += count


# --- what the cache needs to know of a picture ------------------------------------------------------------------------


def _hashes(pictures: Pictures, wanted: Sequence[int], workers: int | None) -> dict[int, str]:
    """sha256 in hex of every picture that can be read from disk, by position."""

    def digest(index: int) -> str | None:
        try:
            return hashlib.sha256(read_content(Path(str(pictures.sources[index])))).hexdigest()
        except UnreadablePicture:  # a forward pass finds the reason
            return None

    def digests(indices: Sequence[int]) -> list[str | None]:
        return [digest(index) for index in indices]

    with ThreadPoolExecutor(max(1, cores() if workers is None else workers)) as pool:
        # Several files in a job: a million jobs would take more memory than all else.
        found = pool.map(digests, [wanted[start : start + 64] for start in range(0, len(wanted), 64)])
        pairs = zip(wanted, chain.from_iterable(found), strict=True)
        return {index: sha256 for index, sha256 in pairs if sha256 is not None}


def _with_fingerprints(cache: ActivationCache, key: FeatureKey, contents: Mapping[int, Content]) -> dict[int, Content]:
    """Those of `contents` whose fingerprint is cached, completed by it."""
    known = cache.known(key, [content.sha256 for content in contents.values()])
    found = [index for index, there in zip(contents, known, strict=True) if there]
    if not found:
        return {}
    rows = cache.get(key, [contents[index].sha256 for index in found])[:].numpy()
    return {
        index: replace(contents[index], fingerprint=row.tobytes().hex()) for index, row in zip(found, rows, strict=True)
    }


def _put_fingerprints(cache: ActivationCache, key: FeatureKey, contents: Sequence[Content]) -> None:
    by_hash = {content.sha256: content.fingerprint for content in contents if content.fingerprint is not None}
    if by_hash:
        rows = np.frombuffer(bytes.fromhex("".join(by_hash.values())), np.uint8)
        cache.put(key, list(by_hash), torch.from_numpy(rows.reshape(len(by_hash), FINGERPRINT_BYTES).copy()))
