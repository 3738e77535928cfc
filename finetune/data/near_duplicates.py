"""Near-duplicates: fingerprints of pictures, 100 bytes each, and the pairs whose fingerprints agree.

Two perceptual hashes of imagehash and the mean colour have to agree. pHash (Zauner 2010) with 256 bits separates
photographs and steel surfaces by a wide margin, but it is nearly blind where most frequencies lie on one axis. The
gradient hash (Krawetz 2013), along rows and along columns, separates some of those; pictures of stripes alone are left
out. Both hashes ignore colour, the only difference between some classes. A picture saved again, at another quality or
size, a little brighter, or with a rim of 1 % cut away is found nearly always; with 2 % cut away in one case of four,
with more hardly ever. Mirrored and rotated pictures are not found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# relief (1), mean colour (3), pHash (32), gradient hash along rows (32) and along columns (32), in bytes.
FINGERPRINT_BYTES = 100
_HASHES = ((4, 36), (36, 68), (68, 100))

# Bits of 256 that may differ. Different pictures of flowers, pets and steel differ by 76 in pHash and more; of the
# 1.6 million pairs of scikit-learn's digits, scans of 8 x 8 pixels, 5 are within 30, and 2,800 within 64.
PHASH_BITS = 30
GRADIENT_BITS = 64
# Of 255, in any one of red, green and blue.
COLOUR = 40
# Relief below which the hashes describe noise: the standard deviation of the grey values without the means of rows and
# of columns. It is near 0 for flat pictures, ramps and stripes.
_FLAT = 2

_SIDE = 32
_AT_ONCE = 1 << 20  # pairs that are compared at once


def fingerprint(picture: Image.Image) -> bytes:
    """The fingerprint of a picture, computed in about a third of a millisecond.

    It depends on the decoded pixels: another version of a decoder, or a JPEG decoded at another scale, may change a bit
    or two. The picture must be upright and RGB.
    """
    import imagehash  # imported here because it is slow to import

    factor = max(1, min(picture.size) // (2 * _SIDE))
    small = picture.reduce(factor) if factor > 1 else picture
    colour = small.resize((1, 1), Image.Resampling.BOX).tobytes()
    grey = small.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    values = np.asarray(grey, np.float32)
    relief = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    hashes = (
        imagehash.phash(grey, hash_size=16, highfreq_factor=2),
        imagehash.dhash(grey, hash_size=16),
        imagehash.dhash_vertical(grey, hash_size=16),
    )
    return (
        bytes([round(float(relief.std()))])  # at most 128
        + colour
        + b"".join(np.packbits(found.hash).tobytes() for found in hashes)
    )


def near_pairs(fingerprints: Sequence[bytes]) -> list[tuple[int, int]]:
    """Positions (i, j), i < j, ascending, of every two pictures that are near-duplicates.

    Flat and striped pictures are left out, because too little of them is seen. It takes a tenth of a second for 10,000
    different pictures, and 0.6 seconds for 30,000.
    """
    table = np.frombuffer(b"".join(fingerprints), np.uint8).reshape(-1, FINGERPRINT_BYTES)
    textured = np.flatnonzero(table[:, 0] >= _FLAT)
    if not len(textured):
        return []
    rows = table[textured]
    one, other = near_hashes(rows[:, slice(*_HASHES[0])], PHASH_BITS)
    alike = _alike(rows[one], rows[other])
    found = np.stack([textured[one[alike]], textured[other[alike]]], 1)
    return sorted((int(first), int(second)) for first, second in found)


def near_ones(fingerprints: Sequence[bytes], others: Sequence[bytes]) -> dict[int, int]:
    """Positions in `fingerprints` of the pictures that are near-duplicates of one of `others`, with the position of the
    first such picture there. Flat and striped pictures are left out."""
    near: dict[int, int] = {}
    for one, other in near_pairs([*fingerprints, *others]):
        if one < len(fingerprints) <= other:
            near.setdefault(one, other - len(fingerprints))
    return near


def near_hashes(hashes: NDArray[np.uint8], bits: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows (i, j), i < j, of every two hashes that differ in few bits; exact.

    Two hashes that differ in fewer than twice as many bits as they have words of 16 bits differ in at most one bit of
    some word. So only pairs that share a word but for one bit are compared: of unlike pictures about 1 pair in 250.

    Args:
        hashes: Shape (n, bytes), an even number of bytes.
        bits: Most bits that may differ, below 2 * (bytes / 2).

    Returns:
        The rows i and j of each pair, in no order.

    Source: Norouzi, Punjani & Fleet (2012), multi-index hashing.
    """
    words = np.ascontiguousarray(hashes).view(np.uint16)
    assert bits < 2 * words.shape[1]
    pairs = [np.zeros((0, 2), np.int64)]
    for place in range(words.shape[1]):
        for found in _sharing(words[:, place]):
            differing = np.bitwise_count(words[found[:, 0]] ^ words[found[:, 1]])
            # A pair that shares several words is found at the first of them.
            near = (differing.sum(1, dtype=np.int16) <= bits) & (differing[:, :place] > 1).all(1)
            pairs.append(found[near])
    every = np.concatenate(pairs)
    return every[:, 0], every[:, 1]


def _sharing(words: NDArray[np.uint16]) -> Iterator[NDArray[np.int64]]:
    """Pairs of rows (m, 2), i < j, whose words differ in at most one bit, in blocks."""
    order = np.argsort(words, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(words, minlength=1 << 16))])
    for flip in (0, *(1 << np.arange(16))):
        wanted = words.astype(np.int64) ^ flip
        starts, counts = bounds[wanted], bounds[wanted + 1] - bounds[wanted]
        for rows in _blocks(counts):
            ends = np.cumsum(counts[rows])
            before = np.repeat(ends - counts[rows] - starts[rows], counts[rows])
            one, other = np.repeat(rows, counts[rows]), order[np.arange(ends[-1]) - before]
            ahead = one < other
            yield np.stack([one[ahead], other[ahead]], 1)


def _blocks(counts: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Rows in blocks that have about _AT_ONCE candidates, so that memory stays small."""
    rows = np.flatnonzero(counts)
    block = np.cumsum(counts[rows]) // _AT_ONCE
    for part in np.split(rows, np.flatnonzero(np.diff(block)) + 1):
        if len(part):
            yield part


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether m pairs of fingerprints, (m, FINGERPRINT_BYTES) each, belong to near-duplicates: shape (m,)."""
    colour = np.abs(one[:, 1:4].astype(np.int16) - other[:, 1:4]).max(1)
    phash, rows, columns = (
        np.bitwise_count(one[:, start:stop] ^ other[:, start:stop]).sum(1, dtype=np.int16) for start, stop in _HASHES
    )
    found: NDArray[np.bool_] = (
        (colour <= COLOUR) & (phash <= PHASH_BITS) & (rows <= GRADIENT_BITS) & (columns <= GRADIENT_BITS)
    )
    return found


def connected(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The groups that `pairs` connect, directly or through others, ascending."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not pairs:
        return []
    members, ends = np.unique(np.asarray(pairs), return_inverse=True)
    one, other = ends.reshape(len(pairs), 2).T
    links = coo_array((np.ones(len(pairs)), (one, other)), shape=(len(members), len(members)))
    count, numbers = connected_components(links, directed=False)
    groups: list[list[int]] = [[] for _ in range(count)]
    for member, number in zip(members.tolist(), numbers, strict=True):
        groups[number].append(member)
    return sorted(groups)
