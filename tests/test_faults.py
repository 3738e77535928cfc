"""A small part of the campaigns of benchmarks/faults.py, and what they make faults with."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from several import several

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_are_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.slow
def test_a_hostile_run_and_fifty_mutated_pictures_are_withstood(tmp_path: Path) -> None:
    results = tmp_path / "faults.json"
    options = ["--attempts", "1", "--results", str(results), "--campaigns", "formats", "fuzz"]

    def job(rank: int) -> None:
        from faults import main

        sys.argv = ["faults.py", *options]
        main()

    ((code, said),) = several(1, tmp_path / "said", job)
    assert code == 0, said
    campaigns = json.loads(results.read_text())["after"]["campaigns"]
    assert [found["failures"] for found in campaigns.values()] == [[], []]
    assert [found["tried"] for found in campaigns.values()] == [1, 50]


@pytest.mark.slow
def test_attempts_are_counted_and_a_later_call_goes_on(tmp_path: Path) -> None:
    from campaigns.attempts import Outcome
    from faults import record, todo

    results = tmp_path / "faults.json"
    outcomes = [Outcome("fit", figures={"files": 2}), Outcome("fit", "hangs"), Outcome("embed", skipped="no compiler")]
    for number in (0, 1):
        record(results, "before", "kills", number, outcomes, 9, 1.5)
    found = json.loads(results.read_text())["before"]["campaigns"]["kills"]
    counts = {name: found[name] for name in ("next", "of", "tried", "survived", "failed", "skipped", "seconds")}
    assert counts == {"next": 2, "of": 9, "tried": 4, "survived": 2, "failed": 2, "skipped": 2, "seconds": 3.0}
    assert found["failures"][1] == {"number": 1, "group": "fit", "what": "hangs"}
    assert list(todo(results, "before", "kills", 9)) == list(range(2, 9))
    assert list(todo(results, "after", "kills", 2)) == [0, 1]


def test_a_seed_makes_the_same_hostile_file_again(tmp_path: Path) -> None:
    from campaigns.mutations import mutate_file

    made = set()
    for number in range(20):
        twice = []
        for _ in range(2):
            path = tmp_path / "config.json"
            path.write_text('{"backbone": "x", "size": [3, 4], "mean": 0.5}')
            twice.append((mutate_file(path, random.Random(number)), path.read_bytes()))
        assert twice[0] == twice[1]
        made.add(twice[0][1])
    assert len(made) > 10


def test_the_shim_fails_the_call_that_it_is_armed_for_and_no_other(tmp_path: Path) -> None:
    from campaigns.shim import built_shim

    shim = built_shim()
    if shim is None:
        pytest.skip("no C compiler")
    script = (
        "import os, sys; from pathlib import Path; from campaigns.shim import arm, counted\n"
        "folder = Path(sys.argv[1]); (folder / 'below').mkdir()\n"
        "arm(folder / 'below', 'write', 2, 'ENOSPC', True)\n"
        "def write(path):\n"
        "    handle = os.open(path, os.O_WRONLY | os.O_CREAT)\n"
        "    try: return os.write(handle, b'four')\n"
        "    except OSError as error: return os.strerror(error.errno)\n"
        "names = ('below/1', 'beside', 'below/2', 'below/3')\n"
        "print([write(folder / name) for name in names], counted('write'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path],
        env=os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
        check=True,
    )
    full = "No space left on device"
    assert done.stdout.strip() == f"{[4, 4, full, full]} 3"
