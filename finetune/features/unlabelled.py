"""Unlabelled pictures with their activations, without those that are labelled too or that measure the result."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from finetune.data.folder import Listing, list_without_labels
from finetune.data.images import Content
from finetune.data.splits import Unreadable, near_duplicates
from finetune.features.forward import Outputs

# Most pictures of a folder that are read: the graph over them grows with the square of their number.
MOST = 20_000


@dataclass(frozen=True)
class UnlabelledPictures:
    """The unlabelled pictures that a head can learn from.

    Attributes:
        root: Their folder.
        paths: Paths below `root`, m of them.
        pooled: Pooled activations of every depth, shape (m, sum of widths).
        unreadable: Files that cannot be read.
        labelled: Number of pictures left out as identical to a labelled one, or to another unlabelled one.
        measuring: Number of pictures left out as identical to a validation or test picture, or near-duplicates of one.
        skipped: Number of pictures beyond MOST, which are not read.
    """

    root: Path
    paths: tuple[str, ...]
    pooled: Tensor
    unreadable: tuple[Unreadable, ...] = ()
    labelled: int = 0
    measuring: int = 0
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def up_to(self, widths: Sequence[int]) -> UnlabelledPictures:
        """The same pictures for a backbone whose upper stages were removed; widths: of the depths that are left."""
        return replace(self, pooled=self.pooled[:, : sum(widths)])

    def notes(self) -> list[str]:
        """Sentences on the pictures that are not used."""
        lines = []
        if self.unreadable:
            shown = "; ".join(f"{entry.path} ({entry.reason})" for entry in self.unreadable[:5])
            more = f"; and {len(self.unreadable) - 5} more" if len(self.unreadable) > 5 else ""
            lines.append(
                f"Unlabelled pictures that cannot be read are left out: {len(self.unreadable)}: {shown}{more}."
            )
        if self.labelled:
            lines.append(
                f"Unlabelled pictures that are identical to a labelled or another unlabelled one are left out: "
                f"{self.labelled}."
            )
        if self.measuring:
            lines.append(
                f"Unlabelled pictures that are validation or test pictures, or near-duplicates of one, are left out: "
                f"{self.measuring}."
            )
        if self.skipped:
            lines.append(f"Of the unlabelled pictures, {MOST:,} are read, evenly spread; {self.skipped:,} are not.")
        return lines


def list_some(root: str) -> tuple[Listing, int]:
    """The pictures below a folder without labels, at most MOST, evenly spread; and the number of the others.

    InputError as for `list_without_labels`, naming the option.
    """
    listing = list_without_labels(Path(root), "--unlabelled")
    count = len(listing.samples)
    if count <= MOST:
        return listing, 0
    chosen = tuple(listing.samples[number * count // MOST] for number in range(MOST))
    return replace(listing, samples=chosen), count - MOST


def without_copies(
    listing: Listing,
    outputs: Outputs,
    labelled: Sequence[Content],
    measuring: Iterable[int],
    skipped: int = 0,
) -> UnlabelledPictures:
    """The unlabelled pictures of `listing` that can be read and are no copies.

    Args:
        listing: The unlabelled pictures.
        outputs: Their pooled activations.
        labelled: What reading the labelled pictures found.
        measuring: Positions of the validation and test pictures in `labelled`.
        skipped: Number of pictures that were not read.
    """
    count, judges = len(labelled), set(measuring)
    contents = [*labelled, *(outputs.contents[position] for position in range(len(listing.samples)))]
    judging = {contents[index].sha256 for index in judges}
    known = {content.sha256 for content in labelled}
    near = {
        one + other - index
        for one, other in near_duplicates(contents, [*judges, *range(count, len(contents))])
        for index in (one, other)
        if index in judges
    }
    near_hashes = {contents[index].sha256 for index in near}
    kept, copies, leaks, seen = [], 0, 0, set[str]()
    for row, position in enumerate(outputs.index.tolist()):
        content = contents[count + position].sha256
        if content in judging or content in near_hashes:
            leaks += 1
        elif content in known or content in seen:
            copies += 1
        else:
            seen.add(content)
            kept.append((row, position))
    rows = torch.tensor([row for row, _ in kept], dtype=torch.int64)
    unreadable = tuple(
        Unreadable(sample.path, content.reason)
        for sample, content in zip(listing.samples, contents[count:], strict=True)
        if content.reason is not None
    )
    paths = tuple(listing.samples[position].path for _, position in kept)
    return UnlabelledPictures(listing.root, paths, outputs.values[rows, 0], unreadable, copies, leaks, skipped)
