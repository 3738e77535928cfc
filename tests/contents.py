"""Folders that are audited without a file: contents made up, by where their hashes decide that they belong.

Position p in [0, 1) of a hash decides: below 0.2 test, below 0.4 validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hypothesis import strategies as st

from finetune.audit import Content, Folder, audit
from finetune.folder import Listing, Sample

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
    pictures: Mapping[str, str | None], looks: Mapping[str, bytes] | None = None, **options: float
) -> tuple[Folder, dict[str, str]]:
    """The folder, and the side of each picture that is used."""
    listing, contents = made(pictures, looks)
    folder = audit(listing, contents, **{**FRACTIONS, **options})
    sides = {split: getattr(folder, split) for split in ("train", "val", "test")}
    found = {listing.samples[index].path: split for split, indices in sides.items() for index in indices}
    assert len(found) == sum(map(len, sides.values())), "a picture on two sides"
    assert set(found) | {entry.path for entry in (*folder.unreadable, *folder.left_out)} == set(pictures)
    assert all(list(indices) == sorted(indices) for indices in sides.values())
    return folder, found


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
