"""Do the tests notice errors? Mutation testing by mutmut of the rooms where a silent error costs most.

    pip install --group mutation
    python benchmarks/mutation.py [--rooms head splits ...] [--children 2] [--print-survivors]

mutmut changes one expression of a function at a time and runs the tests of the room that reach this function. A mutant
is killed when a test fails or no longer ends. Mutants that change only the words of a message are counted apart: tests
pin the file, option or field that a message names, and not its words. Properties are tried with few examples, always
the same, so a mutant costs seconds and a score is a lower bound. Each room is copied to build/mutation/ROOM and goes on
there after an interruption; a room whose files or tests have changed starts again. Scores and all survivors, each with
its changed lines, are written to benchmarks/results/mutation.json.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import provenance, revision

from finetune.files.reading import read_json
from finetune.files.writing import write_json

HERE = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "mutation.json"
BUILD = HERE / "build" / "mutation"


@dataclass(frozen=True)
class Room:
    """Files to change, and the tests that must notice."""

    sources: tuple[str, ...]
    tests: tuple[str, ...]


ROOMS = {
    "splits": Room(
        ("finetune/data/splits.py", "finetune/data/split_sizes.py", "finetune/data/split_record.py"),
        (
            "tests/finetune/data/test_splits.py",
            "tests/finetune/data/test_split_sizes.py",
            "tests/finetune/data/test_split_record.py",
            "tests/finetune/data/test_splits_near_duplicates.py",
        ),
    ),
    "near-duplicates": Room(
        ("finetune/data/near_duplicates.py",),
        ("tests/finetune/data/test_near_duplicates.py", "tests/finetune/data/test_splits_near_duplicates.py"),
    ),
    "head": Room(
        (
            "finetune/linear/head.py",
            "finetune/linear/ridge.py",
            "finetune/linear/ridge_path.py",
            "finetune/models/depth_head.py",
        ),
        (
            "tests/finetune/linear/test_ridge_by_hand.py",
            "tests/finetune/linear/test_head.py",
            "tests/finetune/linear/test_ridge.py",
        ),
    ),
    "cache": Room(
        ("finetune/features/cache.py", "finetune/features/cache_files.py", "finetune/features/cache_keys.py"),
        (
            "tests/finetune/features/test_cache.py",
            "tests/finetune/features/test_cache_folder.py",
            "tests/finetune/features/test_cache_files.py",
            "tests/finetune/features/test_cache_keys.py",
        ),
    ),
    "temperature and rejection": Room(
        ("finetune/classifier/temperature.py", "finetune/classifier/answers/rejection.py"),
        ("tests/finetune/classifier/test_rejection.py", "tests/finetune/classifier/test_temperature.py"),
    ),
    "gallery": Room(
        (
            "fewshot/recognition/gallery.py",
            "fewshot/recognition/gallery_files.py",
            "fewshot/recognition/similarities.py",
            "fewshot/recognition/examples.py",
        ),
        (
            "tests/fewshot/recognition/test_examples.py",
            "tests/fewshot/recognition/test_gallery.py",
            "tests/fewshot/recognition/test_gallery_definitions.py",
            "tests/fewshot/recognition/test_gallery_files.py",
            "tests/fewshot/recognition/test_hostile_gallery.py",
        ),
    ),
    "thresholds": Room(
        (
            "finetune/open_set/metrics.py",
            "fewshot/recognition/operating_point.py",
            "fewshot/evaluation/threshold.py",
        ),
        (
            "tests/finetune/open_set/test_metrics.py",
            "tests/fewshot/recognition/test_operating_point.py",
            "tests/fewshot/recognition/test_expected_errors.py",
            "tests/fewshot/evaluation/test_threshold.py",
            "tests/fewshot/evaluation/test_calibration_curve.py",
        ),
    ),
    "episodes": Room(("fewshot/evaluation/episodes.py",), ("tests/fewshot/evaluation/test_episodes.py",)),
    "protocols": Room(
        ("fewshot/evaluation/protocols.py",),
        ("tests/fewshot/evaluation/test_protocols.py", "tests/fewshot/evaluation/test_protocol_results.py"),
    ),
    "index files": Room(
        (
            "fewshot/search/index_files.py",
            "fewshot/search/faiss_format/file.py",
            "fewshot/search/faiss_format/reading.py",
            "fewshot/search/faiss_format/lists.py",
            "fewshot/search/faiss_format/graph.py",
            "fewshot/search/faiss_format/quantised.py",
            "fewshot/search/key_table.py",
        ),
        (
            "tests/fewshot/search/test_index_files.py",
            "tests/fewshot/search/test_index_folder.py",
            "tests/fewshot/search/test_faiss_format.py",
            "tests/fewshot/search/test_faiss_fields.py",
            "tests/fewshot/search/test_hostile_index.py",
        ),
    ),
}

# A conftest.py of the copies. Most mutants are killed by a test that takes milliseconds, and none needs the smallest
# example that kills it.
QUICK = """
import json
from pathlib import Path
from hypothesis import Phase, settings

STATISTICS = Path(__file__).parent / "mutmut-stats.json"


def pytest_collection_modifyitems(items):
    took = json.loads(STATISTICS.read_text())["duration_by_test"] if STATISTICS.exists() else {}
    items.sort(key=lambda item: took.get(item.nodeid, 0))
    for item in items:
        test = getattr(item, "obj", None)
        given = getattr(test, "_hypothesis_internal_use_settings", None)
        if given is not None:
            test._hypothesis_internal_use_settings = settings(
                given, max_examples=min(given.max_examples, 15), database=None, derandomize=True,
                phases=[Phase.explicit, Phase.generate],
            )
"""

# Exit codes of mutmut's workers. Every other one is of pytest, whose tests failed.
SURVIVED, NO_TESTS, TIMEOUT = (0,), (5, 33), (36, 24, -24, 152, 255)
UNCHECKED = (None, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--children", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--print-survivors", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = read_json(RESULT) if RESULT.exists() else {"rooms": {}}
    for name in args.rooms:
        started = time.perf_counter()
        work = prepared(name, ROOMS[name])
        run(work, args.children)
        found = scored(work, ROOMS[name])
        found |= {"seconds_of_this_call": round(time.perf_counter() - started, 1), "revision": revision()}
        result["rooms"][name] = found
        write_json(RESULT, result | provenance())
        print(name, {key: value for key, value in found.items() if key != "survivors"}, flush=True)
        if args.print_survivors:
            for survivor in found["survivors"]:
                print(f"  {survivor['function']}{' (words)' if survivor['words'] else ''}")
                print("".join(f"    {line}\n" for line in survivor["lines"]), flush=True)
    print(table(result["rooms"]))


def prepared(name: str, room: Room) -> Path:
    """A copy of the project for one room, with mutmut's options for it; the old one where nothing has changed."""
    work = BUILD / name.replace(" ", "-")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HERE, capture_output=True, text=True, check=True).stdout
    files = [file for file in listed.split("\0") if file.split("/")[0] in ("finetune", "fewshot", "tests", "data")]
    files = [file for file in files if (HERE / file).is_file()] + ["pyproject.toml", "README.md"]
    digest = hashlib.sha256(repr(room).encode())
    for file in files:
        if file in (*room.sources, *room.tests) or (file.startswith("tests/") and file.count("/") == 1):
            digest.update((HERE / file).read_bytes())
    mark = work / ".made-of"
    if mark.exists() and mark.read_text() == digest.hexdigest():
        return work
    shutil.rmtree(work, ignore_errors=True)
    for file in files:
        (work / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(HERE / file, work / file)
    (work / "conftest.py").write_text(QUICK)
    options = {
        "source_paths": ["finetune", "fewshot"],
        "only_mutate": list(room.sources),
        "pytest_add_cli_args_test_selection": list(room.tests),
        "also_copy": ["finetune", "fewshot", "tests", "data", "README.md", "conftest.py"],
        # torch's threads do not survive a fork of the process that has run tests.
        "process_isolation": "forkserver",
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    with (work / "pyproject.toml").open("a") as config:
        config.write("\n[tool.mutmut]\n" + "\n".join(lines) + "\n")
    mark.write_text(digest.hexdigest())
    return work


def run(work: Path, children: int) -> None:
    """mutmut in the copy. Mutants that have been tried are not tried again."""
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(children)]
    with (work / "mutmut.log").open("w") as log:
        done = subprocess.run(command, cwd=work, env=os.environ | own, stdout=log, stderr=log, check=False)
    if done.returncode:
        sys.exit(f"mutmut failed; see {os.path.relpath(work / 'mutmut.log')}")


def scored(work: Path, room: Room) -> dict[str, Any]:
    """Counts of mutants by what became of them, and the survivors."""
    counts = dict.fromkeys(("killed", "timeout", "survived", "survived, words alone", "not reached"), 0)
    survivors = []
    for source in room.sources:
        codes = read_json(work / "mutants" / f"{source}.meta")["exit_code_by_key"]
        functions = _functions(work / "mutants" / source)
        for mutant, code in codes.items():
            if code in UNCHECKED:
                sys.exit(f"{mutant} has not been tried")
            if code in TIMEOUT:
                counts["timeout"] += 1
            elif code in SURVIVED or code in NO_TESTS:
                name = mutant.rsplit(".", 1)[1]
                lines = _changed(functions[name.rsplit("__mutmut_", 1)[0] + "__mutmut_orig"], functions[name])
                words = _words_alone(lines)
                kind = "survived, words alone" if words else "survived" if code in SURVIVED else "not reached"
                counts[kind] += 1
                function = name.rsplit("__mutmut_", 1)[0].lstrip("x_").replace("ǁ", ".").strip(".")
                survivors.append({"file": source, "function": function, "words": words, "lines": lines})
            else:
                counts["killed"] += 1
    tried = sum(counts.values()) - counts["survived, words alone"]
    score = (counts["killed"] + counts["timeout"]) / max(1, tried)
    return {"mutants": sum(counts.values()), **counts, "score": round(score, 4), "survivors": survivors}


def _functions(path: Path) -> dict[str, str]:
    """Source of every function in a file with mutants, by its name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and "__mutmut_" in node.name:
            name, node.name = node.name, "f"
            found[name] = ast.unparse(node)
    return found


def _changed(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


_TEXT = re.compile(r"""f?("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")


def _words_alone(lines: list[str]) -> bool:
    """Whether two lines differ inside a string of several words alone, or an error loses its text."""
    if len(lines) != 2 or " " not in "".join(match.group() for match in _TEXT.finditer(lines[0])):
        return False
    before, after = (line[1:] for line in lines)
    return _TEXT.sub("''", before) == _TEXT.sub("''", after) or ("Error(" in before and "Error(None" in after)


def table(rooms: dict[str, dict[str, Any]]) -> str:
    """A row for each room."""
    lines = ["| room | mutants | killed | no longer end | survive | words alone | score |", "|---" * 7 + "|"]
    for name, found in rooms.items():
        survive = found["survived"] + found["not reached"]
        counts = (found["mutants"], found["killed"], found["timeout"], survive, found["survived, words alone"])
        lines.append(f"| {name} | {' | '.join(map(str, counts))} | {found['score']:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
