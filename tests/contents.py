"""Folders that are audited without a file: contents are made up, in a known order of their hashes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

from hypothesis import strategies as st

from finetune.data.folder import Listing, Sample
from finetune.data.images import Content
from finetune.data.splits import Folder, audit

FRACTIONS = {"val_fraction": 0.2, "test_fraction": 0.2, "max_bad": 0.5}


def sha(position: float, rest: int = 0) -> str:
    return f"{int(position * 16**16):016x}{rest:048x}"


def made(pictures: Mapping[str, str | None], looks: Mapping[str, bytes] | None = None) -> tuple[Listing, list[Content]]:
    """A listing of path -> sha256, None for an unreadable picture; splits where the paths start with their names.

    looks: fingerprints, by sha256.
    """
    samples, contents = [], []
    for path, content in sorted(pictures.items()):
        *above, label, _ = path.split("/")
        samples.append(Sample(path, label, above[0] if above else None, 1))
        look = (looks or {}).get(content or "")
        told = Content(content or "", fingerprint=None if look is None else look.hex())
        contents.append(told if content is not None else Content("", "cut short"))
    return Listing(Path("root"), tuple(samples), ("listed.",)), contents


def audited(
    pictures: Mapping[str, str | None],
    looks: Mapping[str, bytes] | None = None,
    *,
    recorded: Mapping[str, str] | None = None,
    **options: float,
) -> tuple[Folder, dict[str, str]]:
    """The folder, and the side of each picture that is used."""
    listing, contents = made(pictures, looks)
    folder = audit(listing, contents, recorded=recorded, **{**FRACTIONS, **options})  # type: ignore[arg-type]
    sides = {split: getattr(folder, split) for split in ("train", "val", "test")}
    found = {listing.samples[index].path: split for split, indices in sides.items() for index in indices}
    assert len(found) == sum(map(len, sides.values())), "a picture on two sides"
    assert set(found) | {entry.path for entry in (*folder.unreadable, *folder.left_out)} == set(pictures)
    assert all(list(indices) == sorted(indices) for indices in sides.values())
    return folder, found


def counts_of(sides: Mapping[str, str]) -> dict[str, dict[str, int]]:
    """Pictures of each class by split, of paths as `audited` gives them."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for path, side in sides.items():
        counts[path.split("/")[-2]][side] += 1
    return {label: dict(found) for label, found in counts.items()}


def consistent(pictures: Mapping[str, str]) -> dict[str, str]:
    """`pictures` without those whose content stands under two labels, which are left out of every split."""
    labels: dict[str, set[str]] = defaultdict(set)
    for path, content in pictures.items():
        labels[content].add(path.split("/")[-2])
    return {path: content for path, content in pictures.items() if len(labels[content]) == 1}


PLAIN = {
    "cat/0.jpg": sha(0.1),
    "cat/1.jpg": sha(0.3),
    "cat/2.jpg": sha(0.5),
    "cat/3.jpg": sha(0.9),
    "dog/0.jpg": sha(0.15),
    "dog/1.jpg": sha(0.35),
    "dog/2.jpg": sha(0.7),
}

hashes = st.floats(0, 1, exclude_max=True).map(sha) | st.integers(0, 2**256 - 1).map("{:064x}".format)
# Enough on every side for the exceptions not to apply.
ANCHORS = {f"{label}/{side}.jpg": sha(p, n) for n, label in enumerate("ab") for side, p in (("v", 0.3), ("t", 0.9))}
