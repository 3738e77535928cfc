"""Small archives of made-up drawings, zipped or unpacked like the official ones."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ALPHABETS = {"background": {"Beta": 3, "Alpha": 2}, "evaluation": {"Gamma_(new)": 2}}
DRAWERS = 3


def drawing(seed: int) -> NDArray[np.bool_]:
    """(105, 105), True for ink: a few strokes."""
    random = np.random.default_rng(seed)
    ink = np.zeros((105, 105), bool)
    for _ in range(3):
        row, column, length = random.integers(10, 60, 3)
        ink[row : row + 3, column : column + length] = True
        ink[row : row + length // 2, column : column + 3] = True
    return ink


def png(ink: NDArray[np.bool_]) -> bytes:
    """As the official ones: one bit, black on white."""
    file = io.BytesIO()
    Image.fromarray(~ink).save(file, "PNG")
    return file.getvalue()


def pictures(kind: str) -> dict[str, bytes]:
    """Files of images_background or images_evaluation, in no particular order."""
    first = 1 if kind == "background" else 900
    names = [(alphabet, number) for alphabet, count in ALPHABETS[kind].items() for number in range(1, count + 1)]
    return {
        f"images_{kind}/{alphabet}/character{number:02d}/{first + row:04d}_{drawer:02d}.png": png(
            drawing((first + row) * 100 + drawer)
        )
        for row, (alphabet, number) in enumerate(names)
        for drawer in range(DRAWERS, 0, -1)
    }


def runs(count: int = 20) -> dict[str, bytes]:
    """Files of all_runs: test picture i of run r is training picture (i + r) % 20, moved by a pixel."""
    files = {}
    for run in range(1, count + 1):
        lines = []
        for row in range(20):
            ink = drawing(run * 1000 + row)
            files[f"run{run:02d}/training/class{row + 1:02d}.png"] = png(ink)
            item = (row - run) % 20 + 1
            files[f"run{run:02d}/test/item{item:02d}.png"] = png(np.roll(ink, 1, axis=1))
            lines.append(f"run{run:02d}/test/item{item:02d}.png run{run:02d}/training/class{row + 1:02d}.png\n")
        files[f"run{run:02d}/class_labels.txt"] = "".join(sorted(lines)).encode()
    return files


def zipped(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def unpacked(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder
