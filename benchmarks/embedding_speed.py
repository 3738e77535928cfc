"""How fast pictures become vectors: `Embedder.embed` against its parts, plain float32 and the loop that people write.

    FEWTUNE_DATA=DATA python benchmarks/embedding_speed.py --repeats 5

All pictures of cats-dogs through one frozen network on the CPU. In one run, one after the other, --repeats times:

embed     `Embedder.embed` of all paths; the network was converted before, which is timed by itself
reading   the same pictures read, decoded and cropped in the same threads, with no network
network   the same network as it runs in `embed`, in the same threads, over pictures that already lie in memory
float32   `Embedder.embed` with tolerance=1: plain float32 in torch
obvious   benchmarks/obvious_loop.py, a program of its own: timm, PIL, a DataLoader with one worker a core, eager
          float32, evaluation mode; --obvious times only, as it is slow

Medians of pictures per second, and their ratios, go to benchmarks/results/embedding_speed.json. Reading and network
share the cores, so that 1 / (1 / reading + 1 / network) is what `embed` could reach if all around them were free.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from machine import provenance
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec
from finetune.config import MAX_PIXELS
from finetune.data.folder import list_unlabelled
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view
from finetune.features.acceleration import CPU_BATCH, TOLERANCE, WORTH_CONVERTING, Acceleration, accelerated
from finetune.features.forward import in_memory, run_over
from finetune.files.writing import write_json
from finetune.models.backbone import Backbone
from finetune.processes import keep_freed_memory
from finetune.progress import Display

NETWORK = "tf_efficientnet_lite0"
RESULT = Path(__file__).parent / "results" / "embedding_speed.json"

Vectors = NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("FEWTUNE_DATA", "data")))
    parser.add_argument("--network", default=NETWORK, help="a timm name; with random weights where DATA has no file")
    parser.add_argument("--pictures", type=int, help="only so many, to see that it works; writes no result")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--obvious", type=int, default=2, help="in how many repeats the obvious loop takes part")
    args = parser.parse_args()
    keep_freed_memory()  # as the commands do
    paths = list_unlabelled([args.data / "cats-dogs"])
    if args.pictures:
        paths = paths[:: max(1, len(paths) // args.pictures)][: args.pictures]
    weights = args.data / "weights" / f"{args.network}.safetensors"
    result = provenance()
    result["versions"]["openvino"] = importlib.metadata.version("openvino")
    # How near half precision comes says nothing of a network that has not learned.
    result["network"] = {"name": args.network, "weights": "pretrained" if weights.is_file() else "random"}
    result |= {"pictures": len(paths)} | measured(args.network, weights, paths, args.repeats, args.obvious)
    if not args.pictures:
        write_json(RESULT if args.network == NETWORK else RESULT.with_stem(f"{RESULT.stem}_{args.network}"), result)
    print(json.dumps({name: value for name, value in result.items() if name not in ("machine", "versions")}, indent=1))


def measured(network: str, weights: Path, paths: list[Path], repeats: int, obvious_repeats: int) -> dict[str, Any]:
    fast, exact = (opened(network, weights, tolerance) for tolerance in (TOLERANCE, 1.0))
    preprocessing = fast.spec.preprocessing
    assert preprocessing is not None
    pictures = Pictures(paths, evaluation_view(preprocessing), preprocessing.shortest_side, MAX_PIXELS)
    batches = in_memory(fast.fabric, pictures, None)
    started = time.perf_counter()
    chosen = converted(fast, batches[0].pixels, TOLERANCE)
    converting = time.perf_counter() - started
    fast.passes.chosen[CPU_BATCH] = chosen
    # The fastest way there is, however coarse: what there was to refuse.
    fastest = converted(fast, batches[0].pixels, tolerance=0.01)
    device, unit = fast.fabric.device, partial(fast._unit_vectors, chosen.run)
    programs: dict[str, Callable[[], Vectors]] = {
        "embed": lambda: fast.embed(paths, display=Display()),
        "reading": lambda: run_over(device, blind, pictures).values.numpy(),
        "network": lambda: run_over(device, unit, batches).values.numpy(),
        "float32": lambda: exact.embed(paths, display=Display()),
    }
    speeds: dict[str, list[float]] = {name: [] for name in (*programs, "obvious")}
    vectors: dict[str, Vectors] = {}
    for repeat in range(repeats):
        for name, program in programs.items():
            with same_threads():
                started = time.perf_counter()
                vectors[name] = program()
                speeds[name].append(len(paths) / (time.perf_counter() - started))
            print(f"{name} {speeds[name][-1]:.1f} pictures/s", flush=True)
        if repeat < obvious_repeats:
            vectors["obvious"], speed = obvious(network, weights, paths)
            speeds["obvious"].append(speed)
            print(f"obvious {speed:.1f} pictures/s", flush=True)
    median = {name: statistics.median(seen) for name, seen in speeds.items() if seen}
    ratios = {f"embed_over_{name}": median["embed"] / median[name] for name in ("float32", "obvious") if name in median}
    sharing = 1 / (1 / median["reading"] + 1 / median["network"])
    return {
        "runs_as": {"name": chosen.name, "closeness": chosen.closeness, "seconds_to_convert": converting},
        "fastest_way": {"name": fastest.name, "closeness": fastest.closeness, "taken": fastest.name == chosen.name},
        "tolerance": TOLERANCE,
        "pictures_per_second": {"median": median, "all": speeds},
        "embed_over_slower_part": median["embed"] / min(median["reading"], median["network"]),
        "embed_over_parts_sharing_cores": median["embed"] / sharing,
        **ratios,
        "cosine_with": {
            name: cosine(vectors["embed"], vectors[name]) for name in ("float32", "obvious") if name in vectors
        },
    }


def converted(embedder: Embedder, pixels: Tensor, tolerance: float) -> Acceleration:
    return accelerated(
        embedder.passes.module,
        pixels,
        device=embedder.fabric.device,
        batch_size=CPU_BATCH,
        pictures=WORTH_CONVERTING,
        tolerance=tolerance,
        display=Display(Console()),
    )


def opened(network: str, weights: Path, tolerance: float) -> Embedder:
    if weights.is_file():
        return Embedder.load(network, weights=weights, tolerance=tolerance, device="cpu")
    torch.manual_seed(0)
    backbone = Backbone(network)
    spec = EncoderSpec(network, backbone.preprocessing.size, "crop", backbone.preprocessing)
    return Embedder(backbone, spec, tolerance=tolerance, device="cpu")


def blind(pixels: Tensor) -> Tensor:
    return torch.empty(len(pixels), 1)


def obvious(network: str, weights: Path, paths: list[Path]) -> tuple[Vectors, float]:
    """Vectors, and pictures per second, of a program in which nothing of this project takes part."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "vectors.npy"
        program = Path(__file__).with_name("obvious_loop.py")
        given = str(weights) if weights.is_file() else ""
        done = subprocess.run(
            [sys.executable, program, network, given, out],
            input="\n".join(map(str, paths)),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return np.load(out), float(done.stdout)


@contextmanager
def same_threads() -> Iterator[None]:
    """No program leaves another number of torch's threads to the next than there was before it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cosine(one: Vectors, other: Vectors) -> dict[str, float]:
    found = F.cosine_similarity(torch.from_numpy(one).double(), torch.from_numpy(other).double())
    return {"smallest": float(found.min()), "mean": float(found.mean())}


if __name__ == "__main__":
    main()
