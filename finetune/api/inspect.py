"""`inspect_folder`: classes, sizes, duplicates and label errors of a folder, before any training. It only reads."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.api.unlabelled import IN_INSPECTION, learn_unlabelled, read_unlabelled
from finetune.classifier.run_metrics import UnlabelledMetrics
from finetune.computing.threads import one_thread_if_small
from finetune.config import AUTO, Config
from finetune.data.folder import Listing
from finetune.data.images import Content, Header, read_header
from finetune.data.loader import cores
from finetune.data.near_duplicates import connected
from finetune.data.split_record import recorded_splits
from finetune.data.splits import Folder, Unreadable, audit, near_duplicates
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError, UnreadablePicture
from finetune.features.extraction import read_contents, read_pictures
from finetune.features.forward import Outputs
from finetune.features.table import SPLITS, FeatureTable
from finetune.features.unlabelled import UnlabelledPictures, list_some
from finetune.linear.head import solve_heads
from finetune.linear.label_errors import checkable_rows, find_label_errors
from finetune.models.backbone import Backbone
from finetune.models.candidates import load_weights
from finetune.models.device import open_engine
from finetune.models.hub import WeightsUnavailable
from finetune.models.pooled import PooledStages
from finetune.models.pretrained import WITHOUT_A_NETWORK
from finetune.progress import Display
from finetune.random_state import restored_random_state

# Longer side over shorter side beyond which the centre crop cuts off most of a picture.
ODD_ASPECT = 3.0
# Most example paths of each class.
EXAMPLES = 6


@dataclass(frozen=True)
class NearDuplicates:
    """Pictures that are identical, or near-duplicates. paths: sorted. labels, splits: of the pictures."""

    paths: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class SuspectLabel:
    """A picture whose label is probably wrong. margin: probability of `label` minus that of `predicted`, -1 to 0."""

    path: str
    label: str
    predicted: str
    margin: float
    probability_of_label: float


@dataclass(frozen=True)
class Sizes:
    """Width and height of the readable pictures, upright, in pixels, ordered by area. odd: paths of those longer than
    ODD_ASPECT. formats, modes: number of pictures of each, by Pillow's names."""

    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    odd: tuple[str, ...]
    formats: dict[str, int]
    modes: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect_folder`.

    Attributes:
        counts: Readable pictures of each class by split; "-" stands for unused pictures.
        examples: Paths of some pictures of each class, evenly spread.
        identical, near: Groups of identical pictures and of near-duplicates: first those across splits, then those
            across classes.
        suspects: Probable label errors, the worst first; None where labels cannot be judged. Test pictures are not
            judged: a classifier must not choose the pictures that it is measured on.
        refusal: Why a run on the folder would stop; None where it would not.
        not_judged: Why no label was judged; None where the only reason is too few pictures.
        unlabelled: What unlabelled pictures do for a head, and which of them to label next; None without
            `Config.unlabelled`, and where no head can be made.

    Example:
        >>> from finetune import Config, inspect_folder
        >>> inspect_folder("photos/", config=Config(backbone="fewtune_conv4", device="cpu")).unreadable
        ()
    """

    root: Path
    pictures: int
    bytes: int
    counts: dict[str, dict[str, int]]
    examples: dict[str, tuple[str, ...]]
    sizes: Sizes | None
    unreadable: tuple[Unreadable, ...]
    identical: tuple[NearDuplicates, ...]
    near: tuple[NearDuplicates, ...]
    suspects: tuple[SuspectLabel, ...] | None
    judged: int
    notes: tuple[str, ...]
    refusal: str | None
    not_judged: str | None = None
    unlabelled: UnlabelledMetrics | None = None

    @property
    def balance(self) -> float | None:
        """Pictures of the largest class over those of the smallest; None where a class has none."""
        totals = [sum(counts.values()) for counts in self.counts.values()]
        return max(totals) / min(totals) if min(totals, default=0) else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "root": str(self.root), "balance": self.balance}


@restored_random_state()
def inspect_folder(
    folder: Source,
    *,
    config: Config | None = None,
    display: Display | None = None,
    label_next: int = IN_INSPECTION,
) -> Inspection:
    """Read every picture of a folder once, as a run would, and report problems.

    Nothing in the folder is changed. Activations are cached for a later run. Without pretrained weights, everything but
    the labels is inspected.

    Args:
        folder: A folder or a table, as `fit` takes it.
        config: Options of the run to come.
        display: Shows progress.
        label_next: Number of pictures in the folder `config.unlabelled` to list, those whose labels would teach most.

    Returns:
        Counts, sizes, unreadable files, duplicates and suspect labels; with `config.unlabelled`, what its pictures do
        for a head, and those to label next.

    Raises:
        InputError: For a folder or backbone that cannot be used, and a `label_next` below 1.

    Example:
        >>> from finetune import Config, inspect_folder
        >>> found = inspect_folder("photos/", config=Config(backbone="fewtune_conv4", device="cpu"))
        >>> found.pictures, found.balance
        (40, 1.0)
    """
    config, display = config or Config(), display or Display()
    if label_next < 1:
        raise InputError(f"--label-next must be at least 1, not {label_next}")
    listing = list_pictures(folder, to_train=False)
    if config.unlabelled is not None:
        list_some(config.unlabelled)  # an empty folder is refused here, before an hour of reading
    if config.backbone == AUTO:
        raise InputError("inspect reads pictures with one network; --backbone auto goes with fit, probe and lr-find")
    backbone = Backbone(config.backbone, image_size=config.image_size)
    outputs, not_judged = None, None
    try:
        load_weights(backbone, config, display, instead=WITHOUT_A_NETWORK[:1])
    except WeightsUnavailable as error:
        not_judged = str(error)
        read = read_contents(listing, backbone.preprocessing, config, display)
    else:
        fabric = open_engine(config.device, config.precision)
        stages = PooledStages(backbone.to(fabric.device))
        outputs = read_pictures(fabric, stages, listing, config, display)
        read = outputs.contents
    contents = [read[position] for position in range(len(listing.samples))]
    found, refusal = _audited(listing, contents, config)
    splits = _splits(listing, contents, found)
    near = near_duplicates(contents, splits)
    suspects, judged, unlabelled = None, 0, None
    if outputs is not None and found is not None:
        rows = FeatureTable.audited(listing, outputs, backbone.width, config)
        pictures = read_unlabelled(fabric, stages, contents, [*found.val, *found.test], config, None, display)
        if pictures is not None:
            unlabelled = _unlabelled(rows, pictures, stages.widths, label_next)
    if outputs is not None:
        suspects, judged = _suspects(listing, contents, outputs, splits, near, backbone.width)
    return Inspection(
        root=listing.root,
        pictures=len(listing.samples),
        bytes=sum(max(0, sample.size) for sample in listing.samples),
        counts=_counts(listing, splits),
        examples=_examples(listing, splits),
        sizes=_sizes(listing, contents, config),
        unreadable=_unreadable(listing, contents),
        identical=_identical(listing, contents, splits),
        near=_ordered([_alike(listing, splits, group) for group in connected(near)]),
        suspects=suspects,
        judged=judged,
        notes=listing.notes if found is None else found.notes,
        refusal=refusal,
        not_judged=not_judged,
        unlabelled=unlabelled,
    )


def _unlabelled(
    rows: FeatureTable, pictures: UnlabelledPictures, widths: Sequence[int], count: int
) -> UnlabelledMetrics:
    """What unlabelled pictures do for the head of a run, and the `count` of them to label next."""
    with one_thread_if_small(rows.pooled.numel() + pictures.pooled.numel()):
        train, val, made = rows.of_split("train"), rows.of_split("val"), rows.val_was_made
        heads = solve_heads(train, val, widths, learn_from_val=made)
        learned = learn_unlabelled(heads, rows, pictures, widths, None)
        return learned.metrics(learned.next(rows, widths, count))


def _audited(listing: Listing, contents: Sequence[Content], config: Config) -> tuple[Folder | None, str | None]:
    """The splits of a run on the folder, or why it would stop."""
    try:
        found = audit(
            listing,
            contents,
            val_fraction=config.val_fraction,
            test_fraction=config.test_fraction,
            max_bad=config.max_bad,
            recorded=recorded_splits(listing, config),
        )
        return found, None
    except InputError as error:
        return None, error.lines[0].rstrip(": ")  # the other lines list unreadable files


def _splits(listing: Listing, contents: Sequence[Content], found: Folder | None) -> dict[int, str]:
    """The split of each readable picture, "-" for an unused one; the given splits where a run would stop."""
    readable = [index for index, content in enumerate(contents) if content.reason is None]
    if found is None:
        return {index: listing.samples[index].split or "-" for index in readable}
    used = {index: split for split in SPLITS for index in getattr(found, split)}
    return {index: used.get(index, "-") for index in readable}


def _counts(listing: Listing, splits: dict[int, str]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {label: Counter() for label in listing.classes}
    for index, split in splits.items():
        counts[listing.samples[index].label][split] += 1
    return {label: {split: found[split] for split in (*SPLITS, "-") if found[split]} for label, found in counts.items()}


def _examples(listing: Listing, splits: dict[int, str]) -> dict[str, tuple[str, ...]]:
    paths: dict[str, list[str]] = {label: [] for label in listing.classes}
    for index in sorted(splits):
        paths[listing.samples[index].label].append(listing.samples[index].path)
    return {
        label: tuple(found[place * len(found) // EXAMPLES] for place in range(EXAMPLES))
        if len(found) > EXAMPLES
        else tuple(found)
        for label, found in paths.items()
    }


def _unreadable(listing: Listing, contents: Sequence[Content]) -> tuple[Unreadable, ...]:
    return tuple(
        Unreadable(sample.path, content.reason)
        for sample, content in zip(listing.samples, contents, strict=True)
        if content.reason is not None
    )


def _sizes(listing: Listing, contents: Sequence[Content], config: Config) -> Sizes | None:
    paths = [sample.path for sample, content in zip(listing.samples, contents, strict=True) if content.reason is None]

    def header(path: str) -> Header | None:
        try:
            return read_header(listing.root / path, max_pixels=config.max_pixels)
        except UnreadablePicture:  # it was readable a moment ago
            return None

    with ThreadPoolExecutor(max(1, cores())) as pool:
        headers = {path: found for path, found in zip(paths, pool.map(header, paths), strict=True) if found is not None}
    if not headers:
        return None
    by_area = sorted((found.width * found.height, found.width, found.height) for found in headers.values())
    odd = [path for path, found in headers.items() if _aspect(found) > ODD_ASPECT]
    return Sizes(
        smallest=by_area[0][1:],
        median=statistics.median_low(by_area)[1:],
        largest=by_area[-1][1:],
        odd=tuple(sorted(odd, key=lambda path: -_aspect(headers[path]))),
        formats=dict(Counter(found.format for found in headers.values()).most_common()),
        modes=dict(Counter(found.mode for found in headers.values()).most_common()),
    )


def _aspect(header: Header) -> float:
    return max(header.width, header.height) / min(header.width, header.height)


def _identical(listing: Listing, contents: Sequence[Content], splits: dict[int, str]) -> tuple[NearDuplicates, ...]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index in splits:
        groups[contents[index].sha256].append(index)
    return _ordered([_alike(listing, splits, group) for group in groups.values() if len(group) > 1])


def _alike(listing: Listing, splits: dict[int, str], group: Sequence[int]) -> NearDuplicates:
    samples = [listing.samples[index] for index in group]
    # A picture that is left out because of its duplicate still counts in the split that it was given in.
    stands = {sample.split or splits[index] for index, sample in zip(group, samples, strict=True)}
    return NearDuplicates(
        tuple(sorted(sample.path for sample in samples)),
        tuple(sorted({sample.label for sample in samples})),
        tuple(split for split in (*SPLITS, "-") if split in stands),
    )


def _ordered(groups: Sequence[NearDuplicates]) -> tuple[NearDuplicates, ...]:
    return tuple(sorted(groups, key=lambda group: (-len(group.splits), -len(group.labels), group.paths)))


def _suspects(
    listing: Listing,
    contents: Sequence[Content],
    outputs: Outputs,
    splits: dict[int, str],
    near: Sequence[tuple[int, int]],
    width: int,
) -> tuple[tuple[SuspectLabel, ...] | None, int]:
    """Probable label errors, and how many pictures were judged."""
    place = {index: row for row, index in enumerate(outputs.index.tolist())}
    rows = [index for index, split in sorted(splits.items()) if split != "test"]
    if not rows:
        return None, 0
    classes, labels = np.unique([listing.samples[index].label for index in rows], return_inverse=True)
    alike = _group_numbers(contents, rows, near)
    judged = checkable_rows(labels, alike)
    if len(np.unique(labels[judged])) < 2:
        return None, 0
    features = outputs.values[[place[index] for index in rows], 0, -width:]
    found = find_label_errors(features, labels, alike)
    return tuple(
        SuspectLabel(
            path=listing.samples[rows[suspect.row]].path,
            label=str(classes[suspect.given]),
            predicted=str(classes[suspect.predicted]),
            margin=round(suspect.margin, 6),
            probability_of_label=round(suspect.probability_of_given, 6),
        )
        for suspect in found
    ), len(judged)


def _group_numbers(contents: Sequence[Content], rows: Sequence[int], near: Sequence[tuple[int, int]]) -> list[int]:
    """A number for each of `rows`, shared by identical and near-duplicate pictures."""
    first: dict[str, int] = {}
    for group in connected(near):
        first |= {contents[index].sha256: group[0] for index in group}
    return [first.setdefault(contents[index].sha256, index) for index in rows]
