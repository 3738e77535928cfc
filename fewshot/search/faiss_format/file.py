"""The FAISS files that an index writes, checked from their bytes before FAISS opens them.

FAISS trusts its files: it takes memory for any number that they state, follows any link, and maps any file that its
on-disk lists name. Only the layouts of the four structures are accepted here, to the last byte:

exact   IxFI: header, vectors
ivf     IwFl: header, numbers of lists and of probes, centres (IxFI), direct map (row -> list and place), lists (ilar)
hnsw    IHNf: header, graph, vectors (IxFI)
pq      IxRF: header; inverted lists (IwPf): header, numbers of lists and of probes, centres (IxFI), no direct map, how
        codes are packed, centroids, lists of rows and of codes in blocks (ilbl); vectors (IxFI); candidates that are
        ranked again for each neighbour

A header is width, number of rows, two unused numbers, whether it is trained, and the metric.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fewshot.search.faiss_format.graph import graph_layout
from fewshot.search.faiss_format.lists import lists_layout
from fewshot.search.faiss_format.quantised import quantised_layout
from fewshot.search.faiss_format.reading import Bytes, Layout, WrongError, check_lengths, header, vectors_of
from finetune.errors import InputError


def check_file(path: Path, *, values: bool) -> Layout:
    """Check that FAISS can read a file safely and that it holds what an index writes.

    Args:
        path: The FAISS file.
        values: Also check that every vector is finite and of length 1, which reads all of them. All else is checked in
            any case: types, metric, sizes, rows of lists, links of graphs.

    Raises:
        InputError: If the file cannot be read, or holds anything else.
    """
    try:
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return _check(Bytes(data), values)
    except WrongError as error:
        raise InputError(f"{path} does not hold the vectors of an index ({error}); it may be damaged") from error


def _check(data: Bytes, values: bool) -> Layout:
    code = data.code()
    if code == "IxFI":
        layout = _flat(data, values)
    elif code == "IwFl":
        layout = lists_layout(data, values)
    elif code == "IHNf":
        layout = graph_layout(data, values)
    elif code == "IxRF":
        layout = quantised_layout(data, values)
    else:
        raise WrongError(f"its type {code!r} is not one that is written here")
    data.end()
    return layout


def _flat(data: Bytes, values: bool) -> Layout:
    width, rows = header(data)
    vectors = vectors_of(data, width, rows)
    if values:
        check_lengths(vectors)
    return Layout("exact", width, rows)
