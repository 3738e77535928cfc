"""What a Siamese network learns from: pictures in memory with their classes, and what judges it on the way."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewshot.embedding.distortions import SYMMETRIES
from fewshot.embedding.encoder import read_square
from fewshot.embedding.framing import FramedPictures, frame_drawings, frame_whole
from fewshot.evaluation.embedded import ALL_TURNS, UPRIGHT, embed_once
from fewshot.evaluation.episodes import Pool, arrange, sample, score_episodes
from fewshot.evaluation.verification import best_threshold, draw_pairs, similarity
from fewshot.omniglot.dataset import DRAWERS, Character, Omniglot
from fewshot.omniglot.splits import SPLITS, Split, select
from finetune.data.folder import list_folder, list_unlabelled
from finetune.errors import InputError

# What is measured on the way: accuracy of an encoder, framed pictures to vectors (n, d), on validation pictures alone.
Judge = Callable[[Callable[[FramedPictures], Tensor]], float]

_JUDGED_EPISODES, _MOST_WAYS = 4000, 20
# Of a folder's classes every fifth is held out to judge by, where there are so many at least.
_HELD_OUT, _CLASSES_TO_HOLD_OUT = 5, 10


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Pictures that nothing is learned from, their classes (n,), and the group of each (n,)."""

    pictures: FramedPictures
    classes: Tensor
    groups: Tensor


@dataclass(frozen=True, eq=False)
class SiameseData:
    """Pictures, the class of each (n,), numbered from 0, and the group of each class (classes,).

    A batch takes its classes group by group: those of one are the harder to tell apart. trained_on: Omniglot's
    characters that are learned from or judged by. judge: None where nothing is held out: the last weights are kept.
    held_out: what thresholds are chosen on, None where nothing is held out.
    """

    pictures: FramedPictures
    classes: Tensor
    groups: Tensor
    symmetries: int
    distortion: str
    trained_on: frozenset[Character] = frozenset()
    judge: Judge | None = None
    judged_by: str = ""
    held_out: HeldOut | None = None

    @property
    def fingerprint(self) -> str:
        """What is learned from, in one short text."""
        found = hashlib.sha256(self.classes.numpy().tobytes())
        found.update(self.pictures.pictures.numpy().tobytes())
        return found.hexdigest()[:12]


# Split -> the parts of Omniglot for training and for choosing weights (`omniglot.splits`). Lake's minimal sets have
# five alphabets for training and none for choosing.
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
) -> SiameseData:
    """What `split`, a name in TRAINED, gives to learn from.

    everything: also learn from what weights would be chosen by, where the split may: then they are not chosen.
    examples: pictures of each character, by its first drawers; all where None. labels: False makes every picture a
    class of its own.
    """
    if examples is not None and not 1 <= examples <= DRAWERS:
        raise InputError(f"--examples must be from 1 to {DRAWERS}, not {examples}")
    train, val = TRAINED[split]
    wanted = SPLITS[train]
    judged = SPLITS[val].characters if val is not None and (labels or everything) else frozenset[Character]()
    known = wanted.characters | judged
    if everything and val is not None:
        if split == "koch":
            raise InputError("--all: the validation alphabets of --split koch choose its threshold; leave them out")
        wanted, val = Split(wanted.characters | SPLITS[val].characters), None
    if examples is not None:
        wanted = Split(wanted.characters, wanted.drawers[:examples])
    drawn = select(omniglot, wanted)
    classes = drawn.character if labels else torch.arange(len(drawn))
    alphabet_of = torch.zeros(int(classes.max()) + 1, dtype=torch.int64).index_put_((classes,), drawn.alphabet)
    return SiameseData(
        pictures=frame_drawings(drawn.pictures, side),
        classes=classes,
        # Without labels alphabets are not known either.
        groups=alphabet_of if labels else torch.zeros_like(alphabet_of),
        symmetries=8,
        distortion="drawing" if labels and examples != 1 else "drawing-strong",
        trained_on=known,
        judge=None if val is None or not labels else _judge(select(omniglot, SPLITS[val]), split, side),
        held_out=None if val is None or not labels else _held_out_drawings(select(omniglot, SPLITS[val]), side),
        judged_by="same or different" if split == "koch" else "20-way 1-shot",
    )


def folder_material(
    folder: Path, side: int, *, labels: bool, everything: bool = False
) -> tuple[SiameseData, list[str]]:
    """Pictures of a folder, one sub-folder a class, or with `labels` False every picture a class; and the unreadable.

    Of ten classes or more every fifth, by name, is held out to choose weights by, unless `everything` is learned from.
    InputError where there are fewer than two classes, or no picture that can be read.
    """
    paths, names = _listed(folder, labels)
    kept, of, unreadable = [], [], []
    for path, name in zip(paths, names, strict=True):
        try:
            kept.append(read_square(path, side))
        except InputError as error:
            unreadable.append(str(error))
            continue
        of.append(name)
    known = sorted(set(of))
    if len(known) < 2:
        what = "classes with pictures" if labels else "pictures"
        raise InputError(f"{folder} holds {len(known)} {what} that can be read; at least 2 are wanted")
    pictures = frame_whole(torch.stack(kept))
    apart = held_out(known) if labels and not everything else set()
    sizes = Counter(of)
    judged = {name for name in apart if sizes[name] > 1}
    judge, judged_by, unlearned = None, "", None
    if len(judged) > 1:
        chosen = _chosen(pictures, of, judged)
        judge, unlearned = _judge_pictures(*chosen), HeldOut(*chosen, torch.zeros_like(chosen[1]))
        judged_by = f"{min(_MOST_WAYS, len(judged))}-way 1-shot"
    learned, classes = _chosen(pictures, of, set(known) - apart if judge is not None else set(known))
    return (
        SiameseData(
            pictures=learned,
            classes=classes,
            groups=torch.zeros(int(classes.max()) + 1, dtype=torch.int64),
            symmetries=1,
            distortion="photo",
            judge=judge,
            judged_by=judged_by,
            held_out=unlearned,
        ),
        unreadable,
    )


def held_out(known: Sequence[str]) -> set[str]:
    """Of ten classes or more every fifth, of their sorted names."""
    return set(known[::_HELD_OUT]) if len(known) >= _CLASSES_TO_HOLD_OUT else set()


def _chosen(pictures: FramedPictures, of: list[str], names: set[str]) -> tuple[FramedPictures, Tensor]:
    """The pictures of the classes `names`, and their classes, numbered from 0 in the order of their names."""
    numbers = {name: number for number, name in enumerate(sorted(names))}
    rows = torch.tensor([row for row, name in enumerate(of) if name in names])
    return pictures[rows], torch.tensor([numbers[of[row]] for row in rows.tolist()])


def _listed(folder: Path, labels: bool) -> tuple[list[Path], list[str]]:
    if not labels:
        paths = list_unlabelled([folder])
        return paths, [str(path) for path in paths]
    listing = list_folder(folder)
    samples = [sample for sample in listing.samples if sample.split in (None, "train")]
    return [folder / sample.path for sample in samples], [sample.label for sample in samples]


def _judge(drawn: Omniglot, split: str, side: int) -> Judge:
    def accuracy(vectors: Callable[[FramedPictures], Tensor]) -> float:
        embedded = embed_once(
            drawn,
            lambda drawings: vectors(frame_drawings(drawings, side)),
            turns=ALL_TURNS if split == "vinyals" else UPRIGHT,
        )
        if split == "koch":
            pairs = draw_pairs(embedded, _JUDGED_EPISODES, torch.Generator().manual_seed(0))
            scores = similarity(embedded.vectors, pairs.rows)
            return float(((scores >= best_threshold(scores, pairs.same)) == pairs.same).float().mean())
        return _one_shot(embedded.vectors, embedded.label, embedded.alphabet if split == "lake" else None)

    return accuracy


def _held_out_drawings(drawn: Omniglot, side: int) -> HeldOut:
    return HeldOut(frame_drawings(drawn.pictures, side), drawn.character, drawn.alphabet)


def _judge_pictures(pictures: FramedPictures, classes: Tensor) -> Judge:
    return lambda vectors: _one_shot(_in_parts(pictures, vectors), classes, None)


def _in_parts(pictures: FramedPictures, vectors: Callable[[FramedPictures], Tensor]) -> Tensor:
    return torch.cat([vectors(pictures[slice(at, at + 512)]) for at in range(0, len(pictures), 512)])


def _one_shot(vectors: Tensor, labels: Tensor, groups: Tensor | None) -> float:
    """20-way 1-shot, or of as many classes as there are."""
    pool = arrange(labels, groups)
    way = min(_MOST_WAYS, int(pool.member_sizes.min()))
    episodes = sample(pool, _JUDGED_EPISODES, way=way, shot=1, generator=torch.Generator().manual_seed(0))
    return float(score_episodes(vectors, episodes).credit.mean())


@dataclass(frozen=True, eq=False)
class Draw:
    """rows: (n,) int64, the pictures. labels: (n,) int64, of class and symmetry together: a class that is turned is
    another class. symmetry: (n,) int64, how each is laid, 0 to 7."""

    rows: Tensor
    labels: Tensor
    symmetry: Tensor


def draw(pool: Pool, *, groups: int, ways: int, shots: int, symmetries: int, generator: torch.Generator) -> Draw:
    """`groups` groups, likelier the more classes they have, each laid by one symmetry; of each `ways` classes, or all
    that it has, and of each class `shots` pictures, no picture twice unless the class has fewer."""
    step = SYMMETRIES // symmetries if symmetries != 4 else 1  # the four turns are the first four
    parts = []
    for group in torch.multinomial(pool.member_sizes.float(), groups, replacement=True, generator=generator).tolist():
        symmetry = int(torch.randint(symmetries, (), generator=generator)) * step
        size = int(pool.member_sizes[group])
        classes = pool.members[group, torch.randperm(size, generator=generator)[:ways]]
        order = torch.rand(len(classes), pool.rows.shape[1], generator=generator)
        sizes = pool.sizes[classes][:, None]
        places = order.masked_fill(torch.arange(order.shape[1]) >= sizes, 2.0).argsort(1)
        places = places.gather(1, torch.arange(shots).expand(len(classes), -1) % sizes.clamp_max(shots))
        rows = pool.rows[classes].gather(1, places)
        labels = (pool.labels[classes] * SYMMETRIES + symmetry)[:, None].expand(-1, shots)
        parts.append((rows.flatten(), labels.flatten(), torch.full((rows.numel(),), symmetry)))
    rows, labels, symmetry_of = (torch.cat(column) for column in zip(*parts, strict=True))
    return Draw(rows, labels, symmetry_of)
