"""Embeddings of real pictures in any number, for benchmarks of search: all pictures, then distorted views of them.

drawings  all of Omniglot, by the shipped encoder: 256 numbers
photos    cats-dogs, flowers, textures and steel-defects, by MobileNetV3-small of timm: 1024 numbers

The networks run in bfloat16, which is three times as fast where a CPU has it. The gallery is every picture once and
then random views, round after round; a smaller gallery is the beginning of a larger one. Queries are further views,
which no gallery holds. Two sets of queries are made, each by a seed of its own: "rule" queries are for whoever sets a
constant, and "report" queries for the table alone.

    python benchmarks/real_vectors.py --data DATA --cache FOLDER [--vectors 100000] [--kinds drawings photos]

makes both in FOLDER, in files of 10,000 vectors; a file that stands is not made again.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewshot.embedding.augmentation import distort
from fewshot.embedding.distortions import DISTORTIONS, Distortion
from fewshot.embedding.embedder import Embedder
from fewshot.embedding.framing import FramedPictures, frame_drawings, frame_whole
from fewshot.omniglot.dataset import read_omniglot
from finetune.data.folder import list_unlabelled
from finetune.files.writing import replacing

KINDS = ("drawings", "photos")
PURPOSES = {"rule": 1, "report": 2}  # seeds of the queries; 0 is the gallery's
QUERIES = 1000
IN_FILE = 10_000  # vectors
PHOTOS = ("cats-dogs", "flowers", "textures", "steel-defects")
BACKBONE, SIDE = "tf_mobilenetv3_small_100", 128
DECODED = 160  # pixels
AT_ONCE = 500

Vectors = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the embeddings, outside the repository")
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    for kind in args.kinds:
        for purpose in PURPOSES:
            queries(kind, purpose, args.data, args.cache)
        make_gallery(kind, args.vectors, args.data, args.cache)


def gallery(kind: str, n: int, data: Path, cache: Path) -> Vectors:
    """(n, d) float32, of unit length; made where no file has them."""
    paths = make_gallery(kind, n, data, cache)
    found = np.empty((n, np.load(paths[0], mmap_mode="r").shape[1]), np.float32)
    for first, path in zip(range(0, n, IN_FILE), paths, strict=True):
        found[first : first + IN_FILE] = np.load(path, mmap_mode="r")[: n - first]
    return found


def make_gallery(kind: str, n: int, data: Path, cache: Path) -> list[Path]:
    firsts = range(0, n, IN_FILE)
    return [stored(cache / f"{kind}-{first}.npy", kind, 0, first, first + IN_FILE, data) for first in firsts]


def queries(kind: str, purpose: str, data: Path, cache: Path) -> Vectors:
    """(QUERIES, d) float32, of unit length, for a purpose of PURPOSES."""
    path = stored(cache / f"{kind}-{purpose}.npy", kind, PURPOSES[purpose], 0, QUERIES, data)
    found: Vectors = np.load(path)
    return found


def stored(path: Path, kind: str, seed: int, first: int, end: int, data: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        made = embedded(kind, seed, first, end, data)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, made)
        print(f"{path.name}: {len(made):,} vectors in {time.perf_counter() - started:.0f} s", flush=True)
    return path


def embedded(kind: str, seed: int, first: int, end: int, data: Path) -> Vectors:
    """(end - first, d): vectors `first` to `end` of the endless sequence of a seed, of unit length."""
    framed, side, distortion, network = source(kind, data)
    found: list[Vectors] = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for batch in batches(len(framed), seed, end):
            if batch.first + len(batch.rows) <= first:
                continue
            strength = distortion if batch.distorted else DISTORTIONS["none"]
            generator = torch.Generator().manual_seed(int(batch.rows[0]) + batch.number * 1_000_003 + seed * 7_000_003)
            symmetry = torch.zeros(len(batch.rows), dtype=torch.int64)
            pixels = distort(framed[batch.rows], symmetry, strength, side, generator)
            vectors = torch.nn.functional.normalize(network(pixels).float(), dim=1).numpy()
            found.append(vectors[max(first - batch.first, 0) : end - batch.first])
    return np.concatenate(found)


class Batch(NamedTuple):
    number: int
    first: int  # place of its first picture in the sequence
    rows: Tensor  # of the pictures
    distorted: bool


def batches(pictures: int, seed: int, end: int) -> Iterator[Batch]:
    """Until place `end`: all pictures in random order, round after round, in the gallery's first as they are."""
    generator, first, number = torch.Generator().manual_seed(seed), 0, 0
    while True:
        distorted = seed > 0 or first > 0
        for rows in torch.randperm(pictures, generator=generator).split(AT_ONCE):
            if first >= end:
                return
            yield Batch(number, first, rows, distorted)
            first, number = first + len(rows), number + 1


Network = Callable[[Tensor], Tensor]


@functools.cache
def source(kind: str, data: Path) -> tuple[FramedPictures, int, Distortion, Network]:
    return drawings(data) if kind == "drawings" else photos(data)


def drawings(data: Path) -> tuple[FramedPictures, int, Distortion, Network]:
    embedder = Embedder.load("omniglot", device="cpu")
    framed = frame_drawings(read_omniglot(data / "omniglot").pictures, embedder.spec.side)
    return framed, embedder.spec.side, DISTORTIONS["drawing"], embedder.network


def photos(data: Path) -> tuple[FramedPictures, int, Distortion, Network]:
    embedder = Embedder.load(BACKBONE, weights=data / "weights" / f"{BACKBONE}.safetensors", device="cpu")
    paths = list_unlabelled([data / name for name in PHOTOS])
    pictures = torch.empty(len(paths), 3, DECODED, DECODED, dtype=torch.uint8)
    for row, path in enumerate(paths):
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * DECODED, 2 * DECODED))
            image = opened.convert("RGB").resize((DECODED, DECODED))
        pictures[row] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def network(pixels: Tensor) -> Tensor:
        # Embedders of timm models take uint8.
        embeddings: Tensor = embedder.passes.module((pixels * 255).round().clamp(0, 255).to(torch.uint8))
        return embeddings

    return frame_whole(pictures), SIDE, DISTORTIONS["photo"], network


if __name__ == "__main__":
    main()
