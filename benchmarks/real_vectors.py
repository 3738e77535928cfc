"""Embeddings of real pictures in any number, for benchmarks of search: all pictures, then distorted views of them.

drawings  all of Omniglot, by the shipped encoder: 256 numbers
photos    cats-dogs, flowers, textures and steel-defects, by MobileNetV3-small of timm: 1024 numbers

The networks run in bfloat16, which is three times as fast where a CPU has it. The gallery is every picture once and
then random views, round after round; queries are further views, which it does not hold. Two sets of queries are made:
rules are set by the first and reported by the second.

    python benchmarks/real_vectors.py --data DATA --cache FOLDER [--vectors 100000]

makes the files of both kinds in FOLDER, which a benchmark then only reads; a file that stands is not made again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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

QUERIES = 1000
KINDS = ("drawings", "photos")
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
        print(kind, cached(kind, args.vectors, args.data, args.cache)[0].shape, flush=True)


def cached(kind: str, n: int, data: Path, cache: Path) -> tuple[Vectors, Vectors, Vectors]:
    """Gallery (n, d), queries that set rules, queries that report, both (QUERIES, d); made where no file has them."""
    path = cache / f"{kind}-{n}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        made = embedded(kind, n + 2 * QUERIES, data)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, made)
        print(f"{kind}: {len(made):,} embedded in {time.perf_counter() - started:.0f} s", flush=True)
    stored = np.load(path, mmap_mode="r")
    return np.array(stored[:n]), np.array(stored[n : n + QUERIES]), np.array(stored[n + QUERIES :])


def embedded(kind: str, n: int, data: Path) -> Vectors:
    """(n, d): the pictures in random order, then random views of random pictures, of unit length."""
    framed, side, distortion, network = drawings(data) if kind == "drawings" else photos(data)
    found: list[Vectors] = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for rows, drawn in batches(len(framed), n):
            strength = distortion if drawn else DISTORTIONS["none"]
            generator = torch.Generator().manual_seed(int(rows[0]) + len(found) * 1_000_003)
            pixels = distort(framed[rows], torch.zeros(len(rows), dtype=torch.int64), strength, side, generator)
            found.append(torch.nn.functional.normalize(network(pixels).float(), dim=1).numpy())
    return np.concatenate(found)


def batches(pictures: int, n: int) -> Iterator[tuple[Tensor, bool]]:
    """Rows of pictures, and whether they are distorted: all once as they are, then round after round."""
    generator, left, drawn = torch.Generator().manual_seed(0), n, False
    while left:
        order = torch.randperm(pictures, generator=generator)[:left]
        for rows in order.split(AT_ONCE):
            yield rows, drawn
        left -= len(order)
        drawn = True


Network = Callable[[Tensor], Tensor]


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
        embeddings: Tensor = embedder._module((pixels * 255).round().clamp(0, 255).to(torch.uint8))
        return embeddings

    return frame_whole(pictures), SIDE, DISTORTIONS["photo"], network


if __name__ == "__main__":
    main()
