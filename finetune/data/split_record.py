"""A record of the split of every picture of a folder, so that added pictures do not move the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from finetune.config import Config
from finetune.data.folder import IN_MEMORY, Listing
from finetune.errors import InputError
from finetune.files.folders import default_folder
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.progress import Display

FORMAT = 1
_SPLITS = ("train", "val", "test")


def recorded_splits(listing: Listing, config: Config) -> dict[str, str]:
    """The split of each picture in earlier runs on this folder or table with the same fractions, by sha256.

    Empty without a record, with a damaged one, and for pictures in memory.
    """
    path = _record_of(listing, config)
    if path is None or not path.is_file():
        return {}
    try:
        found = read_json(path)
        splits = found["splits"] if found["format"] == FORMAT else {}
        return {str(sha256): split for split in _SPLITS for sha256 in splits.get(split, ())}
    except (InputError, TypeError, KeyError, AttributeError):
        return {}


def record_splits(listing: Listing, splits: Mapping[str, str], config: Config, display: Display) -> None:
    """Add `splits`, by sha256, to the record of `listing`. Where it cannot be written, one line says so."""
    path = _record_of(listing, config)
    if path is None or {"val", "test"} <= {sample.split for sample in listing.samples}:
        return
    before = recorded_splits(listing, config)
    now = {**before, **splits}
    if now == before:
        return
    by_split: dict[str, list[str]] = {split: [] for split in _SPLITS}
    for sha256, split in sorted(now.items()):
        by_split[split].append(sha256)
    try:
        write_json(path, {"format": FORMAT, **_about(listing, config), "splits": by_split})
    except InputError as error:
        display.say(f"The splits are not recorded ({error}): pictures that are added later may move others.")


def forget_splits(pictures: Path | None = None) -> int:
    """Delete the recorded splits of a folder or table, so that the next run makes new ones.

    Args:
        pictures: The folder or table. None for all records.

    Returns:
        Number of deleted records.

    Example:
        >>> from finetune import forget_splits
        >>> forget_splits(Path("never-used"))
        0
    """
    forgotten = 0
    for path in sorted(_folder().glob("*.json")):
        try:
            about = read_json(path)["pictures"]
        except (InputError, TypeError, KeyError):
            continue  # not a record
        if pictures is None or about == str(pictures.resolve()):
            path.unlink(missing_ok=True)
            forgotten += 1
    return forgotten


def _record_of(listing: Listing, config: Config) -> Path | None:
    if listing.table == IN_MEMORY:
        return None
    name = hashlib.sha256(json.dumps(_about(listing, config)).encode(errors="backslashreplace")).hexdigest()[:32]
    return _folder() / f"{name}.json"


def _folder() -> Path:
    return default_folder().parent / "splits"


def _about(listing: Listing, config: Config) -> dict[str, str | float]:
    return {
        "pictures": listing.table or str(listing.root.resolve()),
        "val_fraction": config.val_fraction,
        "test_fraction": config.test_fraction,
    }
