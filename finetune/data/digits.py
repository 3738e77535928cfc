"""scikit-learn's bundled handwritten digits, written as an ordinary folder of pictures."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from finetune.errors import InputError

SIDE = 32  # pixels; the scans have 8 x 8, too few for a person


def write_digits(folder: str | Path, *, per_class: int = 10, seed: int = 0) -> None:
    """Write the 1,797 digits to train, val and test below a folder, in one folder per digit, "0" to "9".

    A folder that contains exactly these pictures stays unchanged.

    Args:
        folder: The folder.
        per_class: Pictures of each digit in train, and in val; test contains the rest.
        seed: Seed of the choice of pictures.

    Raises:
        InputError: If the folder contains anything else, or there are too few digits.

    Example:
        >>> from finetune import write_digits
        >>> write_digits(Path("digits"), per_class=1)
        >>> sorted(path.name for path in Path("digits").iterdir())
        ['test', 'train', 'val']
    """
    folder, digits = Path(folder), load_digits()
    chosen = _split(digits.target, per_class, seed)
    if folder.exists() and not _is_empty_folder(folder):
        if _pictures_in(folder) == chosen.keys():
            return
        raise InputError(f"{folder} exists and contains something other than these digits; remove it or name another")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder.parent} cannot be made: {error.strerror}") from error
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for name, index in chosen.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _picture(digits.images[index]).save(path)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _split(labels: np.ndarray, per_class: int, seed: int) -> dict[PurePosixPath, int]:
    """The path of every digit, such as "train/7/0123.png", with its number in the data set."""
    most = (int(np.bincount(labels).min()) - 1) // 2
    if not 1 <= per_class <= most:
        raise InputError(f"digits per class must be from 1 to {most}, so that some are left for test, not {per_class}")
    random = np.random.default_rng(seed)
    chosen: dict[PurePosixPath, int] = {}
    for label in range(10):
        order = random.permutation(np.flatnonzero(labels == label))
        for split, part in zip(("train", "val", "test"), np.split(order, [per_class, 2 * per_class]), strict=True):
            for index in sorted(part.tolist()):
                chosen[PurePosixPath(split, str(label), f"{index:04d}.png")] = index
    return chosen


def _picture(scan: np.ndarray) -> Image.Image:
    """A scan (8, 8), from 0 for no ink to 16 for full ink, as dark ink on white paper."""
    paper = 255 - np.rint(scan * (255 / 16)).astype(np.uint8)
    return Image.fromarray(paper).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _is_empty_folder(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _pictures_in(folder: Path) -> set[PurePosixPath]:
    return {PurePosixPath(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()}
