"""What a new user waits for: seconds until `finetune fit` with no options has saved a classifier, and until it ends.

    FEWTUNE_DATA=DATA python benchmarks/first_minutes.py [--before CHECKOUT] [--folders NAMES] [--seed 0]

Five folders of 20 to 200 photographs are drawn by the seed; up to 60 other pictures of each class are kept back and
shown to no fit. On each folder, one after the other, each time with an empty cache and in a program of its own:

head  `finetune fit FOLDER --strategy head`
fit   `finetune fit FOLDER`

--before: the same by an older checkout of this project, in the same run. A classifier counts as saved once its run
folder can be loaded. Accuracies are on the pictures kept back. Appended to benchmarks/results/first_minutes.json, one
row for each folder, which replaces an older row of that folder.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import provenance

from finetune import evaluate
from finetune.data.folder import Sample, list_folder
from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "first_minutes.json"
HERE = Path(__file__).parent.parent
BACKBONE = "tf_efficientnet_lite0"
KEPT_BACK = 60


@dataclass(frozen=True)
class Draw:
    """So many pictures of each class. classes: data set -> its first classes by name, so many; None for all."""

    per_class: int
    classes: dict[str, int | None]


DRAWS = {
    "cats-dogs": Draw(10, {"cats-dogs": None}),
    "textures": Draw(30, {"textures": 4}),
    "flowers": Draw(30, {"flowers": None}),
    "steel-defects": Draw(30, {"steel-defects": None}),
    "mix": Draw(33, {"cats-dogs": 2, "flowers": 2, "textures": 2}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", nargs="+", choices=list(DRAWS), default=list(DRAWS))
    parser.add_argument("--before", type=Path, help="an older checkout of this project, measured too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    checkouts = {"now": HERE} | ({} if args.before is None else {"before": args.before.resolve()})
    data = Path(os.environ["FEWTUNE_DATA"])
    result: dict[str, Any] = read_json(args.result) if args.result.exists() else {"rows": []}
    rows = {row["folder"]: row for row in result["rows"]}
    for number, name in enumerate(args.folders):
        with tempfile.TemporaryDirectory() as scratch:
            pictures, kept = draw(data, Path(scratch), DRAWS[name], args.seed)
            row: dict[str, Any] = {"folder": name, "seed": args.seed, "pictures": pictures, "kept_back": kept}
            if number == 0:  # so that programs are in memory for all that are timed
                for checkout in checkouts.values():
                    fitted(checkout, data, Path(scratch), ["--strategy", "head"])
            for side, checkout in checkouts.items():
                head = fitted(checkout, data, Path(scratch), ["--strategy", "head"])
                row[side] = {"head": head, "fit": fitted(checkout, data, Path(scratch), [])}
                print(name, side, json.dumps(row[side]), flush=True)
        rows[name] = row
        ordered = [rows[each] for each in DRAWS if each in rows]
        write_json(args.result, {"backbone": BACKBONE, "rows": ordered, **provenance()})


def draw(data: Path, scratch: Path, wanted: Draw, seed: int) -> tuple[int, int]:
    """Links below `scratch`: pictures/ for fit, kept/ to judge by; how many of each."""
    counts = [0, 0]
    for dataset, classes in wanted.classes.items():
        of_class: defaultdict[str, list[Sample]] = defaultdict(list)
        root = data / dataset
        for sample in list_folder(root, to_train=False).samples:
            of_class[sample.label].append(sample)
        for label in sorted(of_class)[:classes]:
            samples = of_class[label]
            random.Random(f"{seed} {dataset} {label}").shuffle(samples)
            parts = samples[: wanted.per_class], samples[wanted.per_class :][:KEPT_BACK]
            for position, (part, members) in enumerate(zip(("pictures", "kept"), parts, strict=True)):
                counts[position] += len(members)
                for number, sample in enumerate(members):
                    place = scratch / part / label / f"{number:04d}{Path(sample.path).suffix}"
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.symlink_to((root / sample.path).absolute())
    return counts[0], counts[1]


def fitted(checkout: Path, data: Path, scratch: Path, options: list[str]) -> dict[str, Any]:
    """One `finetune fit` of a checkout, watched from outside."""
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        words = ["fit", scratch / "pictures", "--out", run, "--backbone", BACKBONE, "--json", *options]
        words += ["--weights", data / "weights" / f"{BACKBONE}.safetensors"]
        command = [sys.executable, "-m", "finetune", *map(str, words)]
        own = {"PYTHONPATH": str(checkout), "FEWTUNE_CACHE": str(Path(place) / "cache")}
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | own, cwd=place)
        saved = None
        while process.poll() is None:
            if saved is None and loadable(run):
                saved = time.perf_counter() - started
            time.sleep(0.05)
        seconds = time.perf_counter() - started
        assert process.stdout is not None
        metrics = json.loads(process.stdout.read())
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
        judged = evaluate(run, scratch / "kept")
    return {
        "first_saved_seconds": round(saved or seconds, 1),
        "seconds": round(seconds, 1),
        "accuracy": judged["accuracy"],
        "interval": judged["interval"],
        "strategy": metrics["strategy"],
        "kept": metrics["kept"],
        "epochs": metrics["epochs"],
        "reason": metrics["reason"],
    }


def loadable(run: Path) -> bool:
    """Whether the run folder holds a classifier that can be loaded."""
    if not (run / "model.safetensors").exists():
        return False
    try:
        return "classes" in json.loads((run / "config.json").read_text())
    except (OSError, ValueError):
        return False


if __name__ == "__main__":
    main()
