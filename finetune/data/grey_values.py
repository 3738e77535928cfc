"""Values of more than 8 bits, and floats, scaled to 8 bits part by part: a large picture takes little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune.errors import UnreadablePicture


def eight_bits(parts: Sequence[Callable[[], NDArray[Any]]], name: str) -> Iterator[NDArray[np.uint8]]:
    """The parts of a picture scaled to 0..255 as `read_image` describes.

    Each is made twice: for the range of all, and to be scaled. UnreadablePicture, which names the picture `name`, for
    values that are not finite.
    """
    lows, highs = [], []
    for make in parts:
        values = make()
        if not np.isfinite(values).all():
            raise UnreadablePicture(name, "holds values that are not finite")
        lows.append(float(values.min()))
        highs.append(float(values.max()))
    low, high = min(lows), max(highs)
    if values.dtype.kind in "bf":
        ceiling = 1.0 if low >= 0 and high <= 1 else None
    else:
        fitting = [2.0**bits - 1 for bits in (8, 10, 12, 14, 16) if high < 2**bits]
        ceiling = fitting[0] if fitting and low >= 0 else None
    for make in parts:
        values = make()
        if ceiling is None:
            scaled = (values.astype(np.float64) - low) * (255 / (high - low or 1.0))
        else:
            scaled = values * (255 / ceiling)
        yield np.rint(scaled).astype(np.uint8)
