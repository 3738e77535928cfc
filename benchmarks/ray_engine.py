"""A collection of 20,000 small pictures through Ray with 2 workers, beside one process.

    FEWTUNE_DATA=FOLDER python benchmarks/ray_engine.py

Rows: pictures a second of one process and of Ray; peak memory of driver and workers at 5,000 and 20,000 pictures; a
worker and the driver killed (SIGKILL) and the driver started again: pictures that are lost or there twice; the largest
difference of a vector from that of one process. Drawings of Omniglot; the encoder that ships. Each row that is in
benchmarks/results/ray_engine.json is not measured again; --again measures all. --work keeps pictures and parts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import provenance

from fewshot.collection.parts import part_files, read_part
from finetune.files.writing import write_json

RESULT = Path(__file__).parent / "results" / "ray_engine.json"
ARCHIVES = ("images_background.zip", "images_evaluation.zip")
FEW, MANY, WORKERS = 5_000, 20_000, 2
WIDTH = 256  # of the encoder's vectors
EVERY = 0.2  # seconds between two looks at the processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fewtune-ray")
    parser.add_argument("--again", action="store_true", help="measure all rows again")
    parser.add_argument("--few", type=int, default=FEW)
    parser.add_argument("--many", type=int, default=MANY)
    parser.add_argument("--job", nargs=3, metavar=("ENGINE", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        embed(*args.job)
        return
    result = json.loads(RESULT.read_text()) if RESULT.is_file() and not args.again else {}
    sources = {count: write_pictures(args.work / f"pictures-{count}", count) for count in (args.few, args.many)}
    rows: dict[str, Callable[[], dict[str, Any]]] = {}
    for count, source in sources.items():
        rows[f"one process, {count} pictures"] = partial(timed, "plain", source, args.work / f"plain-{count}")
        rows[f"Ray, {count} pictures"] = partial(timed, "ray", source, args.work / f"ray-{count}")
    rows["killed and started again"] = partial(killed, sources[args.many], args.work / "killed")
    for name, measure in rows.items():
        if name not in result:
            result[name] = measure()
            write_json(RESULT, result | provenance())
        print(f"{name}: {json.dumps(result[name])}", flush=True)
    result["compared"] = {
        name: compared(args.work / f"plain-{args.many}", args.work / out, sources[args.many])
        for name, out in (("Ray", f"ray-{args.many}"), ("killed and started again", "killed"))
    }
    few, many = result[f"Ray, {args.few} pictures"], result[f"Ray, {args.many} pictures"]
    result["memory at many / at few"] = {
        name: round(many["peak_mb"][name] / few["peak_mb"][name], 3) for name in few["peak_mb"]
    }
    for engine in ("one process", "Ray"):
        ends = [result[f"{engine}, {count} pictures"]["seconds"] for count in (args.few, args.many)]
        result[f"{engine}, pictures a second after its start"] = round((args.many - args.few) / (ends[1] - ends[0]), 1)
    write_json(RESULT, result | provenance())
    for name in ("compared", "memory at many / at few"):
        print(f"{name}: {json.dumps(result[name])}")


def embed(engine: str, source: str, out: str) -> None:
    """One job, in a process of its own."""
    from fewshot.collection.ray_engine import RayEngine
    from fewshot.collection.shards import embed_shard
    from fewshot.embedding.embedder import Embedder
    from finetune.data.collection.shard import Shard

    embedder = Embedder.load("omniglot", device="cpu")
    ray = RayEngine(device="cpu") if engine == "ray" else None
    embed_shard(source, out, embedder, Shard(), workers=WORKERS, ray=ray)


def write_pictures(folder: Path, count: int) -> Path:
    """The first `count` drawings of Omniglot below `folder`."""
    if (folder / "written").exists():
        return folder
    data = Path(os.environ["FEWTUNE_DATA"]) / "omniglot"
    written = 0
    for name in ARCHIVES:
        with zipfile.ZipFile(data / name) as archive:
            for member in sorted(archive.namelist()):
                if member.endswith(".png") and written < count:
                    archive.extract(member, folder)
                    written += 1
    assert written == count, f"{written} pictures in the archives of Omniglot"
    (folder / "written").touch()
    return folder


@dataclass
class Job:
    """A job under way, and the peak memory of its processes so far."""

    process: subprocess.Popen[bytes]
    started: float
    peaks: dict[int, tuple[str, int]] = field(default_factory=dict)  # pid -> kind of process, kB

    @classmethod
    def start(cls, engine: str, source: Path, out: Path) -> Job:
        words = [sys.executable, __file__, "--work", str(out.parent), "--job", engine, str(source), str(out)]
        return cls(subprocess.Popen(words), time.monotonic())

    def look(self) -> None:
        """Read the peak memory of every process of the job, its largest resident set so far."""
        for pid, name in descendants(self.process.pid).items():
            kind = "worker" if name.startswith("ray::MapWorker") else "other" if pid != self.process.pid else "driver"
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:  # it has ended
                continue
            peak = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
            if peak:
                self.peaks[pid] = (kind, max(peak[0], self.peaks.get(pid, ("", 0))[1]))

    def workers(self) -> list[int]:
        return [pid for pid, name in descendants(self.process.pid).items() if name.startswith("ray::MapWorker")]

    def wait(self) -> float:
        """Seconds until the end of the job."""
        while self.process.poll() is None:
            self.look()
            time.sleep(EVERY)
        assert self.process.returncode == 0, f"the job ended with {self.process.returncode}"
        return time.monotonic() - self.started

    def peak_mb(self) -> dict[str, float]:
        return {
            kind: round(max(kb for found, kb in self.peaks.values() if found == kind) / 1024, 1)
            for kind in sorted({found for found, _ in self.peaks.values()} - {"other"})
        }


def timed(engine: str, source: Path, out: Path) -> dict[str, Any]:
    shutil.rmtree(out, ignore_errors=True)
    load = os.getloadavg()[0]
    job = Job.start(engine, source, out)
    seconds = job.wait()
    return {"seconds": round(seconds, 1), "peak_mb": job.peak_mb(), "load_at_start": round(load, 1)}


def killed(source: Path, out: Path) -> dict[str, Any]:
    """Kill a worker after the first part and the driver after some more; start again."""
    shutil.rmtree(out, ignore_errors=True)
    job = Job.start("ray", source, out)
    wait_for_parts(job, out, 1)
    os.kill(job.workers()[0], signal.SIGKILL)
    wait_for_parts(job, out, 4)
    below = descendants(job.process.pid)
    job.process.kill()
    job.process.wait()
    ended = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in below):
        assert time.monotonic() < ended + 120, "processes of the killed job are alive"
        time.sleep(EVERY)
    alive, kept = time.monotonic() - ended, len(keys_in(out))
    job = Job.start("ray", source, out)
    seconds = job.wait()
    return {
        "pictures_in_parts_of_the_killed_job": kept,
        "its_processes_end_s": round(alive, 1),
        "seconds": round(seconds, 1),
    }


def wait_for_parts(job: Job, out: Path, count: int) -> None:
    while len(list(out.rglob("part-*.safetensors"))) < count:
        assert job.process.poll() is None, f"the job ended with {job.process.returncode}"
        time.sleep(EVERY)


def compared(plain: Path, other: Path, source: Path) -> dict[str, Any]:
    """Pictures that are lost or there twice, and the largest difference of a number of a vector."""
    expected, found = keys_in(plain), keys_in(other)
    pictures = {path.relative_to(source).as_posix() for path in source.rglob("*.png")}
    of = vectors_in(plain)
    difference = max(float(np.abs(vector - of[key]).max()) for key, vector in vectors_in(other).items())
    return {
        "pictures": len(set(found)),
        "lost": len(pictures - set(found)) + len(set(expected) - set(found)),
        "twice": len(found) - len(set(found)),
        "largest_difference": difference,
    }


def keys_in(out: Path) -> list[str]:
    return [
        key
        for folder in sorted(out.glob("shard-*"))
        for path in part_files(folder)
        for key in read_part(path, WIDTH).keys
    ]


def vectors_in(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in sorted(out.glob("shard-*")):
        for path in part_files(folder):
            part = read_part(path, WIDTH)
            found |= dict(zip(part.keys, np.array(part.vectors), strict=True))
    return found


def descendants(parent: int) -> dict[int, str]:
    """Process -> its command line, of a process and all below it."""
    parents, found = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
        except OSError:  # it has ended
            continue
    below = {parent}
    while more := {pid for pid, above in parents.items() if above in below} - below:
        below |= more
    return {pid: found[pid] for pid in below if pid in found}


if __name__ == "__main__":
    main()
