"""What a report asks an encoder about: pictures that it has not learned from, each embedded once, with their names."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
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
from fewshot.training.training_data import held_out
from finetune.data.folder import list_folder
from finetune.data.images import read_image
from finetune.errors import InputError
from finetune.progress import Display
from finetune.report.page import thumbnail
from finetune.training.expected_time import in_words

# Splits that are tested on, the first that nothing was learned from being the one that a report asks about.
FAIR = ("evaluation", "vinyals-test", "koch-like-test")
# Pictures of a folder that are timed, to say how long all will take.
TIMED = 8
# How far the area under the ROC may be from what a run wrote down of the same pictures, which it saw in float32.
_SAME_AREA = 0.002


@dataclass(frozen=True, eq=False)
class Tested:
    """embedded: upright, the classes of an own folder standing as characters of one nameless alphabet.

    what: in words. names: of the classes, by `embedded.character`. groups: of the alphabets, by `embedded.alphabet`.
    picture: a row as a data URI, made once. described: a row in words.
    """

    embedded: EmbeddedDrawings
    what: str
    names: tuple[str, ...]
    groups: tuple[str, ...]
    picture: Callable[[int], str]
    described: Callable[[int], str]

    @property
    def grouped(self) -> bool:
        return len(self.groups) > 1


def remembering(embed: Embed) -> Embed:
    """`embed`, asked but once about each drawing: splits overlap, and Lake's runs show what the evaluation set has."""
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
    """The name of a split that shares no character with what was learned from; None where there is none."""
    return next((name for name in FAIR if not leaks(trained_on, SPLITS[name].characters)), None)


def tested_drawings(omniglot: Omniglot, split: str, embed: Embed) -> Tested:
    """All drawers' drawings of the characters of `split`."""
    drawn = select(omniglot, Split(SPLITS[split].characters))
    embedded = embed_once(drawn, embed)
    names = tuple(f"{readable(character.alphabet)} {character.number}" for character in drawn.characters)

    def described(row: int) -> str:
        return f"{names[int(drawn.character[row])]}, drawer {int(drawn.drawer[row]) + 1}"

    return Tested(
        embedded=embedded,
        what=f"{len(names)} characters by {len(embedded.drawer.unique())} drawers, the split {split}",
        names=names,
        groups=tuple(readable(name) for name in drawn.alphabets),
        picture=cache(lambda row: drawing_uri(drawn.pictures[row])),
        described=described,
    )


def readable(alphabet: str) -> str:
    """The name of an alphabet without the archive's underscores."""
    return alphabet.replace("_", " ")


def drawing_uri(drawing: Tensor) -> str:
    """(105, 105) uint8, ink 255 on 0, as a data URI of black on white in one bit a pixel."""
    file = io.BytesIO()
    Image.fromarray(drawing.numpy() < 128).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


# --- a folder ---------------------------------------------------------------------------------------------------------


def tested_folder(embedder: Embedder, folder: Path, display: Display) -> Tested:
    """The classes of `folder` that a run on it held out, as `fewshot.training.training_data.folder_material` does.

    InputError where no class was held out, and where the pictures are not those that the run chose its threshold by:
    then some of them may have been learned from.
    """
    if embedder.verification is None:
        raise InputError("this run held no classes out, so that there is nothing of its own to measure it on")
    if not folder.is_dir():
        raise InputError(f"{folder}, which this run learned from, is not there any more")
    samples = [sample for sample in list_folder(folder).samples if sample.split in (None, "train")]
    known = sorted({sample.label for sample in samples})
    apart = held_out(known)
    samples = [sample for sample in samples if sample.label in apart]
    if display.console is not None and samples:
        started = time.monotonic()
        some = [folder / sample.path for sample in samples[:TIMED]]
        embedder.embed_all(some, display=Display())
        seconds = (time.monotonic() - started) / len(some) * len(samples)
        display.say(
            f"{len(samples):,} pictures of {len(apart)} classes that were held out: at most {in_words(seconds)}"
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
    if len(names) < 2 or not _as_it_was(embedder, vectors, label):
        raise InputError(
            f"{folder} does not hold the pictures any more that this run held out; nothing is measured on others, "
            "which it may have learned from"
        )
    embedded = EmbeddedDrawings(
        vectors=vectors,
        character=label,
        drawer=(torch.arange(len(label)) - torch.searchsorted(label, label)),  # samples come class by class
        turn=torch.zeros_like(label),
        characters=tuple(Character("", position) for position in range(len(names))),
    )
    return Tested(
        embedded=embedded,
        what=f"{len(names)} classes of {folder.name} that were held out, {len(samples):,} pictures",
        names=names,
        groups=("",),
        picture=cache(lambda row: thumbnail(read_image(folder / samples[row].path))),
        described=lambda row: f"{samples[row].label}, {Path(samples[row].path).name}",
    )


def _as_it_was(embedder: Embedder, vectors: Tensor, label: Tensor) -> bool:
    """Whether pairs of these give what the run wrote down of its own."""
    before = embedder.verification or {}
    rows, same = labelled_pairs(label)
    now = calibrate(similarity(vectors, rows), same).to_dict()
    counted = all(now[name] == before.get(name) for name in ("same_pairs", "different_pairs"))
    return counted and abs(now["auc"] - before["auc"]) < _SAME_AREA
