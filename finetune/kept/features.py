"""The features of its pictures that a run keeps, so that its head can be solved again without reading one of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from msgspec import Meta
from torch import Tensor

from finetune.data.folder import Listing, Sample
from finetune.data.images import Content
from finetune.data.near_duplicates import FINGERPRINT_BYTES
from finetune.errors import InputError
from finetune.features.table import SPLITS, FeatureTable
from finetune.files.reading import as_type, parse_json, read_tensors_and_metadata
from finetune.files.tensors import check_tensor
from finetune.files.writing import write_tensors
from finetune.kept.views import Views
from finetune.linear.ridge import INPUTS
from finetune.terminal import in_one_line

FEATURES_FILE = "features.safetensors"
FORMAT = 1

# Depths that a head can read, the features last. Others are not kept.
MOST_DEPTHS = max(len(kind.factors) for kind in INPUTS)
# Bytes of the list of pictures: about 200 for each.
_MOST_LIST_BYTES = 2 << 30
_SHA256_BYTES = 32

_Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class KeptFeatures:
    """The pictures of a run, with the activations of the last depths of its backbone for the readable ones.

    Attributes:
        listing: All pictures, those that are not used included.
        contents: What reading each picture found: hash, fingerprint, or why it is unreadable.
        splits: The split of each picture; None for one that is not used.
        pooled: Pooled activations, float32, shape (n, sum of widths), the features last; a row a readable picture.
        index: Position of each row's picture, shape (n,) int64, ascending.
        depths: Names of the depths.
        widths: Number of activations of each depth.
        views: Of the pictures that were measured, the views that are averaged for a prediction. None where a prediction
            reads one view, which `pooled` has.
    """

    listing: Listing
    contents: tuple[Content, ...]
    splits: tuple[str | None, ...]
    pooled: Tensor
    index: Tensor
    depths: tuple[str, ...]
    widths: tuple[int, ...]
    views: Views | None = None

    @classmethod
    def of(
        cls, rows: FeatureTable, depths: Sequence[str], widths: Sequence[int], views: Views | None = None
    ) -> KeptFeatures:
        """What to keep of `rows`. depths, widths: of `rows.pooled`."""
        depths, widths = tuple(depths[-MOST_DEPTHS:]), tuple(widths[-MOST_DEPTHS:])
        splits: list[str | None] = [None] * len(rows.listing.samples)
        for split in SPLITS:
            for position in rows.indices(split):
                splits[position] = split
        index = torch.tensor([place for place, found in enumerate(rows.contents) if found.reason is None])
        pooled = rows.pooled[index.long(), rows.pooled.shape[1] - sum(widths) :]
        views = None if views is None else replace(views, values=views.values[..., -sum(widths) :])
        return cls(rows.listing, tuple(rows.contents), tuple(splits), pooled, index.long(), depths, widths, views)

    @property
    def width(self) -> int:
        """Number of activations of a picture."""
        return sum(self.widths)

    @property
    def splits_by_content(self) -> dict[str, str]:
        """The split of each used picture, by sha256."""
        pairs = zip(self.contents, self.splits, strict=True)
        return {content.sha256: split for content, split in pairs if split is not None}

    def of_split(self, split: str, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Activations (n, sum of widths) of the used pictures of a split, and their labels (n,) in `classes`."""
        names = {name: number for number, name in enumerate(classes)}
        positions = self.index.tolist()
        rows = [row for row, position in enumerate(positions) if self.splits[position] == split]
        labels = [names[self.listing.samples[positions[row]].label] for row in rows]
        return self.pooled[torch.tensor(rows, dtype=torch.int64)], torch.tensor(labels, dtype=torch.int64)

    def write(self, folder: Path) -> int:
        """Write them into a run folder; the size of the file in bytes."""
        path = folder / FEATURES_FILE
        hashes = b"".join(bytes.fromhex(content.sha256) or bytes(_SHA256_BYTES) for content in self.contents)
        prints = b"".join(bytes.fromhex(each.fingerprint or "") or bytes(FINGERPRINT_BYTES) for each in self.contents)
        tensors = {
            "pictures": _bytes_of(json.dumps(self._list()).encode()),
            "sha256": _bytes_of(hashes).reshape(-1, _SHA256_BYTES),
            "fingerprints": _bytes_of(prints).reshape(-1, FINGERPRINT_BYTES),
            "pooled": self.pooled.float(),
            "index": self.index,
        }
        if self.views is not None:
            tensors |= {"views": self.views.values.float(), "views_index": self.views.index}
        about = {"format": str(FORMAT), "depths": json.dumps(self.depths), "widths": json.dumps(self.widths)}
        write_tensors(path, tensors, about)
        return path.stat().st_size

    def _list(self) -> dict[str, Any]:
        """The pictures as JSON values."""
        triples = zip(self.listing.samples, self.contents, self.splits, strict=True)
        return {
            "root": str(self.listing.root.resolve()),
            "table": self.listing.table,
            "notes": self.listing.notes,
            "samples": [
                (sample.path, sample.label, sample.split, sample.size, content.reason, split)
                for sample, content, split in triples
            ],
        }


def keeps_features(folder: Path) -> bool:
    """Whether a run folder has the features of its pictures."""
    return (folder / FEATURES_FILE).is_file()


def read_features(folder: Path, classes: Sequence[str]) -> KeptFeatures:
    """The features in a run folder.

    Args:
        folder: The run folder.
        classes: Of the run. Every used picture must be of one of them, and every class must have one.

    Raises:
        InputError: If they are missing or damaged; the message names the file.
    """
    path = folder / FEATURES_FILE
    tensors, about = read_tensors_and_metadata(path)
    if about.get("format") != str(FORMAT):
        raise InputError(f"{path} has format {about.get('format')}, this version reads {FORMAT}")
    depths = as_type(parse_json(about.get("depths", ""), str(path)), tuple[str, ...], str(path))
    widths = as_type(parse_json(about.get("widths", ""), str(path)), tuple[_Width, ...], str(path))
    listed = check_tensor(tensors, "pictures", (None,), str(path), formats=[torch.uint8], finite=False)
    if len(listed) > _MOST_LIST_BYTES:
        raise _damaged(path, f"its list of pictures has {len(listed):,} bytes, and at most {_MOST_LIST_BYTES:,} go")
    found = as_type(parse_json(listed.numpy().tobytes(), str(path)), _List, str(path))
    count = len(found.samples)
    shapes = {"sha256": _SHA256_BYTES, "fingerprints": FINGERPRINT_BYTES}
    hashes, prints = (
        check_tensor(tensors, name, (count, width), str(path), formats=[torch.uint8], finite=False).numpy()
        for name, width in shapes.items()
    )
    contents = tuple(
        Content(_hex(sha256.tobytes()) or "", each.reason, _hex(fingerprint.tobytes()))
        for each, sha256, fingerprint in zip(found.samples, hashes, prints, strict=True)
    )
    readable = [position for position, content in enumerate(contents) if content.reason is None]
    pooled = check_tensor(tensors, "pooled", (len(readable), sum(widths)), str(path), formats=[torch.float32])
    index = check_tensor(tensors, "index", (len(readable),), str(path), formats=[torch.int64], finite=False)
    if index.tolist() != readable:
        raise _damaged(path, "index is not of the readable pictures")
    if not depths or len(depths) != len(widths):
        raise _damaged(path, "depths and widths do not belong together")
    _check_list(path, found, classes)
    views = _views(path, tensors, readable, sum(widths))
    samples = tuple(Sample(each.path, each.label, each.given, each.size) for each in found.samples)
    listing = Listing(Path(found.root), samples, found.notes, found.table)
    splits = tuple(each.split for each in found.samples)
    return KeptFeatures(listing, contents, splits, pooled, index, depths, widths, views)


_Width = Annotated[int, Meta(ge=1, le=10**7)]


class _Picture(NamedTuple):
    """A picture in the list. given: its split where splits are given. split: the one that it is used for."""

    path: str
    label: str
    given: _Split | None
    size: Annotated[int, Meta(ge=-1, le=2**62)]
    reason: str | None
    split: _Split | None


@dataclass(frozen=True)
class _List:
    """The list of pictures, as JSON has it."""

    root: str
    table: str | None
    notes: tuple[str, ...]
    samples: tuple[_Picture, ...]


def _check_list(path: Path, found: _List, classes: Sequence[str]) -> None:
    used = {each.label for each in found.samples if each.split is not None}
    if any(each.split is not None and each.reason is not None for each in found.samples):
        raise _damaged(path, "an unreadable picture has a split")
    if used != set(classes):
        odd = sorted(used ^ set(classes))[0]
        raise _damaged(path, f"its classes are not those of the run, such as {in_one_line(odd)!r}")


def _views(path: Path, tensors: Mapping[str, Tensor], readable: Sequence[int], width: int) -> Views | None:
    if "views" not in tensors:
        return None
    views = check_tensor(tensors, "views", (None, None, width), str(path), formats=[torch.float32])
    index = check_tensor(tensors, "views_index", (len(views),), str(path), formats=[torch.int64], finite=False)
    positions = index.tolist()
    if not views.shape[1] or sorted(set(positions)) != positions or not set(positions) <= set(readable):
        raise _damaged(path, "views_index is not of the readable pictures")
    return Views(views, index)


def _bytes_of(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _hex(content: bytes) -> str | None:
    """In hex; None for zeros, which stand for nothing."""
    return content.hex() if any(content) else None


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} may be damaged: {why}")
