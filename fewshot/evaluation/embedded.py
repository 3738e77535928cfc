"""Omniglot's drawings as vectors: each embedded once, upright or turned, so that every protocol is arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.omniglot.dataset import Character, Omniglot
from fewshot.omniglot.splits import Split
from finetune.errors import InputError

# Pictures (n, 105, 105) uint8, ink 255 on 0, to vectors (n, d), on whatever device.
Embed = Callable[[Tensor], Tensor]

UPRIGHT = (0,)
ALL_TURNS = (0, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class EmbeddedDrawings:
    """Vectors and what they are of; all but the vectors is on the CPU.

    vectors: (n, d) float32. character: (n,) int64, positions in `characters`, which are sorted. drawer: (n,) int64, 0
    to 19. turn: (n,) int64, quarter turns counter-clockwise, 0 to 3: a character that is turned is another class.
    """

    vectors: Tensor
    character: Tensor
    drawer: Tensor
    turn: Tensor
    characters: tuple[Character, ...]

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def label(self) -> Tensor:
        """(n,) int64: one number for each character and turn."""
        return self.turn * len(self.characters) + self.character

    @property
    def alphabet(self) -> Tensor:
        """(n,) int64: positions among the sorted names of the alphabets."""
        names = sorted({character.alphabet for character in self.characters})
        of = torch.tensor([names.index(character.alphabet) for character in self.characters])
        return of[self.character]

    def only(self, split: Split, turns: Sequence[int] = ALL_TURNS) -> EmbeddedDrawings:
        """What belongs to `split` and has one of `turns`, characters numbered anew from 0.

        InputError where a character of the split is missing.
        """
        missing = sorted(split.characters - set(self.characters))
        if missing:
            raise InputError(
                f"{len(missing)} characters of the split were not embedded, {missing[0]} the first of them"
            )
        kept = torch.tensor([character in split.characters for character in self.characters])
        number = kept.cumsum(0) - 1
        wanted = kept[self.character] & torch.isin(self.drawer, torch.tensor(list(split.drawers)))
        rows = (wanted & torch.isin(self.turn, torch.tensor(list(turns)))).nonzero()[:, 0]
        return EmbeddedDrawings(
            vectors=self.vectors[rows.to(self.vectors.device)],
            character=number[self.character[rows]],
            drawer=self.drawer[rows],
            turn=self.turn[rows],
            characters=tuple(sorted(split.characters)),
        )


def embed_once(
    omniglot: Omniglot, embed: Embed, *, turns: Sequence[int] = UPRIGHT, at_once: int = 1024
) -> EmbeddedDrawings:
    """Every drawing embedded, `at_once` at a time, once for each of `turns`; the turned pictures are made on the way.

    InputError where `embed` does not give one vector of finite numbers for each picture.
    """
    if not len(omniglot):
        raise InputError("no drawings to embed")
    vectors, labels = [], []
    everything = torch.arange(len(omniglot))
    for turn in turns:
        for rows in everything.split(at_once):
            pictures, _ = turned(omniglot.pictures[rows], omniglot.character[rows], 0, (turn,))
            with torch.inference_mode():
                vectors.append(_checked(embed(pictures), len(rows)))
        labels.append(torch.full((len(omniglot),), turn))
    return EmbeddedDrawings(
        vectors=torch.cat(vectors),
        character=omniglot.character.repeat(len(turns)),
        drawer=omniglot.drawer.repeat(len(turns)),
        turn=torch.cat(labels),
        characters=omniglot.characters,
    )


def turned(pictures: Tensor, labels: Tensor, classes: int, turns: Sequence[int] = ALL_TURNS) -> tuple[Tensor, Tensor]:
    """Pictures (n, h, h) by quarter turns counter-clockwise, one turn after the other, and the labels of the turned:
    `classes` more for every quarter (Santoro et al. 2016, whom Vinyals et al. 2016 and Snell et al. 2017 follow)."""
    pictures_turned = [pictures.rot90(turn, (1, 2)) for turn in turns]
    return torch.cat(pictures_turned), torch.cat([labels + turn * classes for turn in turns])


def joined(parts: Sequence[EmbeddedDrawings]) -> EmbeddedDrawings:
    """Several in one, as of upright and of turned drawings, characters numbered anew; empty of none."""
    characters = tuple(sorted({character for part in parts for character in part.characters}))
    position = {character: number for number, character in enumerate(characters)}
    moved = [torch.tensor([position[name] for name in part.characters])[part.character] for part in parts]
    return EmbeddedDrawings(
        vectors=torch.cat([part.vectors for part in parts]) if parts else torch.empty(0, 0),
        character=torch.cat([*moved, torch.empty(0, dtype=torch.int64)]),
        drawer=torch.cat([*(part.drawer for part in parts), torch.empty(0, dtype=torch.int64)]),
        turn=torch.cat([*(part.turn for part in parts), torch.empty(0, dtype=torch.int64)]),
        characters=characters,
    )


def _checked(vectors: Tensor, count: int) -> Tensor:
    if vectors.ndim != 2 or len(vectors) != count:
        raise InputError(f"{count} pictures were embedded to shape {tuple(vectors.shape)}; ({count}, d) is wanted")
    bad = int((~vectors.isfinite()).any(1).sum())
    if bad:
        raise InputError(f"{bad} of {count} pictures were embedded to what is not finite; are the weights finite?")
    return vectors.float()
