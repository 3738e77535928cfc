"""What `extend`, `forget` and `undo` give and take, beside a fit on the same pictures from scratch.

    FEWTUNE_DATA=DATA python benchmarks/extend.py [--parts flowers sequences kills] [--sequences 50] [--kills 60]

flowers: a run on 1,950 flowers, extended by 50 more and by 50 pictures of a new class, a texture; beside it the fit on
all 2,050, with the same splits. Both read their new pictures from files, without the cache of activations, and write
their report. sequences: random extends, forgets and undos of small runs on photographs and on drawings, each step
compared with a fit from scratch on the pictures that the run then has, with its splits. kills: changes of a small run
that SIGKILL ends at a random moment; the run must then be the old one or the new one. Parts and sequences that are in
benchmarks/results/extend.json are not made again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import provenance
from PIL import Image, ImageFilter
from torch import Tensor

import finetune
from finetune.config import Config
from finetune.data.digits import write_digits
from finetune.data.split_record import record_splits
from finetune.data.table import list_pictures
from finetune.files.reading import read_json, read_tensors
from finetune.files.writing import write_json
from finetune.kept.features import read_features
from finetune.progress import Display

RESULT = Path(__file__).parent / "results" / "extend.json"
BACKBONE, NEW_CLASS = "tf_mobilenetv3_small_100", "banded"
SMALL: dict[str, Any] = {"strategy": "head", "backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
TOLERANCE = 1e-6
STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["flowers", "sequences", "kills"])
    parser.add_argument("--sequences", type=int, default=50)
    parser.add_argument("--kills", type=int, default=60)
    args = parser.parse_args()
    data = Path(os.environ["FEWTUNE_DATA"])
    results = read_json(RESULT) if RESULT.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        os.environ["FEWTUNE_CACHE"] = f"{place}/cache"
        if "flowers" in args.parts and "flowers" not in results:
            save(results, flowers=flowers(data, Path(place) / "flowers"))
        if "kills" in args.parts and results.get("kills", {}).get("tries", 0) < args.kills:
            save(results, kills=kills(data, Path(place) / "kills", args.kills))
        if "sequences" in args.parts:
            done = results.get("sequences", {}).get("each", [])
            for number in range(len(done), args.sequences):
                kind = ("photographs", "drawings")[number % 2]
                done.append(sequence(data, Path(place) / f"sequence-{number}", kind, number))
                save(results, sequences=summary(done))


def save(results: dict[str, Any], **part: Any) -> None:
    results |= part | {"provenance": provenance()}
    write_json(RESULT, results)
    print(json.dumps({name: value for name, value in next(iter(part.values())).items() if name != "each"}), flush=True)


# --- pictures ---------------------------------------------------------------------------------------------------------


def copied(pictures: Sequence[tuple[Path, str]], folder: Path) -> Path:
    """The pictures in a folder of their own, a sub-folder for each label."""
    for path, label in pictures:
        target = folder / label / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return folder


def table_of(run: Path, name: str, splits: dict[str, str], config: Config) -> Path:
    """A table of the pictures of a run beside them, in its own order, with splits by content recorded for it."""
    classes = finetune.load(run, device="cpu").classes
    kept = read_features(run, classes)
    table = kept.listing.root / name
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        rows.writerows((sample.path, sample.label) for sample in kept.listing.samples)
    record_splits(list_pictures(table), splits, config, Display())
    return table


def probabilities(run: Path, pictures: Sequence[Path]) -> tuple[Tensor, tuple[str, ...]]:
    classifier = finetune.load(run, device="cpu")
    return classifier.log_probabilities(list(pictures))[0].exp(), classifier.classes


def difference(one: Path, other: Path, pictures: Sequence[Path]) -> dict[str, Any]:
    """Two runs compared: on some pictures, and by the predictions and the splits that they wrote."""
    (ours, classes), (theirs, others) = probabilities(one, pictures), probabilities(other, pictures)
    written = [read_tensors(run / "probabilities.safetensors") for run in (one, other)]
    same = classes == others and written[0].keys() == written[1].keys()
    largest = float((ours - theirs).abs().max()) if same else 1.0
    for split in written[0] if same else ():
        fits = written[0][split].shape == written[1][split].shape
        largest = max(largest, float((written[0][split].exp() - written[1][split].exp()).abs().max()) if fits else 1.0)
    return {
        "largest_difference": largest,
        "labels_equal": same and bool(torch.equal(ours.argmax(1), theirs.argmax(1))),
        "splits_equal": splits_of(one) == splits_of(other),
        "compared": len(pictures) + sum(len(part) for part in written[0].values()),
    }


def splits_of(run: Path) -> Counter[tuple[str, str]]:
    with (run / "pictures.csv").open(newline="") as file:
        return Counter((row["sha256"], row["split"]) for row in csv.DictReader(file))


# --- the flowers ------------------------------------------------------------------------------------------------------


def flowers(data: Path, place: Path) -> dict[str, Any]:
    every = sorted((data / "flowers").glob("*/*/*"))
    named = [(path, path.parent.name) for path in every]
    held = set(range(0, len(named), 40))
    base = copied([pair for number, pair in enumerate(named) if number not in held], place / "pictures")
    textures = [(path, NEW_CLASS) for path in sorted((data / "textures" / NEW_CLASS).glob("*"))[:50]]
    new = copied([named[number] for number in sorted(held)] + textures, place / "new")
    options: dict[str, Any] = {
        "strategy": "head",
        "backbone": BACKBONE,
        "weights": str(data / "weights" / f"{BACKBONE}.safetensors"),
        "device": "cpu",
        "cache": False,
    }
    run, union = place / "run", place / "union"
    first = timed(lambda: finetune.fit(base, run, **options))
    splits = read_features(run, finetune.load(run, device="cpu").classes).splits_by_content
    bytes_kept = (run / "features.safetensors").stat().st_size
    extended = timed(lambda: finetune.extend(run, new, device="cpu"))
    table = table_of(run, "union.csv", splits, Config(**options))
    fitted = timed(lambda: finetune.fit(table, union, **options))
    found = difference(run, union, [path for path, _ in named[::20]])
    accuracies = {
        name: finetune.load(at, device="cpu").metrics["accuracy"] for name, at in (("extend", run), ("fit", union))
    }
    undone = timed(lambda: finetune.undo(run, device="cpu"))
    forgotten = timed(lambda: finetune.forget(run, classes=["tulip"], device="cpu"))
    single = timed(lambda: finetune.extend(run, copied(textures[:1], place / "one"), device="cpu"))
    return {
        "pictures": len(named) - len(held),
        "added": len(held) + len(textures),
        "classes_added": 1,
        "backbone": BACKBONE,
        "first_fit": first,
        "extend": extended,
        "fit_on_union": fitted,
        "times_faster": {name: round(fitted[name] / extended[name], 1) for name in fitted},
        **found,
        "accuracy": accuracies,
        "undo": undone,
        "forget_a_class": forgotten,
        "extend_by_one": single,
        "features_bytes": bytes_kept,
    }


def timed(call: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.monotonic(), time.process_time()
    call()
    return {"seconds": round(time.monotonic() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}


# --- random sequences -------------------------------------------------------------------------------------------------


def pool(data: Path, place: Path, kind: str, seed: int) -> dict[str, list[Path]]:
    """Small pictures of five classes, 14 of each: photographs of flowers, or drawn digits."""
    chosen = random.Random(seed)
    found: dict[str, list[Path]] = {}
    if kind == "drawings":
        write_digits(place / "digits", per_class=14, seed=seed)
        for digit in chosen.sample("0123456789", 5):
            found[f"digit {digit}"] = sorted((place / "digits" / "train" / digit).glob("*"))
        return found
    for folder in sorted((data / "flowers" / "train").iterdir()):
        target = place / "small" / folder.name
        target.mkdir(parents=True)
        for path in chosen.sample(sorted(folder.iterdir()), 14):
            with Image.open(path) as picture:
                picture.convert("RGB").resize((96, 96)).save(target / f"{path.stem}.png")
        found[folder.name] = sorted(target.iterdir())
    return found


def sequence(data: Path, place: Path, kind: str, seed: int) -> dict[str, Any]:
    """Random changes of a run, each step compared with a fit from scratch."""
    chosen = random.Random(seed)
    pictures = pool(data, place, kind, seed)
    probes = [path for paths in pictures.values() for path in paths]
    left = {label: chosen.sample(paths, len(paths)) for label, paths in pictures.items()}
    classes = list(left)
    first = [(left[label].pop(), label) for label in classes[:3] for _ in range(chosen.randint(1, 8))]
    run, config = place / "run", Config(**SMALL)
    finetune.fit(copied(first, place / "pictures"), run, **SMALL)
    steps, states = [], [probabilities(run, probes)[0]]
    for number in range(STEPS):
        before = read_features(run, finetune.load(run, device="cpu").classes).splits_by_content
        action = change(run, place / f"step-{number}", chosen, left, pictures)
        if action == "undo":
            states.pop()
            now = probabilities(run, probes)[0]
            same = now.shape == states[-1].shape and bool(torch.equal(now, states[-1]))
            steps.append({"action": action, "largest_difference": 0.0 if same else 1.0, "equal": same})
            continue
        table = table_of(run, f"step-{number}.csv", before, config)
        finetune.fit(table, place / f"fit-{number}", **SMALL)
        found = difference(run, place / f"fit-{number}", probes)
        equal = found["labels_equal"] and found["splits_equal"] and found["largest_difference"] <= TOLERANCE
        steps.append({"action": action, "largest_difference": found["largest_difference"], "equal": equal})
        states.append(probabilities(run, probes)[0])
    shutil.rmtree(place)
    return {"kind": kind, "seed": seed, "steps": steps}


def change(
    run: Path, place: Path, chosen: random.Random, left: dict[str, list[Path]], pictures: dict[str, list[Path]]
) -> str:
    """A random change of a run; its name."""
    used = list(finetune.load(run, device="cpu").classes)
    ways = ["extend", "extend", "new class", "copies", "near", "forget pictures"]
    ways += ["undo"] if finetune.history(run) else []
    ways += ["forget class"] if len(used) > 2 else []
    way = chosen.choice(ways)
    if way == "undo":
        finetune.undo(run, device="cpu")
        return way
    if way == "forget class":
        finetune.forget(run, classes=[chosen.choice(used)], device="cpu")
        return way
    if way == "forget pictures":
        kept = read_features(run, used)
        of = {label: [s.path for s in kept.listing.samples if s.label == label] for label in used}
        many = [label for label in used if len(of[label]) > 2] or used[:1]
        names = chosen.sample(of[chosen.choice(many)], 1)
        finetune.forget(run, pictures=names, device="cpu")
        return way
    known = [label for label in left if label in used and left[label]]
    other = [label for label in left if label not in used and left[label]]
    labels = other if (way == "new class" and other) or not known else known
    if not labels:
        finetune.forget(run, pictures=[chosen.choice(read_features(run, used).listing.samples).path], device="cpu")
        return "forget pictures"
    label = chosen.choice(labels)
    added = [(left[label].pop(), label) for _ in range(min(len(left[label]), chosen.randint(1, 5)))]
    folder = copied(added, place)
    if way in ("copies", "near"):
        kept = read_features(run, used)
        source = chosen.choice([s for s, c in zip(kept.listing.samples, kept.contents, strict=True) if not c.reason])
        target = folder / source.label / f"again-{Path(source.path).name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if way == "copies":
            shutil.copy(kept.listing.root / source.path, target)
        else:
            with Image.open(kept.listing.root / source.path) as picture:
                picture.convert("RGB").filter(ImageFilter.GaussianBlur(0.5)).save(target)
    finetune.extend(run, folder, device="cpu")
    return way


def summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    steps = [step for one in done for step in one["steps"]]
    return {
        "sequences": len(done),
        "steps": len(steps),
        "actions": dict(Counter(step["action"] for step in steps)),
        "equal": sum(step["equal"] for step in steps),
        "largest_difference": max(step["largest_difference"] for step in steps),
        "each": done,
    }


# --- killed -----------------------------------------------------------------------------------------------------------


def state(run: Path) -> str:
    """A hash of what a run's files say, after they are read as a user reads them; it depends on no clock."""
    classifier = finetune.load(run, device="cpu")
    kept = read_features(run, classifier.classes)
    parts = [repr(classifier.classes), repr(classifier.temperature), repr(classifier.metrics["confusion"])]
    parts += [(run / name).read_text() for name in ("pictures.csv", "predictions.csv")]
    parts += [repr([sample.path for sample in kept.listing.samples]), repr(float(kept.pooled.double().sum()))]
    parts += [str(len(finetune.history(run))), repr((run / "report.html").exists())]
    head = classifier.network.head.state_dict()
    parts += [repr(np.asarray(value).round(4).tolist()) for value in head.values()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def kills(data: Path, place: Path, count: int) -> dict[str, Any]:
    """Changes of a run that are killed at a random moment."""
    pictures = pool(data, place, "drawings", 0)
    labels = list(pictures)
    first = [(path, label) for label in labels[:3] for path in pictures[label][:10]]
    new = copied([(path, label) for label in labels[2:4] for path in pictures[label][10:]], place / "new")
    run = place / "run"
    finetune.fit(copied(first, place / "pictures"), run, **SMALL)
    finetune.extend(run, copied([(pictures[labels[0]][11], labels[0])], place / "before"), device="cpu")
    changes: dict[str, Callable[[Path], Any]] = {
        "extend": lambda at: finetune.extend(at, new, device="cpu"),
        "forget": lambda at: finetune.forget(at, classes=[labels[0]], device="cpu"),
        "forget for good": lambda at: finetune.forget(at, classes=[labels[0]], for_good=True, device="cpu"),
        "undo": lambda at: finetune.undo(at, device="cpu"),
    }
    outcomes: Counter[str] = Counter()
    chosen, killed = random.Random(0), 0
    old = state(run)
    for name, call in changes.items():
        copy = Path(shutil.copytree(run, place / "whole"))
        began = time.monotonic()
        call(copy)
        lasted, after = time.monotonic() - began, state(copy)
        shutil.rmtree(copy)
        for _ in range(count // len(changes)):
            copy = Path(shutil.copytree(run, place / "killed"))
            child = os.fork()
            if child == 0:
                try:
                    call(copy)
                finally:
                    os._exit(0)
            # More often near the end, where the files are exchanged.
            time.sleep(lasted * (chosen.random() if chosen.random() < 0.4 else chosen.uniform(0.75, 1.1)))
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            killed += os.WIFSIGNALED(status)
            found = state(copy)
            outcomes[f"{name}: {'old' if found == old else 'new' if found == after else 'neither'}"] += 1
            call(copy) if found == old else None  # goes on as if nothing had happened
            outcomes["went on afterwards"] += state(copy) == after
            shutil.rmtree(copy)
    return {"tries": sum(outcomes.values()) - outcomes["went on afterwards"], "killed": killed, **outcomes}


if __name__ == "__main__":
    main()
