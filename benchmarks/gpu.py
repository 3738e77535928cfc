"""What a GPU reaches: embedding, Siamese training, episodes, exact search, `fit` and NCCL, each against its own bound.

    FEWTUNE_DATA=DATA python benchmarks/gpu.py [--rows NAME ...] [--minutes 10] [--fastai PYTHON] [--out FILE]
    python benchmarks/gpu.py --dry        # every row at a small size on a CPU, in two minutes; writes no result

Each row is a process of its own, so that an error or a hanging kernel ends one row alone. A row says what is asked,
what was measured, whether that is reached, and how far the answers of the GPU are from those of the CPU. It is written
when it ends, and is not measured again by a later call with the same --out, unless it failed or --again is given; a row
that the remaining --minutes cannot hold is left for such a call.

DATA may hold cats-dogs, omniglot and weights/NETWORK.safetensors; otherwise pictures and weights are made, and the row
says so. Results go to benchmarks/results/gpu.json. None has been measured on a card yet.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_rows import decode, embed, episodes, fit, search, siamese
from gpu_rows.setting import Setting
from machine import provenance

from finetune.files.reading import read_json
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "gpu.json"

# Row -> its measurement, and the most seconds that it takes on a card. The cheapest ones that decide most come first.
ROWS: dict[str, tuple[Callable[[Setting], dict[str, Any]], float]] = {
    "episodes": (episodes.measure, 40),
    "search": (search.measure, 60),
    "siamese": (siamese.measure, 75),
    "embed-resnet50": (lambda setting: embed.measure(setting, "resnet50"), 75),
    "embed-convnext": (lambda setting: embed.measure(setting, "convnext_tiny"), 75),
    "embed-vit-small": (lambda setting: embed.measure(setting, "vit_small_patch16_224"), 75),
    "fit-head": (lambda setting: fit.measure(setting, "head"), 60),
    "fit-full": (lambda setting: fit.measure(setting, "full"), 90),
    "nccl": (fit.measure_nccl, 60),
    "decode": (decode.measure, 40),
    "compile": (embed.measure_compiling, 100),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--minutes", type=float, default=10.0, help="no row begins that this time cannot hold")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at a small size")
    parser.add_argument("--again", action="store_true", help="measure rows that the result has already, too")
    parser.add_argument("--fastai", help="a Python that has fastai")
    parser.add_argument("--out", type=Path, help="the result file")
    args = parser.parse_args()
    out = args.out or (None if args.dry else RESULT)
    ends = time.monotonic() + 60 * args.minutes
    result = _kept(out, args.dry)
    for name in args.rows:
        if not args.again and "error" not in result["rows"].get(name, {"error": ""}):
            print(f"{name}: measured already", flush=True)
            continue
        left = ends - time.monotonic()
        if left < min(ROWS[name][1], 20 if args.dry else ROWS[name][1]):
            print(f"{name}: left out, {left:.0f} s remain", flush=True)
            continue
        row = _in_process(name, Setting.of(args.dry, args.fastai), min(left, 2 * ROWS[name][1]))
        result["rows"][name] = row
        print(f"{name}: {json.dumps(row)}", flush=True)
        if out is not None:
            write_json(out, result)
    failed = [name for name in args.rows if "error" in result["rows"].get(name, {})]
    print(f"{len(result['rows'])} of {len(ROWS)} rows; {len(failed)} failed {' '.join(failed)}".rstrip(), flush=True)
    sys.exit(1 if failed else 0)


def _kept(out: Path | None, dry: bool) -> dict[str, Any]:
    """The result with the rows of an earlier call, where that was of the same kind."""
    found: dict[str, Any] = {"rows": {}, "dry": dry}
    if out is not None and out.is_file():
        earlier = read_json(out)
        if earlier.get("dry") == dry:
            found["rows"] = earlier["rows"]
    about = provenance()
    about["command"] = "python benchmarks/gpu.py" + " --dry" * dry
    return about | found


def _in_process(name: str, setting: Setting, seconds: float) -> dict[str, Any]:
    """What a process of its own measures for a row; its error, or that it took too long.

    The process is forked before CUDA is used, so that it need not import everything again.
    """
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "row.json"
        process = multiprocessing.get_context("fork").Process(target=_measure, args=(name, setting, answer))
        started = time.monotonic()
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
            return {"error": f"not done in {seconds:.0f} s"}
        if not answer.is_file():
            return {"error": f"ended with exit code {process.exitcode}"}
        row: dict[str, Any] = read_json(answer)
        return row | {"seconds": round(time.monotonic() - started, 1)}


def _measure(name: str, setting: Setting, answer: Path) -> None:
    os.environ["FEWTUNE_CACHE"] = str(answer.parent / "cache")
    device = setting.device()
    try:
        row = ROWS[name][0](setting)
    except Exception as error:
        traceback.print_exc()
        row = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    if device.type == "cuda":
        row["gpu"] = torch.cuda.get_device_name(device)
        row["peak_device_memory"] = max(torch.cuda.max_memory_allocated(device), row.get("peak_device_memory", 0))
    write_json(answer, row)


if __name__ == "__main__":
    main()
