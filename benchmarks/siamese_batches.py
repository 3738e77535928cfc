"""Pictures in a step of `fewshot train FOLDER`: the default beside fixed sizes, in short and in long trainings.

    FEWTUNE_DATA=DATA python benchmarks/siamese_batches.py [--seeds 2] [--sets ...]

Each set is a folder of classes, of which others judge: 1,000 questions of WAY classes with one example each. drawings:
characters of Omniglot's background alphabets. photographs: flowers, textures, steel defects, cats and dogs, of which
every third class judges. A size is "groups x ways": a batch has so many times so many classes, with 4 pictures of each.
"as it chooses" is the default. Accuracy is that of the weights that the run keeps.

A result that would show failure: a default that is clearly worse than a fixed size in any of the trainings. Rows are
appended to benchmarks/results/siamese_batches.json and not made again.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import provenance

from fewshot import Embedder, SiameseConfig, train_folder
from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "siamese_batches.json"
QUESTIONS, JUDGING = 1000, 10
CHOSEN = "as it chooses"
SIZES: dict[str, dict[str, Any]] = {
    CHOSEN: {},
    "1 x 32": {"alphabets": 1, "ways": 32},
    "4 x 32": {"alphabets": 4, "ways": 32},
    "8 x 16": {"alphabets": 8, "ways": 16},
}
PHOTOGRAPHS = ("flowers/train", "textures", "steel-defects", "cats-dogs/train")


@dataclass(frozen=True)
class Training:
    """classes, pictures: Number to train on, and of each. way: Classes in a question. options: Of the training."""

    kind: str
    classes: int
    pictures: int
    way: int
    options: dict[str, Any]


_DRAWN = {"side": 28, "distortion": "drawing"}
TRAININGS = {
    "50 characters, 24 epochs": Training("drawings", 50, 20, 20, {"epochs": 24, **_DRAWN}),
    "200 characters, 8 epochs": Training("drawings", 200, 20, 20, {"epochs": 8, **_DRAWN}),
    "50 characters, 240 epochs": Training("drawings", 50, 20, 20, {"epochs": 240, **_DRAWN}),
    "photographs, 10 epochs": Training("photographs", 15, 60, 5, {"epochs": 10, "side": 48}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", nargs="+", choices=TRAININGS, default=TRAININGS)
    args = parser.parse_args()
    data = Path(os.environ["FEWTUNE_DATA"])
    rows: list[dict[str, Any]] = read_json(RESULT)["rows"] if RESULT.exists() else []
    done = {(row["training"], row["size"], row["seed"]) for row in rows}
    for seed in range(args.seeds):
        for name in args.sets:
            for size in SIZES:
                if (name, size, seed) not in done:
                    rows.append(
                        {"training": name, "size": size, "seed": seed} | measured(data, TRAININGS[name], size, seed)
                    )
                    print(rows[-1], flush=True)
                    write_json(RESULT, {"rows": rows, "mean": means(rows)} | provenance())


def means(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["training"]][row["size"]].append(row["accuracy"])
    return {name: {size: round(statistics.fmean(each), 4) for size, each in of.items()} for name, of in found.items()}


def measured(data: Path, training: Training, size: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        classes = (drawings if training.kind == "drawings" else photographs)(data, place / "all")
        if training.kind == "drawings":
            order = np.random.default_rng(0).permutation(len(classes))
            learned, judging = ([classes[at] for at in part] for part in (order[: training.classes], order[400:600]))
        else:
            learned, judging = (
                [name for at, name in enumerate(classes) if (at % 3 == 2) is judges] for judges in (False, True)
            )
        for name in learned:
            for path in sorted((place / "all" / name).iterdir())[: training.pictures]:
                _link(path, place / "learned" / name / path.name)
        config = SiameseConfig(device="cpu", seed=seed, **training.options, **SIZES[size])
        embedder = train_folder(place / "learned", place / "run", config=config)
        found = read_json(place / "run" / "config.json")
        return {
            "accuracy": accuracy(embedder, [place / "all" / name for name in judging], training.way),
            "steps": found["steps"],
            "groups": found["groups"],
        }


def drawings(data: Path, place: Path) -> list[str]:
    """A folder for each character; their names."""
    with zipfile.ZipFile(data / "omniglot" / "images_background.zip") as archive:
        for name in archive.namelist():
            if name.endswith(".png"):
                _, alphabet, character, file = name.split("/")
                path = place / f"{alphabet}_{character}" / file
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    return sorted(path.name for path in place.iterdir())


def photographs(data: Path, place: Path) -> list[str]:
    """A folder for each class; their names."""
    for folder in PHOTOGRAPHS:
        for label in sorted((data / folder).iterdir()):
            for path in sorted(label.iterdir())[:60]:
                _link(path, place / f"{label.name}_{folder.split('/')[0]}" / path.name)
    return sorted(path.name for path in place.iterdir())


def _link(path: Path, at: Path) -> None:
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(path.resolve())


def accuracy(embedder: Embedder, classes: Sequence[Path], way: int) -> float:
    """Share of questions that the nearest of `way` examples answers."""
    vectors = np.stack([embedder.embed(sorted(folder.iterdir())[:JUDGING]) for folder in classes])
    random, right = np.random.default_rng(1), 0
    for _ in range(QUESTIONS):
        asked = random.choice(len(classes), way, replace=False)
        query, example = random.choice(JUDGING, 2, replace=False)
        right += int((vectors[asked[0], query] @ vectors[asked, example].T).argmax() == 0)
    return right / QUESTIONS


if __name__ == "__main__":
    main()
