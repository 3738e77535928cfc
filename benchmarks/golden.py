"""Golden runs: do the commands still give the numbers that they gave before a change?

    python benchmarks/golden.py record BEFORE         # at the old revision
    python benchmarks/golden.py record AFTER          # at the new one
    python benchmarks/golden.py record CONVERTED --convert-small-networks --only demo evaluate
    python benchmarks/golden.py compare BEFORE AFTER --converted CONVERTED

`record` runs the commands on handwritten digits, on 40 cats and dogs and on Omniglot (both from FEWTUNE_DATA) and keeps
what each of them printed and wrote. `compare` reads both folders and lists every number that differs, with the largest
difference of each file. Times, versions and folder names are left out. Sentences for people, which may be rewritten,
are counted apart. It exits with 1 where a number differs by more than --tolerance, or a name or a shape
differs. The comparison is written to benchmarks/results/golden.json. Record on one machine: other processors change the
last bits. Run `record` twice at one revision to see which bits the machine itself changes.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import provenance
from safetensors.numpy import load_file

RESULT = Path(__file__).parent / "results" / "golden.json"
STRATEGIES = ("head", "partial", "full", "train", "scratch")

# What tells of the machine, the clock or the version of a format, and not of the result.
LEFT_OUT = {
    *("seconds", "versions", "created", "built_at", "out", "data", "revision", "format", "per_second", "waiting"),
    *("files", "token"),  # an index names its files at random
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record")
    record.add_argument("folder", type=Path)
    record.add_argument("--only", nargs="*", help="names of the jobs to record; default: all")
    record.add_argument(
        "--convert-small-networks", action="store_true", help="run networks of any size by OpenVINO, as up to b022e12"
    )
    against = commands.add_parser("compare")
    against.add_argument("before", type=Path)
    against.add_argument("after", type=Path)
    against.add_argument(
        "--converted", type=Path, help="a record with --convert-small-networks: its files are compared with BEFORE too"
    )
    against.add_argument("--tolerance", type=float, default=1e-6)
    arguments = parser.parse_args()
    if arguments.command == "record":
        Recorder(arguments.folder.resolve(), arguments.only, arguments.convert_small_networks).record()
    else:
        compare(arguments.before.resolve(), arguments.after.resolve(), arguments.converted, arguments.tolerance)


# --- recording --------------------------------------------------------------------------------------------------------


class Recorder:
    """Runs the jobs into one folder; a job that is there, finished, is not run again."""

    def __init__(self, folder: Path, only: list[str] | None, convert_small_networks: bool):
        self.folder, self.only, self.convert_small_networks = folder, only, convert_small_networks
        self.data = Path(os.environ["FEWTUNE_DATA"]).resolve()
        self.weights = self.data / "weights" / "tf_mobilenetv3_small_100.safetensors"

    def record(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._photographs()
        digits, photographs = self.folder / "demo" / "digits", self.folder / "photographs"
        small = ["--backbone", "tf_mobilenetv3_small_100", "--weights", str(self.weights)]
        self._job("demo", "finetune", "demo", "--out", "demo")
        for name in STRATEGIES:
            epochs = [] if name == "head" else ["--epochs", "3"]
            options = ["--strategy", name, *(small if name != "scratch" else small[:2]), *epochs, "--workers", "0"]
            self._job(f"fit-{name}", "finetune", "fit", str(photographs), "--out", f"runs/{name}", *options, "--json")
        self._job("evaluate", "finetune", "evaluate", "demo/partial", str(digits / "val"), "--json")
        self._job("predict", "finetune", "predict", "runs/head", str(photographs / "test"), "--json")
        self._job("probe", "finetune", "probe", str(photographs), *small, "--json")
        self._job("inspect", "finetune", "inspect", str(photographs), *small, "--json")
        self._job("embed", "fewshot", "embed", str(digits / "val"), "--out", "index", "--json")
        self._job("search", "fewshot", "search", "index", str(digits / "train" / "3"), "--json")
        for label in ("1", "4", "7"):
            pictures = sorted((digits / "train" / label).iterdir())[:3]
            self._job(f"enrol-{label}", "fewshot", "enrol", "gallery", label, *map(str, pictures), "--json")
        some = [path for label in "1469" for path in sorted((digits / "val" / label).iterdir())[:5]]
        self._job("recognize", "fewshot", "recognize", "gallery", *map(str, some), "--json")
        self._job("lake", "fewshot", "benchmark", "--protocol", "lake", "--json")
        training = ["--split", "lake-minimal", "--epochs", "10", "--seed", "3"]  # 200 steps and a few
        self._job("siamese", "fewshot", "train", "omniglot", "--out", "siamese", *training, "--json")

    def _photographs(self) -> None:
        """40 cats and dogs to learn from, 20 to choose on, 40 to judge by."""
        for side, source, first, last in (("train", "train", 0, 20), ("val", "train", 20, 30), ("test", "val", 0, 20)):
            for label in sorted(path.name for path in (self.data / "cats-dogs" / source).iterdir()):
                folder = self.folder / "photographs" / side / label
                folder.mkdir(parents=True, exist_ok=True)
                for path in sorted((self.data / "cats-dogs" / source / label).iterdir())[first:last]:
                    if not (folder / path.name).exists():
                        shutil.copyfile(path, folder / path.name)

    def _job(self, name: str, program: str, *words: str) -> None:
        answer = self.folder / f"{name}.out"
        if answer.exists() or (self.only is not None and name not in self.only):
            return
        print(name, flush=True)
        place = os.environ | {"FEWTUNE_CACHE": str(self.folder / "cache"), "PYTHONPATH": str(Path(__file__).parents[1])}
        run = [sys.executable, "-m", program, *words]
        if self.convert_small_networks:
            script = (
                "import sys, finetune.features.acceleration as acceleration; acceleration.MULTIPLICATIONS = 1.0; "
                f"sys.argv[0] = '{program}'; from {program}.cli.main import main; main()"
            )
            run = [sys.executable, "-c", script, *words]
        done = subprocess.run(run, cwd=self.folder, env=place, capture_output=True, text=True, check=False)
        (self.folder / f"{name}.err").write_text(done.stderr)
        if done.returncode != 0:
            raise SystemExit(f"{name} failed: {' '.join(words)}\n{done.stderr}")
        answer.write_text(done.stdout)


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(before: Path, after: Path, converted: Path | None, tolerance: float) -> None:
    """Print and write the largest difference of every file; exit 1 where one is too large."""
    rows = compared(before, after, tolerance)
    result = provenance() | {"tolerance": tolerance, "files": rows}
    result["command"] = "python benchmarks/golden.py compare BEFORE AFTER"
    if converted is not None:
        there = {str(path) for path in files_of(converted)}
        every = compared(before, converted.resolve(), tolerance, there)
        result["command"] += " --converted CONVERTED"
        result["with_small_networks_converted"] = every
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(1 if any(row["differs"] for row in rows.values()) else 0)


def compared(before: Path, after: Path, tolerance: float, some: Collection[str] | None = None) -> dict[str, Any]:
    """The differences of every file of `before`, or of some. Prints those that differ, and how many are equal."""
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(files_of(before)):
        if some is not None and str(path) not in some:
            continue
        if not (after / path).is_file():
            rows[str(path)] = {"equal": False, "differs": ["the file is missing"]}
            continue
        old, new = values_of(before, path), values_of(after, path)
        largest, differs, sentences = 0.0, [], 0
        for key in sorted(old.keys() | new.keys()):
            if is_sentence(old.get(key)) and is_sentence(new.get(key)):
                sentences += old[key] != new[key]
                continue
            difference = distance(old.get(key), new.get(key))
            largest = max(largest, difference)
            if difference > tolerance:
                differs.append(key)
        equal = not differs and largest == 0.0
        rows[str(path)] = {
            "values": len(old),
            "equal": equal,
            "largest": finite(largest),
            "differs": differs[:5],
            "sentences": sentences,
        }
        if not equal:
            print(f"{path}: largest difference {largest:.3g}; {', '.join(differs[:5]) or 'within the tolerance'}")
    exact = sum(row["equal"] for row in rows.values())
    failed = sum(bool(row["differs"]) for row in rows.values())
    anew = sum(row.get("sentences", 0) for row in rows.values())
    print(f"{len(rows)} files: {exact} equal to the last bit, {failed} beyond {tolerance:g}; {anew} sentences differ")
    return rows


def files_of(folder: Path) -> Iterator[Path]:
    """Every file that holds results, relative to the folder."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if relative.parts[0] in ("cache", "photographs") or "digits" in relative.parts or "state" in relative.parts:
            continue
        if path.suffix in (".out", ".json", ".jsonl", ".csv", ".safetensors", ".npy"):
            yield relative


def values_of(folder: Path, relative: Path) -> dict[str, Any]:
    """Every number and text of a file by its place in it."""
    path = folder / relative
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    if path.suffix == ".npy":
        return {"array": np.load(path, allow_pickle=False)}
    text = path.read_text()
    if path.suffix == ".csv":
        return dict(leaves(list(csv.DictReader(text.splitlines())), folder))
    try:
        return dict(leaves(json.loads(text), folder))
    except json.JSONDecodeError:
        lines = text.splitlines()
        if path.suffix == ".jsonl":
            return dict(leaves([json.loads(line) for line in lines], folder))
        return {}  # a table for people: its figures stand in the files beside it


def leaves(value: Any, folder: Path, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in LEFT_OUT:
                yield from leaves(inner, folder, f"{place}.{key}")
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from leaves(inner, folder, f"{place}[{position}]")
    elif isinstance(value, str):
        yield place, value.replace(str(folder), "FOLDER")
    else:
        yield place, value


def is_sentence(value: Any) -> bool:
    """Whether a value is text for people: three words or more that are no path."""
    return isinstance(value, str) and len(value.split()) >= 3


def distance(old: Any, new: Any) -> float:
    """Largest absolute difference of two values; infinite where they are not of one kind."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        if old.shape != new.shape or old.dtype != new.dtype:
            return math.inf
        if np.array_equal(old, new):
            return 0.0
        return float(np.abs(old.astype(np.float64) - new.astype(np.float64)).max())
    if isinstance(old, str) and isinstance(new, str) and old != new:
        try:  # cells of a table
            return abs(float(old) - float(new))
        except ValueError:
            return math.inf
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
    if numbers:
        return abs(float(old) - float(new))
    return 0.0 if old == new and type(old) is type(new) else math.inf


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    main()
