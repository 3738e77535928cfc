"""Near-duplicates: what a picture looks like in 100 bytes, and which pictures look alike by these.

Two perceptual hashes of imagehash and the mean colour have to agree. pHash (Zauner 2010) with 256 bits tells
photographs and steel surfaces apart by a wide margin, but where most frequencies lie on one axis it sees next to
nothing; the gradient hash (Krawetz 2013), along rows and along columns, tells some of those apart, and pictures that
are nothing but stripes are left out. Both are blind to colour, which is all that some classes differ by. A picture
saved again, at another quality or size, a little brighter, or with a rim of 1 % cut away is found nearly always; with
2 % cut away about one in four, with more hardly ever. Mirrored and turned ones are not.
"""

from __future__ import annotations

from collections.abc import Sequence

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
# Relief below which the hashes are of noise: the standard deviation of the grey values once the means of rows and of
# columns are taken out, of which flat pictures, ramps and stripes have nothing.
_FLAT = 2

_SIDE = 32
_BLOCK = 1024


def fingerprint(picture: Image.Image) -> bytes:
    """FINGERPRINT_BYTES that say what `picture`, upright and RGB, looks like. It takes about a third of a millisecond.

    It is of the pixels as they were decoded: another version of a decoder, or a JPEG decoded at another scale, may
    change a bit or two.
    """
    import imagehash  # a tenth of a second, that not every command has to wait for

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
        bytes([min(255, round(float(relief.std())))])
        + colour
        + b"".join(np.packbits(found.hash).tobytes() for found in hashes)
    )


def near_pairs(fingerprints: Sequence[bytes]) -> list[tuple[int, int]]:
    """Positions (i, j), i < j, ascending, of every two of n pictures that are near-duplicates.

    Flat and striped ones never are: too little of them is seen. Every pair is compared: a fraction of a
    second for 10,000 pictures, and 100 times that for 100,000.
    """
    table = np.frombuffer(b"".join(fingerprints), np.uint8).reshape(-1, FINGERPRINT_BYTES)
    lively = np.flatnonzero(table[:, 0] >= _FLAT)
    order = lively[np.argsort(table[lively, 2], kind="stable")]  # by green: only a window around it can be as alike
    rows = table[order]
    green = rows[:, 2].astype(np.int16)
    half = np.ascontiguousarray(rows[:, 4:20]).view(np.uint64)
    pairs = []
    for start in range(0, len(rows), _BLOCK):
        end = min(start + _BLOCK, len(rows))
        stop = int(np.searchsorted(green, green[end - 1] + COLOUR, side="right"))
        # Half of pHash leaves next to nothing to be looked at whole.
        differ = np.bitwise_count(half[start:end, None, 0] ^ half[None, start:stop, 0])
        differ += np.bitwise_count(half[start:end, None, 1] ^ half[None, start:stop, 1])
        one, other = np.nonzero(differ <= PHASH_BITS)
        one, other = one[one < other] + start, other[one < other] + start
        alike = _alike(rows[one], rows[other])
        pairs.append(np.stack([order[one[alike]], order[other[alike]]], 1))
    if not pairs:
        return []
    found = np.sort(np.concatenate(pairs), axis=1)
    return sorted((int(first), int(second)) for first, second in found)


def _alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(m,): whether these fingerprints, (m, FINGERPRINT_BYTES) each, are of near-duplicates."""
    colour = np.abs(one[:, 1:4].astype(np.int16) - other[:, 1:4]).max(1, initial=0)
    phash, rows, columns = (
        np.bitwise_count(one[:, start:stop] ^ other[:, start:stop]).sum(1, dtype=np.int16) for start, stop in _HASHES
    )
    found: NDArray[np.bool_] = (
        (colour <= COLOUR) & (phash <= PHASH_BITS) & (rows <= GRADIENT_BITS) & (columns <= GRADIENT_BITS)
    )
    return found


def connected(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The groups, ascending, of what `pairs` connect, directly or through others."""
    group: dict[int, list[int]] = {}
    for one, other in pairs:
        first, second = group.setdefault(one, [one]), group.setdefault(other, [other])
        if first is not second:
            large, small = (first, second) if len(first) >= len(second) else (second, first)
            large.extend(small)
            group.update(dict.fromkeys(small, large))
    return sorted(sorted(members) for members in {id(members): members for members in group.values()}.values())
