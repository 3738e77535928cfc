"""The recogniser on Omniglot's evaluation alphabets: half of the characters enrolled by one drawing, half unknown.

    python benchmarks/recognizer.py --data DATA

Each of --draws times, half of the 659 characters (and, in smaller galleries, as many as there are classes) are enrolled
with one drawing each, by a drawer drawn for each; their other drawings are the known pictures, all drawings of as many
other characters the unknown ones. Nothing is chosen here: the encoder that ships has learned from other alphabets, the
threshold comes from the enrolled drawings and from what the encoder carries, the recogniser's constants were chosen on
background alphabets. Closed-set accuracy, AUROC of unknown, FPR at 95 % TPR and OSCR (see fewshot/openset.py), and the
share of unknown pictures accepted beside the one that was asked for, go to benchmarks/results/recognizer.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from machine import provenance
from numpy.typing import NDArray

from fewshot.calibration import Calibration
from fewshot.embedded import Embedded, embed_once
from fewshot.embedder import Embedder
from fewshot.gallery import Gallery
from fewshot.omniglot import read_omniglot
from fewshot.openset import open_set
from fewshot.splits import leaks
from finetune.files import write_json

RESULT = Path(__file__).parent / "results" / "recognizer.json"
CLASSES = (1, 2, 5, 20, 100, 329)
ASKED = (0.01, 0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--model", default="omniglot")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    omniglot = read_omniglot(args.data, ("evaluation",))
    embedder = Embedder.load(args.model)
    learned = leaks(embedder.trained_on, omniglot.characters)
    if learned:
        sys.exit(f"{args.model} has learned from {len(learned)} of the characters that it would be measured on")
    embedded = embed_once(omniglot, embedder.embed_drawings)
    impostors = None if embedder.verification is None else Calibration.from_dict(embedder.verification)
    rows = [row(embedded, classes, impostors, args.draws, args.seed) for classes in CLASSES]
    for found in rows:
        print(found)
    about = {"model": args.model, "fingerprint": embedder.fingerprint, "draws": args.draws, "seed": args.seed}
    write_json(args.result, about | {"galleries": rows} | provenance())


def row(embedded: Embedded, classes: int, impostors: Calibration | None, draws: int, seed: int) -> dict[str, Any]:
    """Means over the draws, and how far single draws lie apart (standard deviation)."""
    random = np.random.default_rng(seed)
    figures: dict[str, list[float]] = {}
    for _ in range(draws):
        for name, value in draw(embedded, classes, impostors, random).items():
            figures.setdefault(name, []).append(value)
    found: dict[str, Any] = {"enrolled": classes}
    for name, values in figures.items():
        found[name] = {"mean": round(float(np.mean(values)), 5), "deviation": round(float(np.std(values)), 5)}
    return found


def draw(
    embedded: Embedded, classes: int, impostors: Calibration | None, random: np.random.Generator
) -> dict[str, float]:
    """The figures of one gallery."""
    vectors, character = embedded.vectors.cpu().numpy(), embedded.character.numpy()
    order = random.permutation(len(embedded.characters))
    enrolled, others = order[:classes], order[classes : classes + max(classes, len(order) // 2)]
    gallery = Gallery(vectors.shape[1], impostors=impostors)
    taken = np.zeros(len(vectors), bool)
    for label in enrolled:
        example = random.choice((character == label).nonzero()[0])
        taken[example] = True
        gallery.enrol(str(label), vectors[[example]])
    known = np.isin(character, enrolled) & ~taken
    answers, scores = best(gallery, vectors[known])
    _, strange = best(gallery, vectors[np.isin(character, others)])
    right = answers == character[known].astype(str)
    found = open_set(scores, right, strange)
    figures = {
        "closed_set_accuracy": found.accuracy,
        "auroc": found.auroc,
        "fpr_at_95_tpr": found.fpr95,
        "oscr": found.oscr,
    }
    for asked in ASKED:
        gallery.false_accept_rate = asked
        threshold = gallery.threshold
        figures[f"false_accepts_at_{asked}"] = float((strange >= threshold).mean())
        figures[f"known_named_right_at_{asked}"] = float(((scores >= threshold) & right).mean())
    return figures


def best(gallery: Gallery, vectors: NDArray[np.float32]) -> tuple[NDArray[np.str_], NDArray[np.float32]]:
    """The most similar class of each of (n, d), and how similar it is."""
    similarity = gallery.similarity(vectors)
    return np.array(gallery.labels)[similarity.argmax(1)], similarity.max(1)


if __name__ == "__main__":
    main()
