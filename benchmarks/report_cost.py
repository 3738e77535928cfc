"""What a report costs: of a run on 2,000 pictures its time and bytes, of 10,000 pictures in 100 classes how it opens.

    FEWTUNE_DATA=DATA python benchmarks/report_cost.py [--pictures 2000] [--repeats 5]

The run is `finetune fit --strategy head` on links to that many pictures of cats-dogs/train, half of each class, cache
empty: the fastest run, so the one that a report weighs heaviest on. Its report is timed inside it, imports and heat
maps included, and is compared with the time that `fit` takes without it. The large page is of a made-up run of 100
classes with 100 test pictures each, opened --repeats times in headless Chromium, a new profile each time:
from navigation to the end of the load event, and to the second frame after it, when it has been painted.
Results go to benchmarks/results/report_cost.json.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import provenance

from finetune import fit
from finetune.files.writing import write_json
from finetune.report.report import write_report

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from browser import Opened, chromium  # type: ignore[import-not-found]
from made_run import made_run  # type: ignore[import-not-found]

RESULT = Path(__file__).parent / "results" / "report_cost.json"
BACKBONE = "tf_efficientnet_lite0"
CLASSES, PER_CLASS = 100, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, help="of cats-dogs/train that the run is made on")
    parser.add_argument("--repeats", type=int, default=5, help="times that the large page is opened")
    parser.add_argument("--result", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEWTUNE_CACHE"] = str(Path(scratch) / "cache")
        of_a_run = cost_in_a_run(Path(os.environ["FEWTUNE_DATA"]), Path(scratch), args.pictures)
        print(of_a_run, flush=True)
        large = opening(Path(scratch) / "large", args.repeats)
        print(large, flush=True)
    write_json(args.result, {"backbone": BACKBONE, "run": of_a_run, "large": large, **provenance()})


def cost_in_a_run(data: Path, scratch: Path, pictures: int) -> dict[str, Any]:
    """Seconds of a whole run and of the report in it, and the report's bytes."""
    for label in ("cats", "dogs"):
        (scratch / "pictures" / label).mkdir(parents=True)
        for picture in sorted((data / "cats-dogs" / "train" / label).iterdir())[: pictures // 2]:
            (scratch / "pictures" / label / picture.name).symlink_to(picture.resolve())
    weights = str(data / "weights" / f"{BACKBONE}.safetensors")
    started = time.perf_counter()
    fit(scratch / "pictures", scratch / "run", strategy="head", backbone=BACKBONE, weights=weights)
    seconds = time.perf_counter() - started
    # config.json is the last file that a run leaves before its report.
    page = (scratch / "run" / "report.html").stat()
    taken = (page.st_mtime_ns - (scratch / "run" / "config.json").stat().st_mtime_ns) / 1e9
    return {
        "pictures": pictures,
        "seconds": seconds,
        "report_seconds": taken,
        "share": taken / (seconds - taken),
        "bytes": page.st_size,
    }


def opening(place: Path, repeats: int) -> dict[str, Any]:
    """Bytes of the large page, and the seconds in which it is there."""
    classes = [f"class {number:03d}" for number in range(CLASSES)]
    page = write_report(made_run(place, classes, PER_CLASS, certainty=3.2))
    loaded, painted = [], []
    for _ in range(repeats):
        with chromium() as browser:
            opened = Opened(browser, page, width=1440)
            script = "performance.getEntriesByType('navigation')[0].loadEventEnd"
            loaded.append(opened.page.evaluate(script) / 1000)
            opened.close()
            started = time.perf_counter()
            opened = Opened(browser, page, width=1440)
            opened.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
            painted.append(time.perf_counter() - started)
            opened.close()
    return {
        "pictures": CLASSES * PER_CLASS,
        "classes": CLASSES,
        "bytes": page.stat().st_size,
        "load_seconds": {"best": min(loaded), "median": statistics.median(loaded)},
        "painted_seconds": {"best": min(painted), "median": statistics.median(painted)},
    }


if __name__ == "__main__":
    main()
