"""The recogniser on galleries that nothing of it was chosen on: what is accepted, refused and named right.

    FEWTUNE_DATA=DATA python benchmarks/recognizer.py [--draws 20] [--only NAME ...]

Of each data set some classes are enrolled, with 1, 3 or 10 examples each, and others are unknown; which classes and
which pictures is drawn --draws times. Told are, at rates of false accepts of 1, 5, 10 and 20 % and at the default:

- the share of unknown pictures that is really accepted, its mean and standard deviation over the draws;
- the share of known pictures that is accepted and named right, and its ratio to what the best threshold in hindsight
  gives, one for all draws, that accepts just the asked share of the unknown pictures of all draws;
- at the default: the refusals that were expected beside those that came, and how often they lay in the interval told;
- the unknown pictures of other data sets altogether ("far") that are accepted.

All but galleries of all alphabets are told twice: with the enrolled examples alone, and with 80 background pictures of
the unknown kinds, none of which is asked about later. The standard deviation of the best threshold in hindsight says
what a threshold can do that does not know the gallery. Omniglot's evaluation alphabets are told alphabet by alphabet,
half of the characters of one enrolled and half unknown, with the drawings of another alphabet as far ones; as galleries
of characters of all alphabets; and as Tengwar's first 20 characters, whose other drawings are named.

A result that would show failure: accepted far from asked, a ratio well under 1, fewer accepted with more examples, or
expected refusals far from those that come. Constants were chosen on steel surfaces and, for another network
(tf_mobilenetv3_small_100), on flowers and textures; those for drawings on the validation alphabets of the background
set, by an encoder that did not learn from them.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import provenance
from numpy.typing import NDArray

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.embedded import embed_once
from fewshot.omniglot.dataset import read_omniglot
from fewshot.omniglot.splits import leaks
from fewshot.recognition.recognizer import Recognizer
from finetune.data.folder import list_folder
from finetune.files.writing import write_json
from finetune.open_set.metrics import open_set

RESULT = Path(__file__).parent / "results" / "recognizer.json"
NETWORK = "tf_efficientnet_lite0"
# Classes enrolled and unknown.
PHOTOGRAPHS = {"flowers": (3, 2), "textures": (5, 5), "steel-defects": (3, 3)}
EXAMPLES = (1, 3, 10)
BACKGROUND = 80
ASKED = (0.01, 0.05, 0.1, 0.2)
MIXED = (1, 2, 5, 20, 100, 329)
TENGWAR = 20
QUERIES = 600  # of known and of unknown pictures in a draw, at most

Vectors = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Draw:
    """A gallery, and what it is asked. of: (n,), the class of each known picture."""

    examples: list[Vectors]
    known: Vectors
    of: NDArray[np.int64]
    unknown: Vectors
    far: Vectors
    background: Vectors


@dataclass(frozen=True, eq=False)
class Pictures:
    """vectors: (n, d). of: (n,) int64, their classes. group: (classes,), what a draw's classes are drawn from."""

    vectors: Vectors
    of: NDArray[np.int64]
    group: NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FEWTUNE_DATA"), help="default: FEWTUNE_DATA")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=(*PHOTOGRAPHS, "alphabets", "mixed", "tengwar"))
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.data is None:
        parser.error("--data is missing, and FEWTUNE_DATA is not set")
    data, wanted = Path(args.data), args.only or (*PHOTOGRAPHS, "alphabets", "mixed", "tengwar")
    rows: list[dict[str, Any]] = []
    photographs = [name for name in PHOTOGRAPHS if name in wanted]
    if photographs:
        rows += of_photographs(data, photographs, args.draws, args.seed)
    if {"alphabets", "mixed", "tengwar"} & set(wanted):
        rows += of_drawings(data, wanted, args.draws, args.seed)
    about = {"network": NETWORK, "draws": args.draws, "seed": args.seed, "background": BACKGROUND}
    write_json(args.result, about | {"galleries": rows} | provenance())


def of_photographs(data: Path, names: list[str], draws: int, seed: int) -> list[dict[str, Any]]:
    embedder = Embedder.load(NETWORK, weights=data / "weights" / f"{NETWORK}.safetensors")
    sets = {name: photographs(embedder, data / name) for name in PHOTOGRAPHS}
    rows = []
    for name in names:
        enrolled, unknown = PHOTOGRAPHS[name]
        far = np.concatenate([other.vectors for key, other in sets.items() if key != name])
        for examples in EXAMPLES:
            for background in (0, BACKGROUND):
                random = np.random.default_rng(seed)
                drawn = [
                    draw(sets[name], 0, enrolled, unknown, examples, background, far, random) for _ in range(draws)
                ]
                about = {"pictures": name, "enrolled": enrolled, "examples": examples, "background": background}
                rows.append(told(about | measured(embedder, drawn)))
    return rows


def photographs(embedder: Embedder, folder: Path) -> Pictures:
    listing = list_folder(folder)
    found = embedder.embed_all([listing.root / sample.path for sample in listing.samples])
    good = [row for row in range(len(listing.samples)) if row not in found.unreadable]
    names = sorted({listing.samples[row].label for row in good})
    of = np.array([names.index(listing.samples[row].label) for row in good])
    return Pictures(found.vectors[good], of, np.zeros(len(names), np.int64))


def of_drawings(data: Path, wanted: tuple[str, ...], draws: int, seed: int) -> list[dict[str, Any]]:
    omniglot = read_omniglot(data, ("evaluation",))
    embedder = Embedder.load("omniglot")
    assert not leaks(embedder.trained_on, omniglot.characters), "the encoder learned from what it is measured on"
    embedded = embed_once(omniglot, embedder.embed_drawings)
    vectors, of = embedded.vectors.cpu().numpy(), embedded.character.numpy()
    alphabet = embedded.alphabet.numpy()
    group = np.array([alphabet[of == number][0] for number in range(len(embedded.characters))])
    pictures = Pictures(vectors, of, group)
    rows = []
    if "alphabets" in wanted:
        each = max(1, draws // 10)
        for examples in EXAMPLES:
            for background in (0, BACKGROUND):
                random = np.random.default_rng(seed)
                drawn = [
                    half_of(pictures, at, examples, background, random) for at in np.unique(group) for _ in range(each)
                ]
                about = {"pictures": "alphabets", "examples": examples, "background": background}
                rows.append(told(about | measured(embedder, drawn)))
    everything = Pictures(vectors, of, np.zeros_like(group))
    for enrolled in MIXED if "mixed" in wanted else ():
        random = np.random.default_rng(seed)
        unknown = max(enrolled, len(group) // 2)
        nothing = np.empty((0, vectors.shape[1]), np.float32)
        drawn = [
            draw(everything, 0, enrolled, min(unknown, len(group) - enrolled), 1, 0, nothing, random)
            for _ in range(draws)
        ]
        rows.append(told({"pictures": "mixed", "enrolled": enrolled, "examples": 1} | measured(embedder, drawn)))
    if "tengwar" in wanted:
        rows.append(told(tengwar(pictures, [character.alphabet for character in embedded.characters], embedder, seed)))
    return rows


def half_of(pictures: Pictures, group: int, examples: int, background: int, random: np.random.Generator) -> Draw:
    """Half of the characters of one alphabet; another alphabet is far."""
    size = int((pictures.group == group).sum())
    other = random.choice(np.setdiff1d(pictures.group, group))
    far = pictures.vectors[pictures.group[pictures.of] == other]
    return draw(pictures, group, size // 2, size - size // 2, examples, background, far, random)


def draw(
    pictures: Pictures,
    group: int,
    enrolled: int,
    unknown: int,
    examples: int,
    background: int,
    far: Vectors,
    random: np.random.Generator,
) -> Draw:
    """So many classes of a group enrolled and unknown, at random. The same numbers draw the same classes and examples,
    with background or without."""
    order = random.permutation(np.flatnonzero(pictures.group == group))
    chosen, known, of = [], [], []
    for place, number in enumerate(order[:enrolled]):
        rows = random.permutation(np.flatnonzero(pictures.of == number))
        chosen.append(pictures.vectors[rows[:examples]])
        known.append(rows[max(EXAMPLES) :])  # the same pictures are asked about, however many are enrolled
        of.append(np.full(len(known[-1]), place))
    others = random.permutation(np.flatnonzero(np.isin(pictures.of, order[enrolled : enrolled + unknown])))
    asked = random.permutation(len(np.concatenate(known)))[:QUERIES]
    return Draw(
        examples=chosen,
        known=pictures.vectors[np.concatenate(known)[asked]],
        of=np.concatenate(of)[asked],
        unknown=pictures.vectors[others[BACKGROUND:][:QUERIES]],
        far=far[random.permutation(len(far))[:QUERIES]],
        background=pictures.vectors[others[:background]],
    )


def measured(embedder: Embedder, draws: list[Draw]) -> dict[str, Any]:
    """Figures of several draws."""
    accepted: dict[str, list[float]] = {}
    right: dict[str, list[float]] = {}
    at_default: list[dict[str, float]] = []
    known_scores, unknown_scores, correct, missing = [], [], [], 0
    for each in draws:
        recognizer = enrolled_in(embedder, each)
        gallery = recognizer.gallery
        similarity, unknown = gallery.similarity(each.known), gallery.similarity(each.unknown).max(1)
        best, ok = similarity.max(1), similarity.argmax(1) == each.of
        known_scores.append(best)
        unknown_scores.append(unknown)
        correct.append(ok)
        default = recognizer.expect()
        if default is None:
            missing += 1
            continue
        for asked in ASKED:
            threshold = recognizer.expect(asked)
            assert threshold is not None, "where equal errors are known, rates are"
            accepted.setdefault(f"{asked:g}", []).append(float((unknown >= threshold.value).mean()))
            right.setdefault(f"{asked:g}", []).append(float(((best >= threshold.value) & ok).mean()))
        named = (best >= default.value) & ok
        figures = {
            "right": float(named.mean()),
            "refused": float((best < default.value).mean()),
            "misnamed": float(((best >= default.value) & ~ok).mean()),
            "accepted_of_unknown": float((unknown >= default.value).mean()),
        }
        if len(each.far):
            figures["accepted_of_far"] = float((gallery.similarity(each.far).max(1) >= default.value).mean())
        if default.refusals is not None:
            own = similarity[np.arange(len(each.of)), each.of] < default.value
            figures["refusals_expected"] = default.refusals.value
            figures["refusals_that_came"] = float(own.mean())
            figures["in_the_interval"] = float(default.refusals.low <= own.mean() <= default.refusals.high)
        at_default.append(figures)
    shape = open_set(np.concatenate(known_scores), np.concatenate(correct), np.concatenate(unknown_scores))
    found: dict[str, Any] = {
        "nearest_right": mean(correct),
        "auroc": round(shape.auroc, 4),
        "oscr": round(shape.oscr, 4),
        "no_threshold": missing,
        "rates": {
            asked: hindsight(float(asked), known_scores, unknown_scores, correct)
            | {
                "accepted": round(float(np.mean(accepted[asked])), 4),
                "deviation": round(float(np.std(accepted[asked])), 4),
                "right": round(float(np.mean(right[asked])), 4),
            }
            for asked in accepted
        },
        "default": {name: mean([each[name] for each in at_default]) for name in (at_default or [{}])[0]},
    }
    return found


def enrolled_in(embedder: Embedder, each: Draw) -> Recognizer:
    recognizer = Recognizer(embedder)
    for place, examples in enumerate(each.examples):
        recognizer.gallery.enrol(str(place), examples)
    if len(each.background):
        recognizer.gallery.add_background(each.background)
    return recognizer


def hindsight(
    asked: float, known: list[Vectors], unknown: list[Vectors], correct: list[NDArray[np.bool_]]
) -> dict[str, float]:
    """The one threshold for all draws that accepts the asked share of all unknown pictures."""
    threshold = np.quantile(np.concatenate(unknown), 1 - asked)
    right = [float(((best >= threshold) & ok).mean()) for best, ok in zip(known, correct, strict=True)]
    shares = [float((scores >= threshold).mean()) for scores in unknown]
    return {"best_right": round(float(np.mean(right)), 4), "best_deviation": round(float(np.std(shares)), 4)}


def tengwar(pictures: Pictures, alphabets: list[str], embedder: Embedder, seed: int) -> dict[str, Any]:
    """The first 20 characters by one drawing each, named are 100 others; at the default."""
    numbers = [number for number, alphabet in enumerate(alphabets) if alphabet == "Tengwar"][:TENGWAR]
    random = np.random.default_rng(seed)
    recognizer, asked, labels = Recognizer(embedder), [], []
    for number in numbers:
        rows = random.permutation(np.flatnonzero(pictures.of == number))
        recognizer.gallery.enrol(str(number), pictures.vectors[rows[:1]])
        asked.append(pictures.vectors[rows[1:6]])
        labels += [str(number)] * 5
    similarity = recognizer.gallery.similarity(np.concatenate(asked))
    expectation = recognizer.expect()
    assert expectation is not None, "the encoder that ships carries a calibration"
    nearest = np.array(recognizer.labels)[similarity.argmax(1)] == np.array(labels)
    accepted = similarity.max(1) >= expectation.value
    return {
        "pictures": "tengwar",
        "enrolled": TENGWAR,
        "asked": len(labels),
        "nearest_right": int(nearest.sum()),
        "right": int((nearest & accepted).sum()),
        "refused": int((~accepted).sum()),
        "misnamed": int((accepted & ~nearest).sum()),
    }


def mean(values: list[Any]) -> float:
    return round(float(np.mean([np.mean(value) for value in values])), 4)


def told(row: dict[str, Any]) -> dict[str, Any]:
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
