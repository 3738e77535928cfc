"""The pictures of a report: held out from training, embedded once, with names and thumbnails."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.embedded import Embed, EmbeddedDrawings, embed_once
from fewshot.evaluation.threshold import calibrate
from fewshot.evaluation.verification import labelled_pairs, similarity
from fewshot.omniglot.dataset import Character, Omniglot
from fewshot.omniglot.splits import SPLITS, Split, leaks, select
from fewshot.training.training_data import held_out_classes
from finetune.data.folder import list_folder
from finetune.data.images import read_image
from finetune.errors import InputError
from finetune.progress import Display, in_words
from finetune.report.page import thumbnail

# Splits for testing; a report uses the first one without training characters.
FAIR = ("evaluation", "vinyals-test", "koch-like-test")
# Pictures of a folder that are embedded to estimate the time for all.
TIMED = 8
# Largest difference of the area under the ROC curve to that recorded by the run, which computed in float32.
_SAME_AREA = 0.002


@dataclass(frozen=True, eq=False)
class HeldOutPictures:
    """Embedded pictures that the encoder was not trained on.

    Attributes:
        embedded: Upright drawings; the classes of a folder stand as characters of one nameless alphabet.
        what: The pictures in words.
        names: Of the classes, by `embedded.character`.
        groups: Of the alphabets, by `embedded.alphabet`.
        captions: One for each row.
        sources: Drawings (n, 105, 105), or a path for each row.
    """

    embedded: EmbeddedDrawings
    what: str
    names: tuple[str, ...]
    groups: tuple[str, ...]
    captions: tuple[str, ...]
    sources: Tensor | Sequence[Path]
    _uris: dict[int, str] = field(default_factory=dict)

    def picture(self, row: int) -> str:
        """The picture of a row as a data URI."""
        if row not in self._uris:
            source = self.sources[row]
            self._uris[row] = drawing_uri(source) if isinstance(source, Tensor) else thumbnail(read_image(source))
        return self._uris[row]

    @property
    def grouped(self) -> bool:
        """Whether there are several alphabets."""
        return len(self.groups) > 1


def cached_embedding(embed: Embed) -> Embed:
    """`embed` with a cache, since splits overlap and Lake's runs show drawings of the evaluation set."""
    known: dict[bytes, Tensor] = {}

    def vectors(drawings: Tensor) -> Tensor:
        keys = [hashlib.blake2b(drawing.tobytes(), digest_size=16).digest() for drawing in drawings.numpy()]
        new = {key: row for row, key in enumerate(keys) if key not in known}
        if new:
            known.update(zip(new, embed(drawings[list(new.values())]), strict=True))
        return torch.stack([known[key] for key in keys])

    return vectors


# --- Omniglot ---------------------------------------------------------------------------------------------------------


def fair_split(trained_on: Collection[Character]) -> str | None:
    """The name of a split that shares no character with `trained_on`; None if there is none."""
    return next((name for name in FAIR if not leaks(trained_on, SPLITS[name].characters)), None)


def held_out_drawings(omniglot: Omniglot, split: str, embed: Embed) -> HeldOutPictures:
    """The drawings of all drawers for the characters of `split`."""
    drawn = select(omniglot, Split(SPLITS[split].characters))
    embedded = embed_once(drawn, embed)
    names = tuple(f"{readable(character.alphabet)} {character.number}" for character in drawn.characters)
    shown = zip(drawn.character.tolist(), drawn.drawer.tolist(), strict=True)
    return HeldOutPictures(
        embedded=embedded,
        what=f"{len(names)} characters by {len(embedded.drawer.unique())} drawers, the split {split}",
        names=names,
        groups=tuple(readable(name) for name in drawn.alphabets),
        captions=tuple(f"{names[character]}, drawer {drawer + 1}" for character, drawer in shown),
        sources=drawn.pictures,
    )


def readable(alphabet: str) -> str:
    """The name of an alphabet without underscores."""
    return alphabet.replace("_", " ")


def drawing_uri(drawing: Tensor) -> str:
    """A drawing (105, 105) uint8, ink 255 on 0, as a data URI: black on white, one bit a pixel."""
    file = io.BytesIO()
    Image.fromarray(drawing.numpy() < 128).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


# --- a folder ---------------------------------------------------------------------------------------------------------


def held_out_folder(embedder: Embedder, folder: Path, display: Display) -> HeldOutPictures:
    """The classes of `folder` that the run held out, as `fewshot.training.training_data.FolderSource` chooses them.

    InputError if no class was held out, and if the pictures are not those of the run's calibration: then some of them
    may have been trained on.
    """
    if embedder.verification is None:
        raise InputError("this run held out no classes, so its folder has no pictures to measure it on")
    if not folder.is_dir():
        raise InputError(f"{folder}, the folder that this run was trained on, does not exist any more")
    samples = [sample for sample in list_folder(folder).samples if sample.split in (None, "train")]
    known = sorted({sample.label for sample in samples})
    apart = held_out_classes(known)
    samples = [sample for sample in samples if sample.label in apart]
    if display.console is not None and samples:
        started = time.monotonic()
        some = [folder / sample.path for sample in samples[:TIMED]]
        embedder.embed_all(some, display=Display())
        seconds = (time.monotonic() - started) / len(some) * len(samples)
        display.say(
            f"{len(samples):,} pictures of {len(apart)} held-out classes; expected time: at most {in_words(seconds)}"
        )
    found = embedder.embed_all([folder / sample.path for sample in samples], display=display)
    samples = [sample for row, sample in enumerate(samples) if row not in found.unreadable]
    sizes = Counter(sample.label for sample in samples)
    kept = [row for row, sample in enumerate(samples) if sizes[sample.label] > 1]
    samples = [samples[row] for row in kept]
    vectors = torch.from_numpy(found.vectors[~np.isnan(found.vectors).any(1)][kept])
    names = tuple(sorted({sample.label for sample in samples}))
    number = {name: position for position, name in enumerate(names)}
    label = torch.tensor([number[sample.label] for sample in samples], dtype=torch.int64)
    if len(names) < 2 or not _matches_calibration(embedder, vectors, label):
        raise InputError(
            f"the pictures of {folder} have changed since this run; they are not used, since it may have been trained "
            "on them"
        )
    embedded = EmbeddedDrawings(
        vectors=vectors,
        character=label,
        drawer=(torch.arange(len(label)) - torch.searchsorted(label, label)),  # samples are sorted by class
        turn=torch.zeros_like(label),
        characters=tuple(Character("", position) for position in range(len(names))),
    )
    return HeldOutPictures(
        embedded=embedded,
        what=f"{len(names)} held-out classes of {folder.name}, {len(samples):,} pictures",
        names=names,
        groups=("",),
        captions=tuple(f"{sample.label}, {Path(sample.path).name}" for sample in samples),
        sources=[folder / sample.path for sample in samples],
    )


def _matches_calibration(embedder: Embedder, vectors: Tensor, label: Tensor) -> bool:
    """Whether the pairs of these pictures give the calibration that the run recorded."""
    before = embedder.verification or {}
    rows, same = labelled_pairs(label)
    now = calibrate(similarity(vectors, rows), same).to_dict()
    counted = all(now[name] == before.get(name) for name in ("same_pairs", "different_pairs"))
    return counted and abs(now["auc"] - before["auc"]) < _SAME_AREA
