"""Training data of a Siamese network, in memory, and the sources that it is read from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fewshot.embedding.encoder import read_square
from fewshot.embedding.framing import FramedPictures, frame_drawings, frame_whole
from fewshot.omniglot.dataset import DRAWERS, Character, Omniglot, read_omniglot
from fewshot.omniglot.splits import BACKGROUND, SPLITS, Split, select
from fewshot.training.validation import Validation, omniglot_validation, one_shot_validation
from finetune.data.folder import list_folder, list_unlabelled
from finetune.errors import InputError
from finetune.progress import Display

# Every fifth class of a folder is held out, where it has at least ten.
_HELD_OUT_EVERY, _CLASSES_TO_HOLD_OUT = 5, 10

# Split -> the parts of Omniglot for training and for choosing weights (`omniglot.splits`). Lake's minimal sets have
# five alphabets for training and none for choosing.
TRAINED: dict[str, tuple[str, str | None]] = {
    "lake": ("background-train", "background-val"),
    "lake-minimal": ("minimal-1", None),
    "vinyals": ("vinyals-train", "vinyals-val"),
    "koch": ("koch-like-train", "koch-like-val"),
}


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Pictures that thresholds are chosen on, never trained on. classes, groups: (n,) int64."""

    pictures: FramedPictures
    classes: Tensor
    groups: Tensor


@dataclass(frozen=True, eq=False)
class SiameseData:
    """Training pictures with their classes, and what is held out.

    Attributes:
        pictures: n pictures.
        classes: Shape (n,), int64, numbered from 0.
        groups: Shape (classes,): the group of each class. A batch takes the classes of one group together, because
            they are harder to tell apart.
        symmetries: Default number of turned or mirrored versions that count as classes.
        distortion: Default strength of the distortions, a name in DISTORTIONS.
        alphabets: Default number of groups drawn for a batch.
        ways: Default for the most classes drawn from each group.
        fewest_steps: A training of fewer steps draws fewer groups for a batch, unless the user says how many.
        trained_on: Characters of Omniglot that the weights depend on, by training or by validation.
        validation: Chooses the weights to keep. None where nothing is held out: the last weights are kept.
        held_out: None where nothing is held out.
    """

    pictures: FramedPictures
    classes: Tensor
    groups: Tensor
    symmetries: int
    distortion: str
    alphabets: int = 8
    ways: int = 16
    fewest_steps: int = 0
    trained_on: frozenset[Character] = frozenset()
    validation: Validation | None = None
    held_out: HeldOut | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of the pictures and their classes."""
        found = hashlib.sha256(self.classes.numpy().tobytes())
        found.update(self.pictures.pictures.numpy().tobytes())
        return found.hexdigest()[:12]


# --- Omniglot ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OmniglotSource:
    """The part of Omniglot to train on; options as in `train_omniglot`. folder: of the archives."""

    split: str
    everything: bool = False
    examples: int | None = None
    self_supervised: bool = False
    folder: Path | None = None
    framing: Literal["drawing"] = "drawing"

    def __post_init__(self) -> None:
        if self.split not in TRAINED:
            raise InputError(f"--split must be one of {', '.join(TRAINED)}, not {self.split!r}")
        if self.examples is not None and not 1 <= self.examples <= DRAWERS:
            raise InputError(f"--examples must be from 1 to {DRAWERS}, not {self.examples}")
        if self.everything and self.split == "koch":
            raise InputError("--all cannot be used with --split koch: its validation alphabets choose its threshold")

    def request(self) -> dict[str, Any]:
        """Record for config.json."""
        return {
            "source": "omniglot",
            "split": self.split,
            "everything": self.everything,
            "examples": self.examples,
            "self_supervised": self.self_supervised,
        }

    def read(self, side: int, display: Display) -> SiameseData:
        """Read the drawings for an input of `side` pixels."""
        needed = [SPLITS[name] for name in TRAINED[self.split] if name is not None]
        background = all(character.alphabet in BACKGROUND for part in needed for character in part.characters)
        omniglot = read_omniglot(self.folder, ("background",) if background else ("background", "evaluation"))
        return omniglot_data(omniglot, self, side)


def omniglot_data(omniglot: Omniglot, source: OmniglotSource, side: int) -> SiameseData:
    """Training data from drawings that are read already, for an input of `side` pixels."""
    train, val = TRAINED[source.split]
    labels, wanted = not source.self_supervised, SPLITS[train]
    trained_on = wanted.characters
    if val is not None and (labels or source.everything):
        trained_on |= SPLITS[val].characters
    if source.everything and val is not None:
        wanted, val = Split(wanted.characters | SPLITS[val].characters), None
    if source.examples is not None:
        wanted = Split(wanted.characters, wanted.drawers[: source.examples])
    drawn = select(omniglot, wanted)
    classes = drawn.character if labels else torch.arange(len(drawn))
    alphabets = torch.zeros(int(classes.max()) + 1, dtype=torch.int64).index_put_((classes,), drawn.alphabet)
    held_out = validation = None
    if val is not None and labels:
        apart = select(omniglot, SPLITS[val])
        held_out = HeldOut(frame_drawings(apart.pictures, side), apart.character, apart.alphabet)
        validation = omniglot_validation(apart, source.split, held_out.pictures, side)
    return SiameseData(
        pictures=frame_drawings(drawn.pictures, side),
        classes=classes,
        # Without labels, alphabets are unknown too.
        groups=alphabets if labels else torch.zeros_like(alphabets),
        symmetries=8,
        distortion="drawing" if labels and source.examples != 1 else "drawing-strong",
        trained_on=trained_on,
        validation=validation,
        held_out=held_out,
    )


# --- a folder ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FolderSource:
    """A folder of pictures to train on; options as in `train_folder`."""

    folder: Path
    everything: bool = False
    self_supervised: bool = False
    framing: Literal["whole"] = "whole"

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise InputError(f"{self.folder} is not a folder; give a folder of pictures, or omniglot")

    def request(self) -> dict[str, Any]:
        """Record for config.json."""
        return {
            "source": str(self.folder.resolve()),
            "everything": self.everything,
            "self_supervised": self.self_supervised,
        }

    def read(self, side: int, display: Display) -> SiameseData:
        """Read the pictures for an input of `side` pixels; unreadable ones are named and left out.

        Of ten classes or more, every fifth by name is held out, unless `everything` is trained on.

        Raises:
            InputError: If fewer than two classes, or without labels two pictures, can be read.
        """
        paths, names = self._listed()
        kept, labels = [], []
        for path, name in zip(paths, names, strict=True):
            try:
                kept.append(read_square(path, side))
            except InputError as error:
                display.say(f"left out: {error}")
                continue
            labels.append(name)
        known = sorted(set(labels))
        if len(known) < 2:
            what = "pictures" if self.self_supervised else "classes with pictures"
            raise InputError(f"{self.folder} holds {len(known)} {what} that can be read; at least 2 are needed")
        pictures = frame_whole(torch.stack(kept))
        apart = set() if self.self_supervised or self.everything else held_out_classes(known)
        sizes = Counter(labels)
        validated = {name for name in apart if sizes[name] > 1}
        held_out = validation = None
        trained = set(known)
        if len(validated) > 1:
            chosen, classes = _of_classes(pictures, labels, validated)
            held_out = HeldOut(chosen, classes, torch.zeros_like(classes))
            validation = one_shot_validation(chosen, classes, None)
            trained -= apart
        pictures, classes = _of_classes(pictures, labels, trained)
        return SiameseData(
            pictures=pictures,
            classes=classes,
            groups=torch.zeros(int(classes.max()) + 1, dtype=torch.int64),
            alphabets=4,
            ways=32,
            fewest_steps=200,
            symmetries=1,
            distortion="photo",
            validation=validation,
            held_out=held_out,
        )

    def _listed(self) -> tuple[list[Path], list[str]]:
        """Paths and class names of the pictures."""
        if self.self_supervised:
            paths = list_unlabelled([self.folder])
            return paths, [str(path) for path in paths]
        samples = [sample for sample in list_folder(self.folder).samples if sample.split in (None, "train")]
        return [self.folder / sample.path for sample in samples], [sample.label for sample in samples]


def held_out_classes(known: Sequence[str]) -> set[str]:
    """Every fifth of the sorted class names, where there are ten or more; otherwise none."""
    return set(known[::_HELD_OUT_EVERY]) if len(known) >= _CLASSES_TO_HOLD_OUT else set()


def _of_classes(pictures: FramedPictures, labels: Sequence[str], names: set[str]) -> tuple[FramedPictures, Tensor]:
    """Pictures of the classes `names`, and their classes, numbered from 0 by name."""
    numbers = {name: number for number, name in enumerate(sorted(names))}
    rows = torch.tensor([row for row, name in enumerate(labels) if name in names])
    return pictures[rows], torch.tensor([numbers[labels[row]] for row in rows.tolist()])
