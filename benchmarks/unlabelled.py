"""What unlabelled pictures gain, and whether the pictures that are proposed for labelling teach more than others.

    FEWTUNE_DATA=DATA python benchmarks/unlabelled.py [--backbones ...] [--datasets ...] [--sizes 5 1 2 10 20]
        [--draws 10] [--kinds plain unbalanced half none ten] [--label-next]

The pictures that judge (benchmarks/draws.py) choose nothing. Of the others, so many of each class have labels, and the
rest has none. Heads are solved by the product's own functions on activations that are read once. Kinds of unlabelled
pictures: plain, all that are left; unbalanced, nine in ten of one class; half, as many again of another data set; none,
of another data set alone; ten, only ten. --label-next begins with 5 of each class and adds labels to 20 more: those
that `finetune inspect --label-next 20` lists, or random ones. Figures are appended to
benchmarks/results/unlabelled.json and not made again.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from draws import BACKBONE, DATASETS, FAST_BACKBONE, judges
from machine import provenance, revision
from torch import Tensor

from finetune.config import Config
from finetune.data.folder import list_folder
from finetune.features.extraction import read_pictures
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.linear.head import Heads, solve_heads
from finetune.linear.label_next import label_next
from finetune.linear.unlabelled import Mixture, refine_heads
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "unlabelled.json"
KINDS = ("plain", "unbalanced", "half", "none", "ten")
OTHER = {"cats-dogs": "flowers", "flowers": "textures", "textures": "flowers", "steel-defects": "textures"}
BEGIN, ADDED = 5, 20


@dataclass(frozen=True)
class Pictures:
    """The readable pictures of a data set: activations (n, sum of widths), labels (n,), and whether each judges."""

    pooled: Tensor
    labels: Tensor
    judging: Tensor
    widths: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=[FAST_BACKBONE, BACKBONE])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--sizes", nargs="+", type=int, default=[5, 1, 2, 10, 20])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["plain"])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--label-next", action="store_true")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    result: dict[str, Any] = read_json(args.result) if args.result.exists() else {"runs": [], "label_next": []}
    torch.set_num_threads(1)
    read: dict[tuple[str, str], Pictures] = {}

    def pictures(backbone: str, dataset: str) -> Pictures:
        if (backbone, dataset) not in read:
            read[backbone, dataset] = read_set(backbone, dataset)
        return read[backbone, dataset]

    runs: list[dict[str, Any]]
    if args.label_next:
        runs = [
            {"backbone": backbone, "dataset": dataset, "seed": seed}
            for backbone, dataset, seed in product(args.backbones, args.datasets, range(args.draws))
        ]
    else:
        runs = [
            {"backbone": backbone, "dataset": dataset, "size": size, "kind": kind, "seed": seed}
            for backbone, kind, size, dataset, seed in product(
                args.backbones, args.kinds, args.sizes, args.datasets, range(args.draws)
            )
        ]
    section = "label_next" if args.label_next else "runs"
    for run in runs:
        if any(run.items() <= other.items() for other in result[section]):
            continue
        own = pictures(run["backbone"], run["dataset"])
        if args.label_next:
            found = labelled_next(own, run["seed"])
        else:
            mixed = run["kind"] in ("half", "none")
            found = learned(own, pictures(run["backbone"], OTHER[run["dataset"]]) if mixed else None, run)
        result[section].append(run | found | {"revision": revision()})
        if run["seed"] == args.draws - 1:
            write_json(args.result, result | provenance())
    print(table(result["runs"]), table_of_labels(result["label_next"]), sep="\n\n")


def read_set(backbone_name: str, dataset: str) -> Pictures:
    data = Path(os.environ["FEWTUNE_DATA"])
    config = Config(backbone=backbone_name, weights=str(data / "weights" / f"{backbone_name}.safetensors"))
    backbone = Backbone(backbone_name)
    load_pretrained(backbone, config.weights, Display())
    stages = PooledStages(backbone)
    listing = list_folder(data / dataset, to_train=False)
    outputs = read_pictures(open_engine("cpu", "auto"), stages, listing, config, Display())
    samples = [listing.samples[index] for index in outputs.index.tolist()]
    labels = torch.tensor([listing.classes.index(sample.label) for sample in samples])
    judging = torch.tensor([judges(sample, 0) for sample in samples])
    return Pictures(outputs.values[:, 0], labels, judging, list(stages.widths))


def drawn(own: Pictures, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Positions of `size` labelled pictures of each class, and of the others that do not judge, in random order."""
    chosen: list[int] = []
    pool = (~own.judging).nonzero()[:, 0].tolist()
    for label in range(int(own.labels.max()) + 1):
        members = [row for row in pool if own.labels[row] == label]
        random.Random(f"{seed} {label}").shuffle(members)
        chosen += members[:size]
    left = sorted(set(pool) - set(chosen))
    random.Random(seed).shuffle(left)
    return torch.tensor(chosen), torch.tensor(left)


def unlabelled_of(own: Pictures, left: Tensor, other: Pictures | None, kind: str, seed: int) -> Tensor:
    if kind == "unbalanced":
        most = own.labels[left] == seed % (int(own.labels.max()) + 1)
        many, few = left[most], left[~most]
        return own.pooled[torch.cat([many, few[: max(1, len(many) // 9)]])]
    if kind == "ten":
        return own.pooled[left[:10]]
    if other is None:
        return own.pooled[left]
    order = torch.randperm(len(other.labels), generator=torch.Generator().manual_seed(seed))[: len(left)]
    return other.pooled[order] if kind == "none" else torch.cat([own.pooled[left], other.pooled[order]])


def solved(own: Pictures, known: Tensor, unlabelled: Tensor) -> tuple[Heads, Heads, Mixture]:
    """Heads without and with unlabelled pictures, as `fit` solves them where all labelled pictures may train."""
    train, val = (own.pooled[known], own.labels[known]), (own.pooled[:0], own.labels[:0])
    heads = solve_heads(train, val, own.widths, learn_from_val=True)
    return heads, *refine_heads(heads, train, val, unlabelled, own.widths)


def right(own: Pictures, heads: Heads) -> float:
    found = heads.kept(own.pooled[own.judging]).argmax(1)
    return float((found == own.labels[own.judging]).double().mean())


def learned(own: Pictures, other: Pictures | None, run: dict[str, Any]) -> dict[str, Any]:
    known, left = drawn(own, run["size"], run["seed"])
    unlabelled = unlabelled_of(own, left, other, run["kind"], run["seed"])
    started = time.perf_counter()
    heads, refined, mixture = solved(own, known, unlabelled)
    return {
        "unlabelled": len(unlabelled),
        "without": right(own, heads),
        "with": right(own, refined),
        "strength": mixture.strength,
        "cross_validated": [mixture.without, mixture.accuracy],
        "seconds": time.perf_counter() - started,
    }


def labelled_next(own: Pictures, seed: int) -> dict[str, Any]:
    known, left = drawn(own, BEGIN, seed)
    _, refined, mixture = solved(own, known, own.pooled[left])
    probabilities = refined.kept(own.pooled[left]).softmax(1)
    listed = label_next(own.pooled[known], own.pooled[left], own.widths, probabilities, mixture.weights, ADDED)
    found: dict[str, Any] = {}
    for name, rows in (("listed", [each.row for each in listed]), ("random", list(range(ADDED)))):
        kept = torch.ones(len(left), dtype=torch.bool)
        kept[rows] = False
        heads, refined, _ = solved(own, torch.cat([known, left[rows]]), own.pooled[left[kept]])
        found |= {name: right(own, heads), f"{name}_with_unlabelled": right(own, refined)}
    return found


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each backbone, kind, size and data set: accuracy without, gain in points and its worst draw."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        cells[run["backbone"], run["kind"], run["size"], run["dataset"]].append(run)
    lines, means = [], defaultdict(list)
    for (backbone, kind, size, dataset), members in cells.items():
        gains = [100 * (run["with"] - run["without"]) for run in members]
        means[backbone, kind, size].append(statistics.mean(gains))
        lines.append(
            f"{backbone} {kind} {size} {dataset}: {statistics.mean(run['without'] for run in members):.1%} "
            f"{statistics.mean(gains):+.2f}, worst draw {min(gains):+.1f}, strength "
            f"{statistics.mean(run['strength'] for run in members):.2f} ({len(members)} draws)"
        )
    for cell, values in means.items():
        lines.append(f"{' '.join(map(str, cell))}: {statistics.mean(values):+.2f} on average, {min(values):+.2f} least")
    return "\n".join(lines)


def table_of_labels(runs: list[dict[str, Any]]) -> str:
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        cells[run["backbone"], run["dataset"]].append(run)
    lines = []
    for (backbone, dataset), members in cells.items():
        for name in ("", "_with_unlabelled"):
            pair = [statistics.mean(run[which + name] for run in members) for which in ("random", "listed")]
            lines.append(
                f"{backbone} {dataset}, {ADDED} labels more{name.replace('_', ' ')}: random {pair[0]:.1%}, "
                f"listed {pair[1]:.1%}, {100 * (pair[1] - pair[0]):+.2f} ({len(members)} draws)"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
