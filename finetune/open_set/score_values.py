"""Scores and answers as checked arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from finetune.errors import InputError

Values = NDArray[Any] | Tensor
Floats = NDArray[np.float64]


def finite_scores(values: Values, name: str) -> Floats:
    """`values`, (n,) with n >= 1, as float64. InputError, naming `name`, for other shapes and numbers."""
    array = _array(values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "fiu":
        raise InputError(f"{name} must be numbers of shape (n,), not {array.dtype} of shape {array.shape}")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise InputError(f"{name}: {bad} of {len(array)} numbers are not finite")
    return array.astype(np.float64)


def booleans(values: Values, name: str) -> NDArray[np.bool_]:
    """`values`, (n,) bool. InputError, naming `name`, for other shapes and types."""
    array = _array(values)
    if array.ndim != 1 or array.dtype != np.bool_:
        raise InputError(f"{name} must be bool of shape (n,), not {array.dtype} of shape {array.shape}")
    return array


def _array(values: Values) -> NDArray[Any]:
    """A contiguous copy: torch takes no read-only arrays or negative strides."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()  # numpy has no bfloat16
    return np.array(values, order="C")
