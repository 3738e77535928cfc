"""What else a score of unknown pictures could count, and outliers that are made of the training pictures.

    FEWTUNE_DATA=DATA python benchmarks/unknown_parts.py

The draws are those of benchmarks/unknown.py with all classes but some; near unknown pictures alone are asked about.
Each way adds a part to the score of `finetune predict` (largest cosine plus largest ridge output), or changes its
weights or depths. Every part is fitted on the training pictures and counts in standard deviations of these, each held
out itself. Measured are AUROC, the share of unknown pictures accepted where 95 % of the known are, and the share of
the known that is refused where 5 % and 20 % of the unknown are accepted: the order of the pictures, whatever
threshold is chosen. benchmarks/results/unknown_parts.json gets each row; what it has is not made again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from draws import judges
from machine import provenance, revision
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from unknown import BACKBONES, Draw, drawn
from unknown_sets import Pictures, folder_of, pictures_of, read_listing, some_of

from finetune.data.folder import Listing, Sample, list_folder
from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.linear.ridge import Input, Rows, fit_ridge_head
from finetune.models.depth_head import unit_depths
from finetune.open_set.metrics import auroc, fpr_at_tpr

RESULT = Path(__file__).parent / "results" / "unknown_parts.json"
BACKBONE = BACKBONES[0]
# Greek and Tengwar took no part in the choice of the score.
SETS = ("flowers", "textures", "steel-defects", "Greek", "Tengwar")
SIZES, TURNS = {"flowers": (5, 10, 50), "textures": (5, 10, 50), "steel-defects": (5, 10, 50)}, 5
FEW = (5, 10)  # sizes of other sets
NEAREST, RIDGE, HELD_OUT = 5, 0.3, 5
PARTS = ("cosine", "ridge", "margin", "nearest", "variance", "of its class", "shuffled", "halves", "blends")
PRODUCT = {"cosine": 1.0, "ridge": 1.0}
WAYS: dict[str, Mapping[str, float]] = {
    "product": PRODUCT,
    "cosine counts twice": PRODUCT | {"cosine": 2.0},
    "ridge counts twice": PRODUCT | {"ridge": 2.0},
    **{f"and {part}": PRODUCT | {part: 1.0} for part in PARTS[2:5]},
    **{f"and {part}": PRODUCT | {part: 0.5} for part in PARTS[6:]},
    "cosine beside that of its class": {"of its class": 1.0, "ridge": 1.0},
}
# Made outliers of each kind, and of how many parts a side a picture is shuffled.
MADE, GRID, SIDE = 100, 3, 224

Values: TypeAlias = NDArray[np.floating]
# Pooled activations (n, ...) to the value of each part: (n, parts).
Scored = Callable[[Tensor], Tensor]


def main() -> None:
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"rows": []}
    done = {(row["set"], row["size"], row["turn"]) for row in result["rows"]}
    for name in SETS:
        for size in SIZES.get(name, FEW):
            for turn in range(TURNS):
                if (name, size, turn) not in done:
                    ways = measured(name, size, turn)
                    about = {"set": name, "size": size, "turn": turn}
                    result["rows"].append(about | {"ways": ways, "revision": revision()})
                    shown = {way: ways[way][2] for way in ("product", "and variance")}
                    print(name, size, turn, shown, flush=True)
        write_json(RESULT, result | {"backbone": BACKBONE} | provenance())


def measured(name: str, size: int, turn: int) -> dict[str, list[float]]:
    pictures, draw = pictures_of(name, BACKBONE), drawn(pictures_of(name, BACKBONE), size, "many", turn)
    learned, widths = pictures.pooled[draw.learned], pictures.widths
    known, near = pictures.pooled[draw.asked], pictures.pooled[draw.near]
    found = {}
    for depths in (3, 1, 5):
        scored, own = fitted(learned, draw.labels, widths, depths, outliers(name, pictures, draw))
        values = [standard(scored(part), own) for part in (known, near)]
        if depths != 3:
            found[f"{depths} depths"] = figures(*(weighted(each, PRODUCT) for each in values))
            continue
        found |= {way: figures(*(weighted(each, weights) for each in values)) for way, weights in WAYS.items()}
        held_out = classes_held_out(learned, draw.labels, widths, own)
        for way, columns in (("learned weights", [0, 1]), ("learned weights of all", list(range(6)))):
            rows = torch.cat([standard(own, own), held_out])[:, columns].numpy()
            model = LogisticRegression(C=0.1, class_weight="balanced")
            model.fit(rows, np.arange(len(rows)) < len(own))
            found[way] = figures(*(model.decision_function(each[:, columns].numpy()) for each in values))
    return {way: [round(value, 4) for value in values] for way, values in found.items()}


def figures(known: Values, near: Values) -> list[float]:
    refused = [float((known < np.quantile(near, 1 - rate)).mean()) for rate in (0.05, 0.2)]
    return [auroc(known, near), fpr_at_tpr(known, near), *refused]


def standard(values: Tensor, own: Tensor) -> Tensor:
    return (values - own.mean(0)) / own.std(0).clamp_min(1e-6)


def weighted(values: Tensor, weights: Mapping[str, float]) -> Values:
    found: Values = (values @ torch.tensor([weights.get(part, 0.0) for part in PARTS])).numpy()
    return found


def fitted(
    pooled: Tensor, labels: Tensor, widths: tuple[int, ...], depths: int, made: list[Tensor]
) -> tuple[Scored, Tensor]:
    """Every part, fitted on pictures; and what it gives for each of them, left out itself (n, parts)."""
    read, classes, n = list(widths[-depths:]), int(labels.max()) + 1, len(labels)

    def raw(activations: Tensor) -> Tensor:
        return unit_depths(activations[:, -sum(read) :], read)

    def unit(activations: Tensor) -> Tensor:
        return torch.nn.functional.normalize(raw(activations))

    units, rows = unit(pooled), torch.arange(n)
    sums = torch.zeros(classes, units.shape[1]).index_add_(0, labels, units)
    means = torch.nn.functional.normalize(sums)
    ridge = fit_ridge_head(Rows.labelled(pooled, labels, classes), widths, inputs=(Input("read", (1.0,) * depths),))
    assert ridge.unit_weight is not None
    weight, bias = ridge.unit_weight, ridge.bias
    gram = (units @ units.T).double()
    inverse = torch.linalg.inv(gram + RIDGE * torch.eye(n))
    cosines = units @ means.T
    cosines[rows, labels] = (torch.nn.functional.normalize(sums[labels] - units) * units).sum(1)
    own = cosines[rows, labels]
    counts = labels.bincount(minlength=classes).float()
    of_class = (torch.zeros(classes).index_add_(0, labels, own) + 5 * own.mean()) / (counts + 5)
    against = [against_outliers(units, unit(each)) for each in made]
    few = max(1, min(NEAREST, n // classes - 1))

    def scored(activations: Tensor) -> Tensor:
        directions, outputs = unit(activations), raw(activations) @ weight.T + bias
        alike, similar = directions @ means.T, directions @ units.T
        best = outputs.topk(2, 1).values
        spanned = ((similar.double() @ inverse) * similar).sum(1).float() - 1
        parts = [alike.amax(1), best[:, 0], best[:, 0] - best[:, 1], similar.topk(few, 1).values.mean(1), spanned]
        return torch.stack([*parts, alike.amax(1) - of_class[alike.argmax(1)], *(f(directions) for f, _ in against)], 1)

    best = ridge.held_out.topk(2, 1).values
    others = gram.float().fill_diagonal_(-1)
    spanned = (RIDGE - 1 / inverse.diagonal()).float()
    parts = [cosines.amax(1), best[:, 0], best[:, 0] - best[:, 1], others.topk(few, 1).values.mean(1), spanned]
    left_out = [*parts, cosines.amax(1) - of_class[cosines.argmax(1)], *(each for _, each in against)]
    return scored, torch.stack(left_out, 1).float()


def against_outliers(units: Tensor, made: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A ridge regression of pictures (1) against made outliers (-1): its output, and that of pictures left out."""
    if not len(made):
        return lambda directions: torch.zeros(len(directions)), torch.zeros(len(units))
    rows = torch.cat([units, made]).double()
    targets = torch.cat([torch.ones(len(units)), -torch.ones(len(made))]).double()
    counts = torch.cat([torch.full((len(part),), len(rows) / 2 / len(part)) for part in (units, made)]).double()
    inverse = torch.linalg.inv(rows @ rows.T + 1 + torch.diag(1 / counts))
    dual = inverse @ targets
    held_out = (targets - dual / inverse.diagonal())[: len(units)]
    return lambda directions: ((directions.double() @ rows.T + 1) @ dual).float(), held_out.float()


def classes_held_out(pooled: Tensor, labels: Tensor, widths: tuple[int, ...], own: Tensor) -> Tensor:
    """The parts of pictures whose class was held out, in standard deviations (n, parts)."""
    found = []
    for turn in range(min(int(labels.max()) + 1, HELD_OUT)):
        out = labels % HELD_OUT == turn
        renamed = labels[~out].unique(return_inverse=True)[1]
        scored, inner = fitted(pooled[~out], renamed, widths, 3, [pooled[:0]] * 3)
        values = scored(pooled[out])
        of_cosine = standard(values, own)[:, :1]  # cosines of different fits have one scale
        found.append(torch.cat([of_cosine, standard(values, inner)[:, 1:]], 1))
    return torch.cat(found)


def outliers(name: str, pictures: Pictures, draw: Draw) -> list[Tensor]:
    """Activations of each kind of made outliers of the learned classes."""
    made, kinds, classes = made_of(name)
    known = set(pictures.labels[draw.learned].tolist())
    inside = torch.tensor([{int(one), int(other)} <= known for one, other in classes])
    return [made[inside & (kinds == kind)] for kind in range(3)]


@cache
def made_of(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Outliers made of pictures that do not judge: activations, kinds (shuffled, halves, blends), and both classes."""
    random = np.random.default_rng(0)
    with folder_of(name) as folder, tempfile.TemporaryDirectory() as place:
        listing = some_of(list_folder(folder, to_train=False))
        names = sorted({sample.label for sample in listing.samples})
        learned = [sample for sample in listing.samples if not judges(sample, 0)]
        samples, kinds, classes = [], [], []
        for number in range(3 * MADE):
            kind = number % 3
            one, other = (learned[int(at)] for at in random.integers(0, len(learned), 2))
            if kind and one.label == other.label:
                continue
            first, second = (_square(listing.root / sample.path) for sample in (one, other))
            path = Path(place) / f"{number:04d}.png"
            Image.fromarray(_made(kind, first, second, random).astype(np.uint8)).save(path)
            samples.append(Sample(path.name, "made", None, path.stat().st_size))
            kinds.append(kind)
            classes.append((names.index(one.label), names.index((other if kind else one).label)))
        found = read_listing(Listing(Path(place), tuple(samples), ()), BACKBONE)
    return found.pooled, torch.tensor(kinds), torch.tensor(classes)


def _square(path: Path) -> Values:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB").resize((SIDE, SIDE)), np.float32)


def _made(kind: int, one: Values, other: Values, random: np.random.Generator) -> Values:
    if kind == 0:
        side = SIDE // GRID
        tiles = [
            one[y : y + side, x : x + side] for y in range(0, side * GRID, side) for x in range(0, side * GRID, side)
        ]
        order = random.permutation(len(tiles)).reshape(GRID, GRID)
        return np.concatenate([np.concatenate([tiles[at] for at in row], 1) for row in order], 0)
    if kind == 1:
        mixed = one.copy()
        mixed[:, : SIDE // 2] = other[:, SIDE // 4 : SIDE // 4 + SIDE // 2]
        return mixed
    blended: Values = (one + other) / 2
    return blended


if __name__ == "__main__":
    main()
