"""Embedded drawings of Omniglot: each drawing is embedded once, upright or turned, for all protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.omniglot.dataset import Character, Omniglot
from fewshot.omniglot.splits import Split
from finetune.errors import InputError

# An embedding is passed as a function, since it may be an encoder, a network in training or plain pixels.
# Drawings (n, 105, 105) uint8, ink 255 on 0 -> vectors (n, d), on any device.
Embed = Callable[[Tensor], Tensor]

UPRIGHT = (0,)
ALL_TURNS = (0, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class EmbeddedDrawings:
    """Vectors with their characters, drawers and turns. All but the vectors are on the CPU.

    Attributes:
        vectors: Shape (n, d), float32.
        character: Shape (n,), int64: positions in `characters`.
        drawer: Shape (n,), int64: 0 to 19.
        turn: Shape (n,), int64: quarter turns counter-clockwise, 0 to 3. A turned character is a separate class.
        characters: Sorted.
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
        """Shape (n,), int64: the class of each drawing, a character with a turn."""
        return self.turn * len(self.characters) + self.character

    @property
    def alphabet(self) -> Tensor:
        """Shape (n,), int64: positions among the sorted names of the alphabets."""
        names = sorted({character.alphabet for character in self.characters})
        of = torch.tensor([names.index(character.alphabet) for character in self.characters])
        return of[self.character]

    def only(self, split: Split, turns: Sequence[int] = ALL_TURNS) -> EmbeddedDrawings:
        """The drawings of `split` with one of `turns`; characters are numbered from 0.

        InputError if a character of the split is missing.
        """
        missing = sorted(split.characters - set(self.characters))
        if missing:
            raise InputError(f"{len(missing)} characters of the split were not embedded; the first is {missing[0]}")
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
    """Embed every drawing, once for each of `turns`.

    Args:
        omniglot: The drawings.
        embed: The embedding.
        turns: Quarter turns counter-clockwise.
        at_once: Drawings of a batch.

    Raises:
        InputError: If `embed` does not give one finite vector for each drawing.
    """
    if not len(omniglot):
        raise InputError("there are no drawings to embed")
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
    """Turn pictures (n, h, h), one turn after the other.

    Returns:
        The turned pictures, and their labels: each quarter turn adds `classes`.

    Source: Santoro et al. (2016), as used by Vinyals et al. (2016) and Snell et al. (2017).
    """
    pictures_turned = [pictures.rot90(turn, (1, 2)) for turn in turns]
    return torch.cat(pictures_turned), torch.cat([labels + turn * classes for turn in turns])


def joined(parts: Sequence[EmbeddedDrawings]) -> EmbeddedDrawings:
    """Concatenate embedded drawings; characters are numbered from 0."""
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
        raise InputError(f"the vectors of {count} pictures must have shape ({count}, d), not {tuple(vectors.shape)}")
    bad = int((~vectors.isfinite()).any(1).sum())
    if bad:
        raise InputError(
            f"{bad} of {count} pictures have vectors that are not finite; check that the weights are finite"
        )
    return vectors.float()
