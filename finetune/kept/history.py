"""The changes of a finished run, and its earlier states, which undo takes it back to."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from msgspec import Meta

from finetune.classifier.loading import load
from finetune.classifier.run_folder import EARLIER, VERSIONED
from finetune.classifier.stored import WEIGHTS_FILE
from finetune.errors import InputError
from finetune.files.exchange import delete_whole, exchange, link_or_copy, settled, staged
from finetune.files.reading import as_type, read_json, read_tensors
from finetune.files.writing import write_json, write_tensors
from finetune.metrics import Count, Finite, Share

CHANGES_FILE = "changes.json"
FORMAT = 1
# Earlier states that are kept, the newest first; the newest is kept whatever its size.
MOST_STATES, MOST_BYTES = 10, 1 << 30
# In an earlier state, instead of the weights of the whole network: its backbone is that of the run.
HEAD_FILE = "head.safetensors"
_HEAD = "head."


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of a finished run. It names neither pictures nor classes, so that nothing of what was forgotten is left.

    Attributes:
        number: 1 for the first change.
        kind: What was done.
        when: Date and time, UTC, as 2026-11-29T12:00:00Z.
        seconds: How long it took.
        added, removed: Number of pictures.
        classes_added, classes_removed: Number of classes.
        background: Number of background pictures that were added or forgotten.
        pictures: Number of pictures that the run uses afterwards.
        accuracy: Of the run afterwards, in [0, 1]; None where it was not measured.
        split, n: The pictures that the accuracy is of.
        retraining: Whether training the backbone again would pay, in a sentence; None for a backbone that is as
            published.

    Example:
        >>> from finetune import history
        >>> [change.sentence for change in history("runs/photos")]
        []
    """

    number: Annotated[int, Meta(ge=1, le=10**9)]
    kind: Literal["extend", "forget"]
    when: Annotated[str, Meta(max_length=40)]
    seconds: Finite
    added: Count = 0
    removed: Count = 0
    classes_added: Count = 0
    classes_removed: Count = 0
    background: Count = 0
    pictures: Count
    accuracy: Share | None = None
    split: Literal["val", "test"] | None = None
    n: Count = 0
    retraining: str | None = None

    @property
    def sentence(self) -> str:
        """What was done, in words."""
        verb, pictures, classes = {
            "extend": ("added", self.added, self.classes_added),
            "forget": ("forgotten", self.removed, self.classes_removed),
        }[self.kind]
        parts = [_count(pictures, "picture", "pictures")] if pictures or not self.background else []
        parts += [_count(classes, "class", "classes")] if classes else []
        parts += [_count(self.background, "background picture", "background pictures")] if self.background else []
        return f"{', '.join(parts[:-1])}{' and ' if parts[1:] else ''}{parts[-1]} {verb}"


@dataclass(frozen=True)
class _Changes:
    format: Literal[1]
    changes: tuple[Change, ...]


def read_changes(folder: Path) -> tuple[Change, ...]:
    """The changes of a run, the oldest first; none for a run as `fit` left it. InputError where they are damaged."""
    path = settled(folder) / CHANGES_FILE
    return as_type(read_json(path), _Changes, str(path)).changes if path.exists() else ()


def write_changes(folder: Path, changes: tuple[Change, ...]) -> None:
    """Write the changes of a run."""
    write_json(folder / CHANGES_FILE, {"format": FORMAT, "changes": [asdict(change) for change in changes]})


def undoable(folder: Path) -> list[int]:
    """Numbers of the changes whose earlier state is kept, ascending."""
    names = [path.name for path in (folder / EARLIER).glob("*") if re.fullmatch(r"[1-9][0-9]{0,8}", path.name)]
    return sorted(map(int, names))


def earlier_bytes(folder: Path) -> int:
    """Size of all earlier states."""
    return _size(folder / EARLIER)


def replace_state(folder: Path, stage: Path, number: int, *, for_good: bool) -> None:
    """Exchange the state of a run for that in `stage`, and keep the old one.

    Args:
        folder: The run folder, whose lock the caller has.
        stage: The new state, in a folder that `staged` gave.
        number: Of the change.
        for_good: Whether to delete all earlier states instead, this one too.
    """
    place = f"{EARLIER}/{number}"
    if for_good:
        exchange(folder, VERSIONED, gone=[EARLIER], stage=stage)
        return
    exchange(folder, VERSIONED, kept_in=place, stage=stage)
    _keep_head_alone(folder, folder / place)
    kept = undoable(folder)
    while len(kept) > 1 and (len(kept) > MOST_STATES or earlier_bytes(folder) > MOST_BYTES):
        delete_whole(folder / EARLIER / str(kept.pop(0)))


def take_back(folder: Path) -> Change:
    """Undo the last change of a run, whose lock the caller has.

    Raises:
        InputError: Where there is no change, or its earlier state is damaged or no longer kept.
    """
    changes = read_changes(folder)
    if not changes:
        raise InputError(f"{folder} has no change to undo: it is as finetune fit left it")
    last = changes[-1]
    before = folder / EARLIER / str(last.number)
    if not before.is_dir():
        raise InputError(f"{folder} keeps no state from before its last change ({last.sentence})")
    with staged(folder) as stage:
        for path in sorted(before.iterdir()):
            if path.name in VERSIONED:
                link_or_copy(path, stage / path.name)
        if not (stage / WEIGHTS_FILE).exists():
            now, head = read_tensors(folder / WEIGHTS_FILE), read_tensors(before / HEAD_FILE)
            backbone = {name: value for name, value in now.items() if not name.startswith(_HEAD)}
            write_tensors(stage / WEIGHTS_FILE, backbone | head)
        load(stage, device="cpu")  # a damaged state must not replace the run
        exchange(folder, VERSIONED, gone=[f"{EARLIER}/{last.number}"], stage=stage)
    if not undoable(folder):
        delete_whole(folder / EARLIER)
    return last


def drop_earlier(folder: Path) -> int:
    """Delete all earlier states of a run, whose lock the caller has; the number of bytes that this frees."""
    size = earlier_bytes(folder)
    delete_whole(folder / EARLIER)
    return size


def _keep_head_alone(folder: Path, earlier: Path) -> None:
    """Keep of the weights of an earlier state only the head, where the backbone is that of the run."""
    before, now = read_tensors(earlier / WEIGHTS_FILE), read_tensors(folder / WEIGHTS_FILE)
    names = [{name for name in tensors if not name.startswith(_HEAD)} for tensors in (before, now)]
    if names[0] != names[1] or not all(_same(before[name], now[name]) for name in names[0]):
        return
    write_tensors(earlier / HEAD_FILE, {name: value for name, value in before.items() if name.startswith(_HEAD)})
    (earlier / WEIGHTS_FILE).unlink()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
