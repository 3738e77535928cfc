"""Pictures of none of the classes that a run keeps features of, for the threshold of unknown pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.classifier.run_folder import BACKGROUND_FILE
from finetune.config import Config
from finetune.data.folder import Listing, Sample, list_without_labels
from finetune.data.images import Content
from finetune.data.near_duplicates import FINGERPRINT_BYTES, near_ones
from finetune.data.splits import Unreadable
from finetune.errors import InputError
from finetune.features.extraction import StageReader
from finetune.files.reading import as_type, parse_json, read_tensors_and_metadata
from finetune.files.tensors import check_tensor
from finetune.files.writing import write_tensors
from finetune.kept.naming import NamedPictures
from finetune.models.pooled import PooledStages
from finetune.open_set.likeness import DEPTHS
from finetune.progress import Display

FORMAT = 1
# Most pictures that a run keeps: more change the threshold little.
MOST = 2000
# Bytes of the list of their paths.
_MOST_LIST_BYTES = 64 << 20
_SHA256_BYTES = 32
# Files that a sentence names.
_NAMED = 3


@dataclass(frozen=True)
class Background:
    """Readable pictures of none of the classes, each content once.

    Attributes:
        paths: Absolute paths, m of them.
        contents: Their hashes and fingerprints.
        pooled: Pooled activations, float32, shape (m, sum of widths), the features last.
        widths: Number of activations of each depth.
    """

    paths: tuple[str, ...]
    contents: tuple[Content, ...]
    pooled: Tensor
    widths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def up_to(self, widths: Sequence[int]) -> Background:
        """The same pictures for a backbone whose upper stages were removed; widths: of the depths that are left."""
        return replace(self, pooled=self.pooled[:, : sum(widths)], widths=tuple(widths))

    def at(self, positions: Sequence[int]) -> Background:
        """Those of the pictures at `positions`."""
        rows = torch.tensor(list(positions), dtype=torch.int64)
        return replace(
            self,
            paths=tuple(self.paths[place] for place in positions),
            contents=tuple(self.contents[place] for place in positions),
            pooled=self.pooled[rows],
        )

    def with_more(self, more: Background) -> Background:
        """These pictures and those of `more` whose content is new.

        Raises:
            InputError: If nothing is new, or the two were read by other networks.
        """
        known = {content.sha256 for content in self.contents}
        new = more.at([place for place, content in enumerate(more.contents) if content.sha256 not in known]).kept()
        old = self.kept()
        if new.widths != old.widths:
            raise InputError(f"{BACKGROUND_FILE} may be damaged: its features are not of this network")
        if not len(new):
            raise InputError("the run has all of these background pictures already; give others")
        pooled = torch.cat([old.pooled, new.pooled])
        return Background((*old.paths, *new.paths), (*old.contents, *new.contents), pooled, old.widths)

    def kept(self) -> Background:
        """The same with the last depths alone, which the likeness reads."""
        widths = self.widths[-DEPTHS:]
        return replace(self, pooled=self.pooled[:, self.pooled.shape[1] - sum(widths) :], widths=widths)

    def copies(self, labelled: Sequence[Content]) -> dict[int, int]:
        """Positions of the pictures that are identical to one of `labelled`, or near-duplicates of it, with its
        position there."""
        first: dict[str, int] = {}
        for place, content in enumerate(labelled):
            if content.sha256 and content.reason is None:
                first.setdefault(content.sha256, place)
        found = {place: first[content.sha256] for place, content in enumerate(self.contents) if content.sha256 in first}
        seen = [place for place in first.values() if labelled[place].fingerprint]
        asked = [place for place, content in enumerate(self.contents) if place not in found and content.fingerprint]
        near = near_ones(
            [bytes.fromhex(self.contents[place].fingerprint or "") for place in asked],
            [bytes.fromhex(labelled[place].fingerprint or "") for place in seen],
        )
        return found | {asked[row]: seen[other] for row, other in near.items()}

    def without_copies(
        self, samples: Sequence[Sample], labelled: Sequence[Content]
    ) -> tuple[Background, tuple[Unreadable, ...]]:
        """The pictures that show none of `labelled`, and the others with the reason.

        Args:
            samples: The pictures with labels.
            labelled: What reading them found.
        """
        copies = self.copies(labelled)
        left_out = []
        for place, other in sorted(copies.items()):
            same = self.contents[place].sha256 == labelled[other].sha256
            kind = "identical to" if same else "near-duplicate of"
            left_out.append(Unreadable(self.paths[place], f"{kind} {samples[other].path} of {samples[other].label}"))
        return self.at([place for place in range(len(self)) if place not in copies]), tuple(left_out)

    def named(self) -> NamedPictures:
        """The pictures by their names."""
        return NamedPictures(self.paths, self.contents)

    def of_contents(self, hashes: Collection[str]) -> set[int]:
        """Positions of the pictures with one of these sha256."""
        return {place for place, content in enumerate(self.contents) if content.sha256 in hashes}

    def write(self, folder: Path) -> None:
        """Write them into a run folder; nothing is left of others there. Without a picture there is no file."""
        path = folder / BACKGROUND_FILE
        if not len(self):
            path.unlink(missing_ok=True)
            return
        kept = self.kept()
        prints = b"".join(bytes.fromhex(each.fingerprint or "") or bytes(FINGERPRINT_BYTES) for each in kept.contents)
        hashes = b"".join(bytes.fromhex(each.sha256) for each in kept.contents)
        tensors = {
            "paths": _bytes_of(json.dumps(kept.paths).encode()),
            "sha256": _bytes_of(hashes).reshape(-1, _SHA256_BYTES),
            "fingerprints": _bytes_of(prints).reshape(-1, FINGERPRINT_BYTES),
            "pooled": kept.pooled.float().contiguous(),
        }
        write_tensors(path, tensors, {"format": str(FORMAT), "widths": json.dumps(kept.widths)})


def read_background(folder: Path, widths: Sequence[int]) -> Background | None:
    """The background pictures in a run folder; None where it has none.

    Args:
        folder: The run folder.
        widths: Number of activations of each depth of its backbone.

    Raises:
        InputError: If the file is damaged; the message names it.
    """
    path = folder / BACKGROUND_FILE
    if not path.exists():
        return None
    tensors, about = read_tensors_and_metadata(path)
    if about.get("format") != str(FORMAT):
        raise InputError(f"{path} has format {about.get('format')}, this version reads {FORMAT}")
    found = as_type(parse_json(about.get("widths", ""), str(path)), tuple[int, ...], str(path))
    if found != tuple(widths[-DEPTHS:]):
        raise InputError(f"{path} may be damaged: its features are not of the network of this run")
    listed = check_tensor(tensors, "paths", (None,), str(path), formats=[torch.uint8], finite=False)
    if len(listed) > _MOST_LIST_BYTES:
        raise InputError(f"{path} may be damaged: its list has {len(listed):,} bytes, at most {_MOST_LIST_BYTES:,} go")
    paths = as_type(parse_json(listed.numpy().tobytes(), str(path)), tuple[str, ...], str(path))
    count = len(paths)
    hashes, prints = (
        check_tensor(tensors, name, (count, width), str(path), formats=[torch.uint8], finite=False).numpy()
        for name, width in (("sha256", _SHA256_BYTES), ("fingerprints", FINGERPRINT_BYTES))
    )
    pooled = check_tensor(tensors, "pooled", (count, sum(found)), str(path), formats=[torch.float32])
    contents = tuple(
        Content(sha256.tobytes().hex(), None, row.tobytes().hex() if row.any() else None)
        for sha256, row in zip(hashes, prints, strict=True)
    )
    if not 0 < len({content.sha256 for content in contents}) == count <= MOST:
        raise InputError(f"{path} may be damaged: it must have 1 to {MOST:,} different pictures")
    return Background(paths, contents, pooled, found)


def list_background(root: str | os.PathLike[str], room: int = MOST) -> tuple[Listing, int]:
    """The pictures below a folder, at most `room`, evenly spread; and the number of the others.

    InputError, naming the option, for no folder, a folder without pictures, and without room.
    """
    listing = list_without_labels(Path(root), "--background")
    count = len(listing.samples)
    if room < 1:
        raise InputError(
            f"the run keeps {MOST:,} background pictures already, the most that it may; forget some of them first"
        )
    if count <= room:
        return listing, 0
    chosen = tuple(listing.samples[number * count // room] for number in range(room))
    return replace(listing, samples=chosen), count - room


def read_pictures_of(
    fabric: Fabric, stages: PooledStages, listing: Listing, config: Config, display: Display, skipped: int = 0
) -> Background:
    """The readable pictures of a listing, each content once, with the activations of every depth.

    skipped: Number of pictures that `list_background` left out, which is told.

    Raises:
        InputError: If none can be read.
    """
    outputs = StageReader.of(fabric, stages, listing, config, display).read(display, bar="reading background")
    bad = [(sample.path, outputs.contents[place].reason) for place, sample in enumerate(listing.samples)]
    bad = [(path, reason) for path, reason in bad if reason is not None]
    if not len(outputs.index):
        raise InputError(f"{listing.root} (--background): no picture can be read ({bad[0][1]})")
    if bad:
        shown = "; ".join(f"{path} ({reason})" for path, reason in bad[:_NAMED])
        more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        display.say(f"Background pictures that cannot be read are left out: {len(bad)}: {shown}{more}.")
    if skipped:
        display.say(
            f"Of the background pictures, {len(listing.samples):,} are read, evenly spread; {skipped:,} are not."
        )
    root = os.path.realpath(listing.root)
    positions = outputs.index.tolist()
    contents = tuple(outputs.contents[place] for place in positions)
    first: dict[str, int] = {}
    for row, content in enumerate(contents):
        first.setdefault(content.sha256, row)
    paths = tuple(os.path.normpath(os.path.join(root, listing.samples[place].path)) for place in positions)
    every = Background(paths, contents, outputs.values[:, 0], stages.widths)
    return every.at(list(first.values()))


def read_again(
    background: Background, fabric: Fabric, stages: PooledStages, config: Config, display: Display
) -> Background:
    """The same pictures with the activations of another network. InputError where none can be read any more."""
    samples = tuple(Sample(path, "", None, 0) for path in background.paths)
    return read_pictures_of(fabric, stages, Listing(Path(os.sep), samples, ()), config, display)


def told(background: Background, left_out: Sequence[Unreadable]) -> str:
    """A sentence on the pictures that are used, and on those that are not."""
    count = f"{len(background):,} background {'picture counts' if len(background) == 1 else 'pictures count'} too"
    if not left_out:
        return f"threshold of unknown pictures: {count}."
    shown = "; ".join(f"{each.path} ({each.reason})" for each in left_out[:_NAMED])
    more = f"; and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
    which = (
        "1 that shows a picture of the classes is"
        if len(left_out) == 1
        else (f"{len(left_out)} that show pictures of the classes are")
    )
    return f"threshold of unknown pictures: {count}. {which} left out: {shown}{more}."


def _bytes_of(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
