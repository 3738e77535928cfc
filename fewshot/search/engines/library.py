"""FAISS: its import, its device, and what every engine takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.errors import InputError
from finetune.extras import check_extra
from finetune.terminal import reason_of

Structure = Literal["exact", "ivf", "hnsw", "pq"]
RECALL_AT = 10  # neighbours

# Largest difference between equal similarities. Each engine sums a product of unit vectors in its own order, with an
# error of about 6e-8 times the square root of the width in float32: 1e-6 at 256.
ROUNDING = 2e-6

Vectors = NDArray[np.float32]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # similarities and rows, both (m, k), the most similar first


def import_faiss() -> Any:
    """Import FAISS on first use, since it takes a second. Any: its type hints are incomplete.

    InputError where it is missing, or lacks a library that it loads, as in half an installation.
    """
    check_extra("search", "an index")
    try:
        import faiss
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"FAISS cannot be loaded ({reason_of(error)}): pip install --force-reinstall 'fewtune[search]'"
        ) from error

    return faiss


def on_gpu(device: str) -> bool:
    """Whether exact search runs on a GPU, for the device "auto", "cpu" or "cuda". InputError if "cuda" is missing."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be one of auto, cpu, cuda, not {device!r}")
    if device == "cpu":
        return False
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise InputError("device cuda: torch sees no CUDA device; use cpu or auto")
    return found


def search_flat(flat: Any, queries: Vectors, k: int, selector: Any = None) -> Found:
    """Compare every vector of an IndexFlat."""
    parameters = None if selector is None else import_faiss().SearchParameters(sel=selector)
    similarity, rows = flat.search(queries, k, params=parameters)
    return similarity, rows


def flat_vectors(flat: Any) -> Vectors:
    """The vectors (n, d) of an IndexFlat in FAISS's own memory; valid until their number changes."""
    n, width = flat.ntotal, flat.d
    if not n:
        return np.empty((0, width), np.float32)
    memory: Vectors = import_faiss().rev_swig_ptr(flat.get_xb(), n * width).reshape(n, width)
    return memory


def reconstructed(index: Any, rows: Sequence[int]) -> Vectors:
    """Vectors (len(rows), d) of a FAISS index, bit for bit as they were added."""
    if not len(rows):
        return np.empty((0, index.d), np.float32)
    vectors: Vectors = index.reconstruct_batch(np.asarray(rows, np.int64))
    return vectors
