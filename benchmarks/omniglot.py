"""Every published protocol on Omniglot: encoders trained for each, baselines, speed, and whether FAISS and torch agree.

    python benchmarks/omniglot.py --data DATA --runs runs/omniglot [--threads N] [--only ROW ...]

DATA holds omniglot/ (see data/omniglot.md). Runs that are in --runs already are not made again, and one that was killed
goes on. Each row goes into benchmarks/results/omniglot.json as it is done; --only does some of them.

Each encoder is trained on what its protocol allows, and the evaluation characters are touched here alone, by the
finished encoders: what recipes were chosen by are validation alphabets.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import provenance
from rich.console import Console

from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder_files import CONFIG_FILE
from fewshot.evaluation.benchmark import benchmark, task_name
from fewshot.evaluation.embedded import embed_once
from fewshot.evaluation.episodes import arrange, sample, score_episodes
from fewshot.omniglot.dataset import read_omniglot
from fewshot.omniglot.splits import SPLITS
from fewshot.search.engines import ROUNDING
from fewshot.search.index import Index
from fewshot.training.config import SiameseConfig
from fewshot.training.train import metrics_of, train_omniglot
from finetune.errors import InputError
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "omniglot.json"
EPISODES = 100_000
MOST_DIMENSIONS = (64, 128, 256)


@dataclass(frozen=True)
class Row:
    """A line of the table. train: what train_omniglot is told, None for what is not trained here; recipe: what departs
    from the usual one; model: what is measured where nothing is trained; run: the row whose encoder it is, where it is
    another's. rerank: as in fewshot.evaluation.models.open_model."""

    protocols: tuple[str, ...]
    train: dict[str, Any] | None = None
    recipe: dict[str, Any] | None = None
    model: str | None = None
    run: str | None = None
    rerank: bool = False


USUAL: dict[str, Any] = {"side": 40, "early_side": 32}
OF_BACKGROUND = ("lake", "within", "all-way-659", "koch")
BACKGROUND: dict[str, Any] = {"split": "lake", "everything": True}
BACKGROUND_RECIPE = USUAL | {"minutes": 70.0}
KOCH: dict[str, Any] = {"split": "koch"}
KOCH_RECIPE = USUAL | {"epochs": 120}
OF_VINYALS = ("vinyals", "vinyals-upright", "all-way-423", "all-way-1692")

ROWS: dict[str, Row] = {
    "pixels": Row(("lake",), model="pixels"),
    "hausdorff": Row(("lake",), model="hausdorff"),
    "affine": Row(("lake",), model="affine"),
    "fully-connected": Row(
        ("lake",), {"split": "lake", "everything": True}, {"network": "fewtune_fully_connected", "minutes": 5.0}
    ),
    "koch2015": Row(
        ("lake",),
        {"split": "lake", "everything": True},
        {"network": "fewtune_koch2015", "alphabets": 2, "lr": 3e-4, "minutes": 10.0},
    ),
    "background": Row(OF_BACKGROUND, BACKGROUND, BACKGROUND_RECIPE),
    "background-reranked": Row(("lake",), BACKGROUND, BACKGROUND_RECIPE, run="background", rerank=True),
    "minimal": Row(("lake-minimal",), {"split": "lake-minimal"}, USUAL | {"minutes": 8.0}),
    "koch": Row(("koch",), KOCH, KOCH_RECIPE),
    "koch-again": Row(("koch",), KOCH, KOCH_RECIPE, run="koch", rerank=True),
    "vinyals": Row(OF_VINYALS, {"split": "vinyals", "everything": True}, USUAL | {"epochs": 70}),
    "one-example": Row(
        OF_VINYALS,
        {"split": "vinyals", "everything": True, "examples": 1, "self_supervised": True},
        USUAL | {"minutes": 12.0},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--runs", type=Path, default=Path("runs/omniglot"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", choices=[*ROWS, "speed"], default=[*ROWS, "speed"])
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    display = Display(Console())
    for name in args.only:
        if name != "speed":
            keep(args.result, "rows", name, row(name, ROWS[name], args, display))
    if "speed" in args.only:
        keep(args.result, "speed", None, speed(args))


def row(name: str, wanted: Row, args: argparse.Namespace, display: Display) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": args.seed}
    model = wanted.model
    if wanted.train is not None:
        run = args.runs / f"{wanted.run or name}-{args.seed}"
        recipe = SiameseConfig(**(wanted.recipe or {}), seed=args.seed)
        going_on = (run / CONFIG_FILE).exists()
        train_omniglot(run, **wanted.train, config=recipe, data=args.data, resume=going_on, display=display)
        config = read_json(run / CONFIG_FILE)
        found |= {"training": metrics_of(run), "recipe": config["recipe"], "split": config["split"]}
        model = str(run)
    assert model is not None, name
    started = time.perf_counter()
    report = benchmark(
        model,
        wanted.protocols,
        rerank=wanted.rerank,
        seed=args.seed,
        data=args.data,
        display=display,
    )
    found |= {"seconds": round(time.perf_counter() - started, 1), "fingerprint": report.fingerprint}
    # What the parts of a figure are is needed to compare models, which is not done here.
    found["results"] = [{k: v for k, v in asdict(result).items() if k != "parts"} for result in report.results]
    for result in report.results:
        low, high = result.interval
        print(f"{name:16} {task_name(result):32} {result.accuracy:.2%} ({low:.1%} to {high:.1%})", flush=True)
    return found


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Episodes per second, sampling included, beside embedding; and the neighbours that the index finds."""
    embedder = Embedder.load("omniglot")
    omniglot = read_omniglot(args.data)
    started = time.perf_counter()
    embedded = embed_once(omniglot, embedder.embed_drawings)
    embedding = time.perf_counter() - started
    rates = {}
    for dimensions in sorted({*MOST_DIMENSIONS, embedder.width}):
        generator = torch.Generator().manual_seed(args.seed)
        vectors = torch.randn(len(embedded), dimensions, generator=generator)
        vectors = embedded.vectors if dimensions == embedder.width else vectors
        pool = arrange(embedded.label)
        started = time.perf_counter()
        score_episodes(vectors, sample(pool, EPISODES, way=20, shot=1, generator=generator))
        rates[str(dimensions)] = round(EPISODES / (time.perf_counter() - started))
    return {
        "threads": args.threads,
        "drawings": len(embedded),
        "embedding_seconds": round(embedding, 2),
        "episodes": EPISODES,
        "episodes_per_second_by_dimensions": rates,
        "neighbours": neighbours(embedded.only(SPLITS["evaluation"]).vectors.cpu().numpy()),
    }


def neighbours(vectors: Any) -> dict[str, Any]:
    """Every drawing of the evaluation set asked of all of them, ten neighbours, by the index on each device that is
    here."""
    started = time.perf_counter()
    expected, nearest = (found.numpy() for found in (torch.from_numpy(vectors) @ torch.from_numpy(vectors).T).topk(10))
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {"vectors": len(vectors), "k": 10, "reference": "torch"}
    found["torch"] = {"seconds": round(seconds, 3)}
    for engine, device in (("faiss-cpu", "cpu"), ("faiss-gpu", "cuda")):
        try:
            started = time.perf_counter()
            index = Index(vectors.shape[1], kind="exact", device=device)
            index.add([str(row) for row in range(len(vectors))], vectors)
            answer = index.search(vectors, 10)
            seconds = time.perf_counter() - started
        except InputError as error:
            found[engine] = {"not run": str(error)}
            continue
        rows = answer.keys.astype(np.int64)
        true = np.einsum("qd,qkd->qk", vectors, vectors[rows])
        found[engine] = {
            "queries_that_differ_ties_aside": int((np.abs(true - expected) > ROUNDING).any(1).sum()),
            "seconds": round(seconds, 3),
            "rows_that_differ": int((nearest != rows).any(1).sum()),
        }
    return found


def keep(path: Path, section: str, name: str | None, value: dict[str, Any]) -> None:
    """Into the result file, with where it was measured: rows may come from several sessions on several machines."""
    result = read_json(path) if path.exists() else {"rows": {}, "speed": None}
    entry = value | {"measured": provenance()}
    if name is None:
        result[section] = entry
    else:
        result[section][name] = entry
    write_json(path, result)


if __name__ == "__main__":
    main()
