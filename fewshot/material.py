"""What a Siamese network learns from: pictures in memory with their classes, and what judges it on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewshot.embedded import ALL_TURNS, Embed, embed_once
from fewshot.episodes import arrange, sample, score_episodes
from fewshot.framing import Framed, frame_drawings, frame_whole
from fewshot.omniglot import Character, Omniglot
from fewshot.splits import SPLITS, Split, select
from fewshot.verification import best_threshold, draw_pairs, similarity
from finetune.errors import InputError
from finetune.folder import list_folder, list_unlabelled
from finetune.images import read_image

# What is measured on the way: accuracy from an embedding of drawings, on validation pictures alone.
Judge = Callable[[Embed], float]

# A folder's pictures are kept with twice the side that the network sees, so that a part of one can be shown enlarged.
KEPT = 2
_JUDGED_EPISODES = 4000


@dataclass(frozen=True, eq=False)
class Material:
    """Pictures, the class of each (n,), numbered from 0, and the group of each class (classes,).

    A batch takes its classes group by group: those of one are the harder to tell apart. trained_on: Omniglot's
    characters that are learned from or judged by. judge: None where nothing is held out: the last weights are kept.
    """

    pictures: Framed
    classes: Tensor
    groups: Tensor
    framing: str
    symmetries: int
    distortion: str
    trained_on: frozenset[Character] = frozenset()
    judge: Judge | None = None
    judged_by: str = ""

    @property
    def fingerprint(self) -> str:
        """What is learned from, in one short text."""
        found = hashlib.sha256(self.classes.numpy().tobytes())
        found.update(self.pictures.pictures.numpy().tobytes())
        return found.hexdigest()[:12]


# Split -> the splits of fewshot.splits that are learned from, and that weights are chosen by. Lake's minimal sets leave
# nothing to choose by: five alphabets are all that may be seen.
TRAINED: dict[str, tuple[str, str | None]] = {
    "lake": ("background-train", "background-val"),
    "lake-minimal": ("minimal-1", None),
    "vinyals": ("vinyals-train", "vinyals-val"),
    "koch": ("koch-like-train", "koch-like-val"),
}


def omniglot_material(
    omniglot: Omniglot,
    split: str,
    side: int,
    *,
    everything: bool = False,
    examples: int | None = None,
    labels: bool = True,
) -> Material:
    """What `split`, a name in TRAINED, gives to learn from.

    everything: also learn from what weights would be chosen by, where the split may: then they are not chosen.
    examples: pictures of each character, by its first drawers; all where None. labels: False makes every picture a
    class of its own.
    """
    train, val = TRAINED[split]
    wanted = SPLITS[train]
    known = wanted.characters | (SPLITS[val].characters if val is not None else frozenset())
    if everything and val is not None:
        if split == "koch":
            raise InputError("--all: the validation alphabets of --split koch choose its threshold; leave them out")
        wanted, val = Split(wanted.characters | SPLITS[val].characters), None
    if examples is not None:
        wanted = Split(wanted.characters, wanted.drawers[:examples])
    drawn = select(omniglot, wanted)
    classes = drawn.character if labels else torch.arange(len(drawn))
    alphabet_of = torch.zeros(int(classes.max()) + 1, dtype=torch.int64).index_put_((classes,), drawn.alphabet)
    return Material(
        pictures=frame_drawings(drawn.pictures, side),
        classes=classes,
        # Without labels alphabets are not known either.
        groups=alphabet_of if labels else torch.zeros_like(alphabet_of),
        framing="drawing",
        symmetries=8,
        distortion="drawing" if labels and examples != 1 else "drawing-strong",
        trained_on=known,
        judge=None if val is None or not labels else _judge(select(omniglot, SPLITS[val]), split),
        judged_by="same or different" if split == "koch" else "20-way 1-shot",
    )


def folder_material(folder: Path, side: int, *, labels: bool) -> tuple[Material, list[str]]:
    """Pictures of a folder, one sub-folder a class, or with `labels` False every picture a class; and the unreadable.

    InputError where there are fewer than two classes, or no picture that can be read.
    """
    paths, names = _listed(folder, labels)
    kept, of, unreadable = [], [], []
    for path, name in zip(paths, names, strict=True):
        try:
            image = read_image(path, at_least=KEPT * side).resize((KEPT * side,) * 2, Image.Resampling.BILINEAR)
        except InputError as error:
            unreadable.append(str(error))
            continue
        kept.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        of.append(name)
    if len(set(of)) < 2:
        what = "classes with pictures" if labels else "pictures"
        raise InputError(f"{folder} holds {len(set(of))} {what} that can be read; at least 2 are wanted")
    numbers = {name: number for number, name in enumerate(sorted(set(of)))}
    return (
        Material(
            pictures=frame_whole(torch.stack(kept)),
            classes=torch.tensor([numbers[name] for name in of]),
            groups=torch.zeros(len(numbers), dtype=torch.int64),
            framing="whole",
            symmetries=1,
            distortion="photo",
        ),
        unreadable,
    )


def _listed(folder: Path, labels: bool) -> tuple[list[Path], list[str]]:
    if not labels:
        paths = list_unlabelled([folder])
        return paths, [str(path) for path in paths]
    listing = list_folder(folder)
    samples = [sample for sample in listing.samples if sample.split in (None, "train")]
    return [folder / sample.path for sample in samples], [sample.label for sample in samples]


def _judge(drawn: Omniglot, split: str) -> Judge:
    def accuracy(embed: Embed) -> float:
        embedded = embed_once(drawn, embed, turns=ALL_TURNS if split == "vinyals" else (0,))
        if split == "koch":
            pairs = draw_pairs(embedded, _JUDGED_EPISODES, torch.Generator().manual_seed(0))
            scores = similarity(embedded.vectors, pairs.rows)
            return float(((scores >= best_threshold(scores, pairs.same)) == pairs.same).float().mean())
        pool = arrange(embedded.label, embedded.alphabet if split == "lake" else None)
        episodes = sample(pool, _JUDGED_EPISODES, way=20, shot=1, generator=torch.Generator().manual_seed(0))
        return float(score_episodes(embedded.vectors, episodes).credit.mean())

    return accuracy
