"""Pictures of none of the classes: which score finds them, and whether a threshold keeps to the rate asked for.

    FEWTUNE_DATA=DATA python benchmarks/unknown.py [--backbones NAME ...] [--sets NAME ...] [--sizes 1 5 10 50]

Of each set some classes are left out, and a head and every score learn from so many pictures of each other class.
Known pictures are those of the learned classes that judge (benchmarks/draws.py). Unknown are those of the classes left
out ("near"), and pictures of the other sets ("far"; alphabets are not far from each other). Measured are, for each
score: AUROC, the share of unknown pictures accepted where 95 % of the known are, and OSCR. And for the threshold of the
product, which is chosen on the training pictures alone: the share of unknown pictures really accepted beside the rate
asked for, and the share of known ones refused; again with BACKGROUND pictures of the kind that is asked about.

Scores: largest softmax, largest logit and energy of the head of `finetune fit`; Mahalanobis distance and relative
Mahalanobis distance with Ledoit-Wolf shrinkage and cosine with the five nearest pictures, on the last three depths; and
the score of the product. That score and the constants of its threshold were chosen on tf_mobilenetv3_small_100 and the
sets of CHOSEN_ON. Rows of the other network and of the alphabets chose nothing: they are the result.

With --shifts, known pictures alone are asked about, once as they are and then as from another source (grey,
recompressed, smaller, blurred, brighter): the share refused, also with BACKGROUND pictures of a class left out, with as
many of another set, and after ADDED pictures of each class from that source are learned from too.

A result that would show failure: a score that is worse than the largest softmax on any set, pictures accepted far from
the rate asked for on average, or a set where nearly all known pictures are refused.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import provenance, revision
from torch import Tensor
from unknown_scores import SCORES, peer_scores
from unknown_sets import ALPHABETS, SETS, SHIFTS, Pictures, pictures_of

from finetune.files.reading import read_json
from finetune.files.writing import write_json
from finetune.open_set.evidence import gather
from finetune.open_set.metrics import auroc, fpr_at_tpr, oscr
from finetune.open_set.unknown_model import UnknownModel

RESULT = Path(__file__).parent / "results" / "unknown.json"
BACKBONES = ("tf_mobilenetv3_small_100", "tf_efficientnet_lite0")
CHOSEN_ON = ("flowers", "textures", "steel-defects", "cats-dogs", "digits")
SIZES = (1, 5, 10, 50)
RATES = (0.01, 0.05, 0.1, 0.2)
BACKGROUND = 40
# Draws of classes that are left out: one class of few, or a tenth of many. Pairs of classes are drawn as often.
TURNS = 5
# Known pictures from another source: sets, pictures a class, and how many from there are learned from.
SHIFTED, SHIFTED_SIZES, ADDED = ("flowers", "steel-defects"), (10, 50), 5
# The set that background pictures of another kind come from, and the one that unknown pictures are then asked of.
OTHER, FAR_SET = "textures", "cats-dogs"
# Most known pictures that judge, and most of each far set.
KNOWN, FAR = 300, 60


@dataclass(frozen=True)
class Draw:
    """learned: rows that are learned from, with labels. asked: rows of known pictures, with labels. near: rows of
    classes left out, and of pictures of theirs that may be given as background."""

    learned: Tensor
    labels: Tensor
    asked: Tensor
    truth: Tensor
    near: Tensor
    background: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=BACKBONES)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=SIZES)
    parser.add_argument("--again", action="store_true", help="forget the rows of other revisions")
    parser.add_argument("--shifts", action="store_true", help="known pictures from another source, and nothing else")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    result: dict[str, Any] = read_json(args.result) if args.result.exists() else {"rows": []}
    if args.again:
        part = "shifts" if args.shifts else "rows"
        result[part] = [row for row in result.get(part, []) if row["revision"] == revision()]
    if args.shifts:
        write_json(args.result, result | {"shifts": shifts(result.get("shifts", []))})
        return
    done = {key(row) for row in result["rows"]}
    for backbone in args.backbones:
        for name in args.sets:
            for about in draws_of(name, backbone, args.sizes):
                if key(about) not in done:
                    result["rows"].append(about | measured(about) | {"revision": revision()})
                    print(told(result["rows"][-1]), flush=True)
            write_json(args.result, result | {"chosen_on": CHOSEN_ON, "rates": RATES} | provenance())


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("backbone", "set", "size", "classes", "turn"))


def draws_of(name: str, backbone: str, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What is drawn of a set: all classes but some, and pairs of classes."""
    classes = int(pictures_of(name, backbone).labels.max()) + 1
    for size in sizes:
        if name in ALPHABETS and size > 10:  # a character has 20 drawings
            continue
        for kind in ("many", "two"):
            for turn in range(TURNS if classes > 2 else kind == "two"):
                yield {"backbone": backbone, "set": name, "size": size, "classes": kind, "turn": turn}


def drawn(pictures: Pictures, size: int, kind: str, turn: int) -> Draw:
    random = np.random.default_rng([turn, 7])
    order = random.permutation(int(pictures.labels.max()) + 1)
    left_out = max(1, len(order) // 10) if len(order) > 2 else 0
    known = sorted(order[:2] if kind == "two" else order[left_out:])
    unknown = list(order[2:][:left_out] if kind == "two" else order[:left_out])
    learned: list[int] = []
    asked: list[int] = []
    for label in known:
        rows = np.flatnonzero(((pictures.labels == int(label)) & ~pictures.judging).numpy())
        learned += random.permutation(rows)[:size].tolist()
        asked += list(np.flatnonzero(((pictures.labels == int(label)) & pictures.judging).numpy()))
    names = {label: position for position, label in enumerate(known)}
    asked = [int(asked[at]) for at in np.linspace(0, len(asked) - 1, min(KNOWN, len(asked))).astype(int)]
    of_unknown = torch.isin(pictures.labels, torch.tensor(unknown, dtype=torch.int64))

    def renamed(rows: Sequence[int]) -> Tensor:
        return torch.tensor([names[int(pictures.labels[row])] for row in rows])

    free = (of_unknown & ~pictures.judging).nonzero()[:, 0]
    return Draw(
        torch.tensor(learned),
        renamed(learned),
        torch.tensor(asked),
        renamed(asked),
        (of_unknown & pictures.judging).nonzero()[:, 0],
        free[torch.from_numpy(random.permutation(len(free)))][:BACKGROUND],
    )


def measured(about: dict[str, Any]) -> dict[str, Any]:
    """Figures of every score, and of the thresholds of the product."""
    name, backbone = about["set"], about["backbone"]
    pictures = pictures_of(name, backbone)
    draw = drawn(pictures, about["size"], about["classes"], about["turn"])
    far = {other: _some(pictures_of(other, backbone)) for other in SETS if other != name and not _alike(name, other)}
    asked = torch.cat([pictures.pooled[draw.asked], pictures.pooled[draw.near], *far.values()])
    pooled, widths = pictures.pooled[draw.learned], pictures.widths
    scores, answers = peer_scores(pooled, draw.labels, widths, asked)
    model = UnknownModel.of(gather(pooled, draw.labels, widths))
    scores["product"] = model.likeness(asked).double().numpy()
    correct = answers[: len(draw.asked)] == draw.truth.numpy()
    n, m = len(draw.asked), len(draw.asked) + len(draw.near)
    found: dict[str, Any] = {"accuracy": float(correct.mean()), "scores": {}}
    for score in SCORES:
        known, kinds = scores[score][:n], {"near": scores[score][n:m], "far": scores[score][m:]}
        found["scores"][score] = {
            kind: [auroc(known, unknown), fpr_at_tpr(known, unknown), oscr(known, correct, unknown)]
            for kind, unknown in kinds.items()
            if len(unknown)
        }
    found["threshold"] = kept_rates(model, scores["product"], n, m, correct)
    if len(draw.background):
        given = model.with_background(model.likeness(pictures.pooled[draw.background]).double().numpy())
        found["with_background"] = kept_rates(given, scores["product"], n, m, correct)
    rounded: dict[str, Any] = json.loads(json.dumps(found), parse_float=lambda digits: round(float(digits), 4))
    return rounded


def kept_rates(model: UnknownModel, scores: np.ndarray, n: int, m: int, correct: np.ndarray) -> list[dict[str, Any]]:
    """For each rate: the shares accepted of near and far unknown pictures, and those refused of the known ones."""
    rows: list[dict[str, Any]] = []
    for rate in RATES:
        threshold = model.threshold(rate)
        row: dict[str, Any] = {"rate": rate, "refused": float((scores[:n] < threshold).mean())}
        row["right"] = float((correct & (scores[:n] >= threshold)).mean())
        for kind, part in (("near", scores[n:m]), ("far", scores[m:])):
            if len(part):
                row[kind] = float((part >= threshold).mean())
        rows.append(row)
    return rows


def shifts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Known pictures from another source, for each set, number of pictures a class and draw; those in `rows` stay."""
    done = {key(row) for row in rows}
    for name in SHIFTED:
        for size in SHIFTED_SIZES:
            for turn in range(TURNS):
                about = {"backbone": BACKBONES[0], "set": name, "size": size, "classes": "many", "turn": turn}
                if key(about) not in done:
                    rows.append(about | {"refused": shifted(about)} | {"revision": revision()})
                    print(json.dumps(rows[-1]), flush=True)
    return rows


def shifted(about: dict[str, Any]) -> dict[str, Any]:
    """By source: accuracy, and for each way to choose a threshold and each rate the share of known pictures refused."""
    name, backbone = about["set"], about["backbone"]
    pictures = pictures_of(name, backbone)
    draw = drawn(pictures, about["size"], about["classes"], about["turn"])
    learned, widths = pictures.pooled[draw.learned], pictures.widths
    model = UnknownModel.of(gather(learned, draw.labels, widths))
    other, far = (pictures_of(each, backbone) for each in (OTHER, FAR_SET))
    some = other.pooled[np.linspace(0, len(other.pooled) - 1, BACKGROUND).astype(int)]
    models = {
        "threshold": model,
        "with_background": _given(model, pictures.pooled[draw.background]),
        "with_other_background": _given(model, some),
    }
    added, labels = _not_learned(pictures, draw)
    found: dict[str, Any] = {"unknown accepted": {}}
    for way, each in models.items():
        near, strangers = pictures.pooled[draw.near], far.pooled[far.judging]
        shares = [1 - _refused(each, asked)[RATES.index(0.05)] for asked in (near, strangers)]
        found["unknown accepted"][way] = [round(share, 4) for share in shares]
    for shift in SHIFTS:
        source = pictures_of(name, backbone, shift)
        asked = source.pooled[draw.asked]
        _, answers = peer_scores(learned, draw.labels, widths, asked)
        more = torch.cat([learned, source.pooled[added]])
        known = UnknownModel.of(gather(more, torch.cat([draw.labels, labels]), widths))
        found[shift] = {"accuracy": round(float((answers == draw.truth.numpy()).mean()), 4)}
        for way, each in (models | {"with_added": known}).items():
            found[shift][way] = [round(share, 4) for share in _refused(each, asked)]
    return found


def _given(model: UnknownModel, background: Tensor) -> UnknownModel:
    return model.with_background(model.likeness(background).double().numpy())


def _refused(model: UnknownModel, asked: Tensor) -> list[float]:
    """The share of pictures that is refused, for each rate."""
    scores = model.likeness(asked).double().numpy()
    return [float((scores < model.threshold(rate)).mean()) for rate in RATES]


def _not_learned(pictures: Pictures, draw: Draw) -> tuple[Tensor, Tensor]:
    """Rows of ADDED more pictures of each learned class that do not judge, and their labels."""
    free = ~pictures.judging
    free[draw.learned] = False
    of = dict(zip(pictures.labels[draw.learned].tolist(), draw.labels.tolist(), strict=True))
    rows = torch.cat([(free & (pictures.labels == label)).nonzero()[:ADDED, 0] for label in of])
    return rows, torch.tensor([of[label] for label in pictures.labels[rows].tolist()])


def _some(pictures: Pictures) -> Tensor:
    judging = pictures.pooled[pictures.judging]
    return judging[np.linspace(0, len(judging) - 1, min(FAR, len(judging))).astype(int)]


def _alike(one: str, other: str) -> bool:
    return {one, other} <= set(ALPHABETS)


def told(row: dict[str, Any]) -> str:
    """A row in one line."""
    parts = [row["backbone"], row["set"], row["classes"], str(row["size"]), str(row["turn"])]
    for kind in ("near", "far"):
        found = {score: values[kind][0] for score, values in row["scores"].items() if kind in values}
        if found:
            parts.append(f"{kind}: softmax {found['softmax']:.3f} product {found['product']:.3f}")
    parts += [
        f"{at['rate']:.0%}: " + " ".join(f"{kind} {at[kind]:.1%}" for kind in ("near", "far", "refused") if kind in at)
        for at in row["threshold"]
        if at["rate"] in (0.05, 0.2)
    ]
    return "; ".join(parts)


if __name__ == "__main__":
    main()
