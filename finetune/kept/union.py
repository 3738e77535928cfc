"""The pictures of a run with others added, or without some of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from finetune.data.folder import Listing, Sample
from finetune.data.images import Content
from finetune.errors import InputError
from finetune.features.forward import Outputs
from finetune.kept.features import KeptFeatures
from finetune.kept.naming import NamedPictures, sha256_of
from finetune.kept.views import Views


def unknown(kept: KeptFeatures, listing: Listing, run: Path) -> Listing:
    """The pictures of `listing` that a run does not have yet; those that it has are hashed, and none is decoded.

    Raises:
        InputError: For a file that has another content or label than the run's picture of the same name.
    """
    places = {place: position for position, place in enumerate(_places(kept.listing))}
    new = []
    for sample, place in zip(listing.samples, _places(listing), strict=True):
        position = places.get(place)
        if position is None:
            new.append(sample)
            continue
        before, content = kept.listing.samples[position], kept.contents[position]
        path = listing.root / sample.path
        if content.reason is not None and sha256_of(path) != content.sha256:
            new.append(sample)  # it could not be read
        elif sample.label != before.label:
            raise InputError(
                f"{path} has the label {sample.label!r}, and {before.label!r} in {run}; forget it there first: "
                f"finetune forget {run} --pictures {path}"
            )
        elif content.reason is None and sha256_of(path) != content.sha256:
            raise InputError(
                f"{path} is another picture than the one of this name in {run}; forget that first: "
                f"finetune forget {run} --pictures {path}"
            )
    return replace(listing, samples=tuple(new))


def with_pictures(kept: KeptFeatures, listing: Listing, outputs: Outputs) -> tuple[KeptFeatures, frozenset[int]]:
    """The pictures of a run and those of `listing`, in the order of their paths; the positions of the new ones.

    Args:
        kept: The pictures of the run. All of them keep their splits.
        listing: New pictures. A split that is given for one is recorded as its split where the run made this split
            itself.
        outputs: Activations of the new pictures, of the depths that `kept` has.
    """
    given = {sample.split for sample in kept.listing.samples}
    added = dict(zip(_places(listing), listing.samples, strict=True))
    old = [position for position, place in enumerate(_places(kept.listing)) if place not in added]
    entries: list[tuple[Sample, Content, str | None, int]] = [
        (kept.listing.samples[place], kept.contents[place], kept.splits[place], place) for place in old
    ]
    for position, (place, sample) in enumerate(added.items()):
        split = sample.split if sample.split in given else None
        known = Sample(_below(kept.listing.root, place), sample.label, split, sample.size)
        entries.append((known, outputs.contents[position], None if split else sample.split, -1 - position))
    entries.sort(key=lambda entry: entry[0].path)
    samples, contents, splits, sources = zip(*entries, strict=True)
    rows = {place: row for row, place in enumerate(kept.index.tolist())}
    more = {-1 - place: len(rows) + row for row, place in enumerate(outputs.index.tolist())}
    index = [position for position, content in enumerate(contents) if content.reason is None]
    pooled = torch.cat([kept.pooled, outputs.values[:, 0, -kept.width :]]) if more else kept.pooled
    where = torch.tensor([(rows | more)[sources[position]] for position in index], dtype=torch.int64)
    now = {source: position for position, source in enumerate(sources)}
    joined = replace(
        kept,
        listing=replace(kept.listing, samples=samples, notes=(*kept.listing.notes, *listing.notes)),
        contents=contents,
        splits=splits,
        pooled=pooled[where],
        index=torch.tensor(index, dtype=torch.int64),
        views=_moved(kept.views, now),
    )
    return joined, frozenset(position for position, source in enumerate(sources) if source < 0)


def copies_of_old(kept: KeptFeatures, new: Collection[int]) -> frozenset[int]:
    """Those of the `new` positions whose pictures are identical to an old one, with its label and no other split."""
    old: dict[tuple[str, str], set[str | None]] = {}
    for place, (sample, content) in enumerate(zip(kept.listing.samples, kept.contents, strict=True)):
        if place not in new and content.reason is None:
            old.setdefault((content.sha256, sample.label), set()).add(kept.splits[place])
    found = set()
    for place in new:
        sample, content = kept.listing.samples[place], kept.contents[place]
        splits = old.get((content.sha256, sample.label)) if content.reason is None else None
        asked = sample.split or kept.splits[place]
        if splits is not None and (asked is None or asked in splits):
            found.add(place)
    return frozenset(found)


def without(kept: KeptFeatures, positions: Collection[int]) -> KeptFeatures:
    """The pictures of a run but those at `positions`. Notes on the listing that name one of these are left out too."""
    gone = set(positions)
    left = [position for position in range(len(kept.contents)) if position not in gone]
    now = {source: position for position, source in enumerate(left)}
    rows = [row for row, position in enumerate(kept.index.tolist()) if position not in gone]
    samples = tuple(kept.listing.samples[position] for position in left)
    labels = {sample.label for sample in kept.listing.samples} - {sample.label for sample in samples}
    names = labels | {kept.listing.samples[position].path for position in gone}
    notes = tuple(note for note in kept.listing.notes if not any(name in note for name in names))
    return replace(
        kept,
        listing=replace(kept.listing, samples=samples, notes=notes),
        contents=tuple(kept.contents[position] for position in left),
        splits=tuple(kept.splits[position] for position in left),
        pooled=kept.pooled[torch.tensor(rows, dtype=torch.int64)],
        index=torch.tensor([now[position] for position in kept.index.tolist() if position in now], dtype=torch.int64),
        views=_moved(kept.views, now),
    )


def named(kept: KeptFeatures) -> NamedPictures:
    """The pictures of a run by their names."""
    return NamedPictures(_places(kept.listing), kept.contents, [sample.path for sample in kept.listing.samples])


def _places(listing: Listing) -> list[str]:
    """The absolute paths of pictures, which may be gone."""
    root = os.path.realpath(listing.root)
    return [os.path.normpath(os.path.join(root, sample.path)) for sample in listing.samples]


def _below(root: Path, place: str) -> str:
    """The path of a picture as a listing has it: below its folder, or else the whole path."""
    path, folder = Path(place), Path(os.path.realpath(root))
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()


def _moved(views: Views | None, now: Mapping[int, int]) -> Views | None:
    """Views of pictures whose positions have changed; those of pictures that are gone are left out."""
    if views is None:
        return None
    places = [(now[position], row) for row, position in enumerate(views.index.tolist()) if position in now]
    order = torch.tensor([row for _, row in sorted(places)], dtype=torch.int64)
    return Views(views.values[order], torch.tensor([place for place, _ in sorted(places)], dtype=torch.int64))
