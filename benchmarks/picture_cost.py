"""What large pictures cost: peak memory and CPU seconds of reading one of each format, and of embedding several.

    python benchmarks/picture_cost.py [--before CHECKOUT] [--side 9400]

Each picture is made, 9,400 x 9,400 pixels, just below the default bound, and read by a process of its own as for a
network of 224 pixels; `embed_all` embeds four 16-bit PNGs on two workers. Peaks are those beyond a process that reads a
tiny picture of the same format, and beyond the content of the file. --before measures another checkout too, such as one
from before a change. The bound is `finetune.data.images.BYTES_PER_PIXEL`: a format above it fails the run. Results:
benchmarks/results/picture_cost.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import provenance
from PIL import Image

from finetune.data.images import BYTES_PER_PIXEL
from finetune.files.writing import write_json

HERE = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "picture_cost.json"

# Not ru_maxrss of getrusage: a new process inherits it from the one that started it.
PROGRAM = """
import json, sys, time
from pathlib import Path
job, *paths = sys.argv[1:]
started = time.process_time()
if job == "embed":
    from fewshot import Embedder
    Embedder.load("omniglot", device="cpu").embed_all(paths, workers=2, batch_size=1)
else:
    from finetune.data.images import read_image
    for path in paths:
        read_image(path, at_least=224)
seconds = time.process_time() - started
peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
print(json.dumps([peak * 1024, seconds]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--side", type=int, default=9400)
    args = parser.parse_args()
    trees = {"now": HERE} | ({"before": args.before.resolve()} if args.before else {})
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in pictures(8):
            large, tiny = (write(Path(scratch) / f"{side}-{kind}", kind, side) for side in (args.side, 8))
            row: dict[str, Any] = {"picture": kind, "bytes": large.stat().st_size}
            rows.append(row | {name: cost(tree, "read", [large], [tiny], args.side**2) for name, tree in trees.items()})
            print(rows[-1], flush=True)
            if kind == "16 bit.png":
                measured = {name: cost(tree, "embed", [large] * 4, [tiny] * 4, 0) for name, tree in trees.items()}
                rows.append({"picture": "four of them embedded on two workers"} | measured)
                print(rows[-1], flush=True)
            large.unlink()
    write_json(RESULT, {"side": args.side, "bound_bytes_per_pixel": BYTES_PER_PIXEL, "rows": rows, **provenance()})
    above = [row["picture"] for row in rows if row["now"].get("bytes_per_pixel", 0) > BYTES_PER_PIXEL]
    if above:
        sys.exit(f"above the bound of {BYTES_PER_PIXEL} bytes a pixel: {', '.join(above)}")


def pictures(side: int) -> dict[str, tuple[Image.Image, dict[str, Any]]]:
    """A picture of each kind, and how it is saved."""
    ramp = np.add.outer(np.arange(side) // 3, np.arange(side)).astype(np.uint16)
    grey = Image.fromarray(ramp.astype(np.uint8))
    rgb = Image.merge("RGB", (grey, grey.transpose(Image.Transpose.ROTATE_90), grey))
    return {
        "16 bit.png": (Image.fromarray(ramp * 3), {}),
        "16 bit.tif": (Image.fromarray(ramp * 3), {"compression": "tiff_adobe_deflate"}),
        "rgb.png": (rgb, {}),
        "transparent.png": (rgb.convert("RGBA"), {}),
        "palette.png": (rgb.quantize(16), {}),
        "rgb.webp": (rgb, {"method": 0}),
        "rgb.jpg": (rgb, {}),
        "progressive.jpg": (rgb, {"progressive": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
    }


def write(path: Path, kind: str, side: int) -> Path:
    picture, options = pictures(side)[kind]
    picture.save(path, **options)
    return path


def cost(tree: Path, job: str, large: list[Path], tiny: list[Path], pixels: int) -> dict[str, float]:
    """Memory and CPU seconds beyond those for tiny pictures."""
    peak, seconds = _measured(tree, job, large)
    idle, start = _measured(tree, job, tiny)
    beyond = peak - idle - (large[0].stat().st_size if pixels else 0)
    found = {"MB": round(beyond / 1e6), "cpu_seconds": round(seconds - start, 2)}
    return found | ({"bytes_per_pixel": round(beyond / pixels, 1)} if pixels else {})


def _measured(tree: Path, job: str, paths: list[Path]) -> tuple[int, float]:
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, job, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tree)
    peak, seconds = json.loads(done.stdout)
    return peak, seconds


if __name__ == "__main__":
    main()
