"""Rates of one core of this machine, measured in about two minutes, and of cards, measured or published."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from embedding_speed import converted, opened
from scale_model import Network, Rates
from torch import Tensor, nn

from fewshot.embedding.embedder import Embedder
from fewshot.search.index import Index
from finetune.config import MAX_PIXELS
from finetune.data.folder import list_unlabelled
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view
from finetune.features.acceleration import CPU_BATCH, TOLERANCE, filled
from finetune.files.reading import read_json

NETWORKS = ("tf_mobilenetv3_small_100", "tf_efficientnet_lite0", "vit_small_patch16_224")
# Pictures per second of one card in mixed precision, pictures in memory: huggingface/pytorch-image-models, results/
# benchmark-infer-amp-nhwc-pt240-cu124-rtx4090.csv and benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv.
PUBLISHED = {
    "tf_mobilenetv3_small_100": (43574.18, 7330.24),
    "tf_efficientnet_lite0": (9765.44, 2134.89),
    "vit_small_patch16_224": (7695.68, 1057.92),
}
SOURCE = "published by timm: forward pass on an RTX 4090, training on an RTX 3090"
GPU = Path(__file__).parent / "results" / "gpu.json"
# Seconds of processor time that one measurement takes at least.
LEAST = 0.5
BLOCK = 64 << 20
FILES = 20_000


def measured_rates(data: Path) -> Rates:
    """All rates. data: folder with the photographs of cats-dogs and with weights/."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    paths = list_unlabelled([data / "cats-dogs"])
    networks = tuple(network_rates(name, data, paths) for name in NETWORKS)
    read, write = disk()
    list_files, key_bytes = listing()
    return Rates(
        networks=networks,
        decode=decoding(opened_network(NETWORKS[1], data), paths[::10]),
        picture_bytes=statistics.mean(path.stat().st_size for path in paths),
        list_files=list_files,
        key_bytes=key_bytes,
        **multiplications(),
        **compressed(),
        read=read,
        write=write,
    )


def per_second(job: Callable[[], Any], count: float, repeats: int = 5) -> float:
    """`count` over the median of processor seconds of `job`, all threads of the process together."""
    job()  # warm
    seconds = []
    for _ in range(repeats):
        start, calls = time.process_time(), 0
        while (spent := time.process_time() - start) < LEAST / repeats or not calls:
            job()
            calls += 1
        seconds.append(spent / calls)
    return count / statistics.median(seconds)


# --- pictures and networks --------------------------------------------------------------------------------------------


def opened_network(name: str, data: Path) -> Embedder:
    return opened(name, data / "weights" / f"{name}.safetensors", TOLERANCE)


def pictures_of(embedder: Embedder, paths: list[Path]) -> Pictures:
    preprocessing = embedder.spec.preprocessing
    assert preprocessing is not None
    return Pictures(paths, evaluation_view(preprocessing), preprocessing.shortest_side, MAX_PIXELS)


def decoding(embedder: Embedder, paths: list[Path]) -> float:
    pictures = pictures_of(embedder, paths)
    return per_second(lambda: pictures.batch(range(len(paths))), len(paths), repeats=3)


def network_rates(name: str, data: Path, paths: list[Path]) -> Network:
    embedder = opened_network(name, data)
    pixels = pictures_of(embedder, paths[: 2 * CPU_BATCH]).batch(range(2 * CPU_BATCH)).pixels
    run = converted(embedder, pixels[:CPU_BATCH], TOLERANCE).run
    forward = per_second(lambda: [run(filled(part, CPU_BATCH)) for part in pixels.split(CPU_BATCH)], len(pixels))
    embed_card, train_card, source = cards(name)
    return Network(name, embedder.width, forward, training(embedder, pixels), embed_card, train_card, source)


def training(embedder: Embedder, pixels: Tensor) -> float:
    """Pictures per second of steps with gradients of all weights, plain float32."""
    network = embedder.network.train()
    head = nn.Linear(embedder.width, 10)
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], 1e-4)
    batch, labels = pixels[:CPU_BATCH].float() / 255, torch.arange(CPU_BATCH) % 10

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(network(batch)), labels).backward()
        optimizer.step()

    found = per_second(step, CPU_BATCH, repeats=3)
    network.eval()
    return found


def cards(name: str) -> tuple[float, float, str]:
    """Forward pass and training on one card: published rates; the forward pass of benchmarks/results/gpu.json where it
    has the network."""
    embed, train = PUBLISHED[name]
    for row in read_json(GPU)["rows"].values() if GPU.exists() else ():
        measured = row.get("measured", {})
        if measured.get("network") == name:
            forward = float(measured["pictures_per_second"]["network"])
            return forward, train, "measured for the forward pass, published by timm for training on an RTX 3090"
    return embed, train, SOURCE


# --- files ------------------------------------------------------------------------------------------------------------


def listing() -> tuple[float, float]:
    """Files found per second of processor time in a folder of empty files, and the memory of each found path."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(FILES):
            (Path(folder) / f"{number:08d}.jpg").touch()
        tracemalloc.start()
        found = list_unlabelled([Path(folder)])
        memory = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(found) == FILES
        return per_second(lambda: list_unlabelled([Path(folder)]), FILES, repeats=3), memory / FILES


def disk() -> tuple[float, float]:
    """Bytes per second of elapsed time, read and written in one piece; what the system keeps in memory is dropped."""
    block = os.urandom(BLOCK)
    read, written = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block"
        for _ in range(3):
            start = time.perf_counter()
            with path.open("wb") as file:
                file.write(block)
                file.flush()
                os.fsync(file.fileno())
            written.append(BLOCK / (time.perf_counter() - start))
            with path.open("rb") as file:
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                start = time.perf_counter()
                file.read()
                read.append(BLOCK / (time.perf_counter() - start))
    return statistics.median(read), statistics.median(written)


# --- vectors ----------------------------------------------------------------------------------------------------------

WIDTH, VECTORS, QUERIES = 256, 50_000, 200


def clustered(count: int, seed: int) -> np.ndarray[Any, Any]:
    """Unit vectors around 500 centres."""
    centres = np.random.default_rng(0).normal(size=(500, WIDTH))
    random = np.random.default_rng(seed)
    rows = centres[random.integers(0, len(centres), count)] + 0.5 * random.normal(size=(count, WIDTH))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def multiplications() -> dict[str, float]:
    """Multiplications per second of one core: in torch, in an exact search of the index, and in one of FAISS."""
    vectors, queries = clustered(VECTORS, 1), clustered(QUERIES, 2)
    matrix, others = torch.from_numpy(vectors), torch.from_numpy(queries)
    index = Index(WIDTH, kind="exact", device="cpu")
    index.add([str(number) for number in range(VECTORS)], vectors)
    flat = faiss.IndexFlatIP(WIDTH)
    flat.add(vectors)
    count = float(VECTORS) * QUERIES * WIDTH
    return {
        "products": per_second(lambda: others @ matrix.T, count, repeats=3),
        "exact": per_second(lambda: index.search(queries, 10), count, repeats=3),
        "assign": per_second(lambda: flat.search(queries, 1), count, repeats=3),
    }


def compressed() -> dict[str, float]:
    """Bytes of codes per second that a search visits, and numbers per second that are compressed: PQ, 4 bits for 2."""
    vectors, queries = clustered(VECTORS, 1), clustered(QUERIES, 2)
    index = faiss.index_factory(WIDTH, f"PQ{WIDTH // 2}x4fs", faiss.METRIC_INNER_PRODUCT)
    index.train(vectors[:10_000])
    index.add(vectors)
    visited = float(VECTORS) * QUERIES * WIDTH / 4
    return {
        "codes": per_second(lambda: index.search(queries, 10), visited, repeats=3),
        "encode": per_second(lambda: index.sa_encode(vectors[:5000]), 5000.0 * WIDTH, repeats=3),
    }
