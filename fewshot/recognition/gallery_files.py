"""The file of a saved gallery: vectors and what they are, in one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fewshot.recognition.gallery import Gallery, Vectors
from finetune.errors import InputError
from finetune.files.reading import as_type, parse_json, read_tensors_and_metadata
from finetune.files.writing import write_tensors

FORMAT = 2
READABLE = (1, 2)  # formats; format 1 has no trials and always a rate
GALLERY_FILE = "gallery.safetensors"


@dataclass(frozen=True, kw_only=True)
class GalleryHeader:
    """What the file says about its vectors.

    Attributes:
        format: Of the file.
        fingerprint, origin: Of the embedder; see `Embedder`.
        false_accept_rate: Of the gallery.
        counts: Number of examples of each label.
        trials: Label of each trial.
    """

    format: int = FORMAT
    fingerprint: str | None
    origin: dict[str, Any] | None
    false_accept_rate: float | None
    counts: dict[str, int]
    trials: tuple[str, ...] = ()


def write_gallery(folder: Path, gallery: Gallery, *, fingerprint: str, origin: dict[str, Any] | None) -> None:
    """Save a gallery with the fingerprint and the origin of its embedder; the file is replaced as a whole."""
    check_folder(folder)
    labels, trials = gallery.trials
    header = GalleryHeader(
        fingerprint=fingerprint,
        origin=origin,
        false_accept_rate=gallery.false_accept_rate,
        counts=gallery.counts,
        trials=labels,
    )
    vectors = {"examples": gallery.examples, "background": gallery.background, "trials": trials}
    write_tensors(
        folder / GALLERY_FILE,
        {name: torch.from_numpy(values) for name, values in vectors.items()},
        {"gallery": json.dumps(vars(header), allow_nan=False)},
    )


def read_gallery(folder: Path) -> tuple[GalleryHeader, dict[str, Vectors]]:
    """The header and the vectors of a saved gallery. InputError if there is none, or it is damaged."""
    path = folder / GALLERY_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no gallery: it has no {GALLERY_FILE}; fewshot enrol makes one")
    tensors, metadata = read_tensors_and_metadata(path)
    try:
        header = parse_json(metadata["gallery"], str(path))
    except (KeyError, InputError) as error:
        raise InputError(f"{path} is not a gallery; it may be damaged") from error
    if not isinstance(header, dict) or header.get("format") not in READABLE:
        raise InputError(f"{path} has another format; this version reads {READABLE[0]} to {READABLE[-1]}")
    vectors = {name: tensor for name, tensor in tensors.items() if name in ("examples", "background", "trials")}
    for name, tensor in vectors.items():
        if tensor.dtype != torch.float32:
            raise InputError(f"{path} is damaged: {name} must be float32, not {tensor.dtype}")
    return as_type(header, GalleryHeader, str(path)), {name: tensor.numpy() for name, tensor in vectors.items()}


def fill_gallery(gallery: Gallery, header: GalleryHeader, vectors: Mapping[str, Vectors], source: str) -> None:
    """Fill an empty gallery with saved vectors. InputError, naming their `source`, if they are damaged."""
    try:
        gallery.fill(header.counts, vectors["examples"])
        gallery.add_background(vectors["background"])
        if header.format > 1:
            gallery.fill_trials(header.trials, vectors["trials"])
    except (KeyError, ValueError, InputError) as error:
        raise InputError(f"{source} is damaged: {error}") from error


def check_folder(folder: Path) -> None:
    """InputError if `folder` is a file."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the gallery")
