"""`finetune demo` as a user runs it: the table, the whole command's time, and pretraining against scratch.

    python benchmarks/demo.py --seeds 0 1 2

Results in benchmarks/results/demo.json; `rows` are those of the first seed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import provenance

from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "demo.json"
KEPT = ("strategy", "accuracy", "interval", "n", "kept", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    trials: list[dict[str, Any]] = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as scratch:
            program = Path(sys.executable).parent / "finetune"
            started = time.perf_counter()
            command = [str(program), "demo", "--out", scratch, "--seed", str(seed), "--json"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds = time.perf_counter() - started
        rows = [{key: row[key] for key in KEPT} for row in json.loads(done.stdout)]
        low = {row["strategy"]: row["interval"][0] for row in rows}
        scratch_high = next(row["interval"][1] for row in rows if row["strategy"] == "scratch")
        apart = {name: low[name] > scratch_high for name in ("head", "partial", "full", "train")}
        trials.append({"seed": seed, "seconds": round(seconds, 1), "above_scratch_interval": apart, "rows": rows})
        print(seed, f"{seconds:.1f} s", {row["strategy"]: f"{row['accuracy']:.1%}" for row in rows}, apart, flush=True)
    write_json(RESULT, {**provenance(), "rows": trials[0]["rows"], "seconds": trials[0]["seconds"], "trials": trials})


if __name__ == "__main__":
    main()
