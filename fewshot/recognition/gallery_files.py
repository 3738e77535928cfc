"""The file of a saved gallery: vectors and what they are, in one safetensors file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewshot.recognition.gallery import Gallery
from finetune.errors import InputError
from finetune.files import read_tensors_and_metadata, write_tensors

FORMAT = 2
READABLE = (1, 2)  # formats; format 1 has no trials and always a rate
GALLERY_FILE = "gallery.safetensors"


@dataclass(frozen=True, eq=False)
class StoredGallery:
    """A gallery as its file holds it.

    Attributes:
        about: Format, embedder (fingerprint, origin), false_accept_rate, counts and labels of the trials.
        tensors: Vectors of the examples, the background and the trials.
    """

    about: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def false_accept_rate(self) -> Any:
        return self.about["false_accept_rate"]

    def fill(self, gallery: Gallery) -> None:
        """Fill an empty gallery. Raises KeyError, TypeError, ValueError, AttributeError or InputError if damaged."""
        gallery.fill(self.about["counts"], self.tensors["examples"].numpy())
        gallery.add_background(self.tensors["background"].numpy())
        if self.about["format"] > 1:
            pairs = zip(self.about["trials"], self.tensors["trials"].numpy(), strict=True)
            for label, group in groupby(pairs, key=itemgetter(0)):
                gallery.add_trials(label, [vector for _, vector in group])


def write_gallery(folder: Path, gallery: Gallery, *, fingerprint: str, origin: dict[str, Any] | None) -> None:
    """Save a gallery with the fingerprint and the origin of its embedder; the file is replaced as a whole."""
    check_folder(folder)
    labels, trials = gallery.trials
    about = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "origin": origin,
        "false_accept_rate": gallery.false_accept_rate,
        "counts": gallery.counts,
        "trials": labels,
    }
    vectors = {"examples": gallery.examples, "background": gallery.background, "trials": trials}
    write_tensors(
        folder / GALLERY_FILE,
        {name: torch.from_numpy(values) for name, values in vectors.items()},
        {"gallery": json.dumps(about, allow_nan=False)},
    )


def read_gallery(folder: Path) -> StoredGallery:
    """Read a saved gallery. InputError if there is none, or it is damaged."""
    path = folder / GALLERY_FILE
    if not path.is_file():
        raise InputError(f"{folder} holds no gallery: it has no {GALLERY_FILE}; fewshot enrol makes one")
    tensors, metadata = read_tensors_and_metadata(path)
    try:
        about = json.loads(metadata["gallery"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is not a gallery; it may be damaged") from error
    if not isinstance(about, dict) or about.get("format") not in READABLE:
        raise InputError(f"{path} has another format; this version reads {READABLE[0]} to {READABLE[-1]}")
    return StoredGallery(about, tensors)


def check_folder(folder: Path) -> None:
    """InputError if `folder` is a file."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the gallery")
