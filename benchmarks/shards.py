"""A collection embedded in shards: every picture once, vectors of one process, kills, and peak memory.

    FEWTUNE_DATA=FOLDER python benchmarks/shards.py

Embeds 20,000 drawings of Omniglot, written as PNG files, with the encoder that ships: in one process (`fewshot embed`),
and in 4 shards (`fewshot embed --shard`), which are merged. Then shard 2 once more, killed by SIGKILL in the middle
and restarted. The peak memory is that of a process by `wait4`, for the whole collection as one shard and for
`finetune predict --csv`, at 5,000 and at 20,000 pictures. 5,000 are also embedded both ways in plain float32. Expected:
no difference of keys and contents; vectors equal to 1e-5 in float32, and with a cosine of 0.999 in the few batches that
are not full otherwise; memory within 10 %.

Steps that are done are kept in the folder of --work, and a run that was ended goes on there. The result goes to
benchmarks/results/shards.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

from machine import provenance

RESULT = Path(__file__).parent / "results" / "shards.json"
SHARDS, KILLED = 4, 2
PEAKS = {"a_shard": "memory at", "predict": "predict"}  # name in the result -> steps that measure it
# In a process of its own, so that the memory of this one stays small: a process counts its parent's until it starts.
WRITE = """
import sys
from pathlib import Path
from PIL import Image
from fewshot.omniglot.dataset import read_omniglot
folder, count = Path(sys.argv[1]), int(sys.argv[2])
drawings = 255 - read_omniglot().pictures[:count].numpy()
assert len(drawings) == count
for at, drawing in enumerate(drawings):
    path = folder / f"{at // 1000:02}" / f"{at:05}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawing).save(path)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--fewer", type=int, default=5_000, help="for the peak memory")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "fewtune-shards")
    args = parser.parse_args()
    job = Job(args.work, args.pictures, args.fewer)
    job.run()
    result = {**provenance(), "pictures": args.pictures, "fewer": args.fewer, "shards": SHARDS, "runs": job.done}
    result |= job.compared()

    from finetune.files.writing import write_json

    write_json(RESULT, result)
    print(json.dumps({name: value for name, value in result.items() if name not in ("machine", "versions")}, indent=2))


class Job:
    """The steps, each done once.

    Attributes:
        done: Name of a step -> what it measured.
    """

    def __init__(self, work: Path, pictures: int, fewer: int):
        self.work = work / f"{pictures}-{fewer}"
        self.pictures, self.fewer = pictures, fewer
        self.all, self.some = self.work / "pictures", self.work / "fewer"
        self._state = self.work / "done.json"
        self.done: dict[str, Any] = json.loads(self._state.read_text()) if self._state.is_file() else {}

    def run(self) -> None:
        for folder, count in ((self.all, self.pictures), (self.some, self.fewer)):
            self._once(f"write {count}", partial(self._write, folder, count))
        self._once("one process", partial(fewshot, "embed", self.all, "--out", self.work / "one.index"))
        for number in range(1, SHARDS + 1):
            self._once(f"shard {number}", partial(self._shard, number, "parts"))
        self._once("merge", partial(fewshot, "merge", self.work / "merged.index", self.work / "parts"))
        self._once("embed into the merged index", self._embed_again)
        self._once("killed", self._killed)
        self._once("restarted", partial(self._shard, KILLED, "killed.parts"))
        for folder, count in ((self.some, self.fewer), (self.all, self.pictures)):
            out = self.work / f"{count}.parts"
            words = ("embed", folder, "--out", out, "--shard", "1/1")
            self._once(f"memory at {count}", partial(fewshot, *words))
        self._in_float32()
        self._once("classifier", self._classifier)
        for folder, count in ((self.some, self.fewer), (self.all, self.pictures)):
            self._once(f"predict {count}", partial(self._predict, folder, count))

    def compared(self) -> dict[str, Any]:
        """Differences of the results, and the ratio of peak memories."""
        from fewshot import Index

        one, merged = (Index.load(self.work / name, device="cpu") for name in ("one.index", "merged.index"))
        keys = one.keys
        whole, restarted = (
            self._rows(self.work / name / f"shard-{KILLED}-of-{SHARDS}") for name in ("parts", "killed.parts")
        )
        counts = (self.fewer, self.pictures)
        peaks = {kind: [self.done[f"{kind} {count}"]["peak_mb"] for count in counts] for kind in PEAKS.values()}
        again = self.done["embed into the merged index"]
        return {
            "same_keys_in_the_same_order": keys == merged.keys,
            "pictures_in_the_index": len(merged),
            "same_contents": all(one.metadata(key) == merged.metadata(key) for key in keys),
            "contents_are_those_of_the_files": all(merged.metadata(key)["sha256"] == self._digest(key) for key in keys),
            "vectors": self._differences("one.index", "merged.index"),
            f"vectors_of_{self.fewer}_in_float32": self._differences("float32.one.index", "float32.merged.index"),
            "embed_into_the_merged_index": {name: again[name] for name in ("unchanged", "embedded", "removed")},
            "killed": {
                "pictures_in_parts_when_killed": self.done["killed"]["pictures"],
                "pictures_after_the_restart": len(restarted),
                "lost": len(set(whole) - set(restarted)),
                "twice": len(restarted) - len(set(restarted)),
                "embedded_again": self.done["restarted"]["embedded"] - (len(whole) - self.done["killed"]["pictures"]),
            },
        } | {
            f"peak_mb_of_{name}": {str(count): peak for count, peak in zip(counts, peaks[kind], strict=True)}
            | {"ratio": round(peaks[kind][1] / peaks[kind][0], 3)}
            for name, kind in PEAKS.items()
        }

    def _in_float32(self) -> None:
        """One process and shards of fewer pictures. Other ways than float32 differ in batches that are not full."""
        words = ("embed", self.some, "--tolerance", "1", "--out")
        self._once("float32, one process", partial(fewshot, *words, self.work / "float32.one.index"))
        for number in range(1, SHARDS + 1):
            shard = (*words, self.work / "float32.parts", "--shard", f"{number}/{SHARDS}")
            self._once(f"float32, shard {number}", partial(fewshot, *shard))
        merge = ("merge", self.work / "float32.merged.index", self.work / "float32.parts")
        self._once("float32, merge", partial(fewshot, *merge))

    def _differences(self, one: str, other: str) -> dict[str, Any]:
        """How two indexes of the same keys differ."""
        import numpy as np

        from fewshot import Index

        index, second = (Index.load(self.work / name, device="cpu") for name in (one, other))
        vectors, others = index.vectors(index.keys), second.vectors(index.keys)
        differences = np.abs(vectors - others).max(1)
        return {
            "equal_bit_for_bit": int((differences == 0).sum()),
            "of": len(index),
            "largest_difference": float(differences.max()),
            "least_cosine": float((vectors.astype(np.float64) * others).sum(1).min()),
        }

    def _once(self, name: str, step: Callable[[], dict[str, Any]]) -> None:
        if name not in self.done:
            load = os.getloadavg()[0]
            self.done[name] = step() | {"load": round(load, 1)}
            self._state.write_text(json.dumps(self.done))
            print(f"{name}: {self.done[name]}", flush=True)

    def _write(self, folder: Path, count: int) -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-c", WRITE, str(folder), str(count)], check=True)
        return {"pictures": count, "bytes": sum(path.stat().st_size for path in folder.rglob("*.png"))}

    def _shard(self, number: int, parts: str) -> dict[str, Any]:
        return fewshot("embed", self.all, "--out", self.work / parts, "--shard", f"{number}/{SHARDS}")

    def _embed_again(self) -> dict[str, Any]:
        return fewshot("embed", self.all, "--out", self.work / "merged.index")

    def _classifier(self) -> dict[str, Any]:
        digits, run = self.work / "digits", self.work / "run"
        for folder in (digits, run):
            shutil.rmtree(folder, ignore_errors=True)
        script = "import sys, pathlib; from finetune.data.digits import write_digits; "
        subprocess.run([sys.executable, "-c", f"{script}write_digits(pathlib.Path(sys.argv[1]))", digits], check=True)
        words = ("fit", digits, "--out", run, "--backbone", "fewtune_conv4", "--strategy", "head")
        with open(os.devnull, "w") as output:
            return measured("finetune", *words, output=output)

    def _predict(self, folder: Path, count: int) -> dict[str, Any]:
        table = self.work / f"{count}.csv"
        with open(os.devnull, "w") as output:
            cost = measured("finetune", "predict", self.work / "run", folder, "--csv", table, output=output)
        with table.open() as rows:
            return {"rows": sum(1 for _ in rows) - 1} | cost

    def _killed(self) -> dict[str, Any]:
        """Kill a shard once it has written two parts."""
        out = self.work / "killed.parts"
        shutil.rmtree(out, ignore_errors=True)
        folder = out / f"shard-{KILLED}-of-{SHARDS}"
        words = ["embed", self.all, "--out", out, "--shard", f"{KILLED}/{SHARDS}", "--json"]
        process = subprocess.Popen([sys.executable, "-m", "fewshot", *map(str, words)], stdout=subprocess.DEVNULL)
        while len(list(folder.glob("part-*"))) < 2:
            if process.poll() is not None:
                raise SystemExit("the shard ended before it could be killed; give more --pictures")
            time.sleep(0.01)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            raise SystemExit("the shard ended before it could be killed; give more --pictures")
        counted = subprocess.run(
            [sys.executable, "-c", f"from shards import Job; print(len(Job._rows({str(folder)!r})))"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        return {"pictures": int(counted.stdout)}

    @staticmethod
    def _rows(folder: Path | str) -> list[tuple[str, bytes]]:
        """Key and content of every row of a shard's parts."""
        from fewshot.collection.parts import read_header, read_parts

        folder = Path(folder)
        width = read_header(folder).width
        return [
            (key, digest.tobytes())
            for _, part in read_parts(folder, width)
            for key, digest in zip(part.keys, part.digests, strict=True)
        ]

    def _digest(self, key: str) -> str:
        return hashlib.sha256((self.all / key).read_bytes()).hexdigest()


def fewshot(*words: object) -> dict[str, Any]:
    """What a command answers, with its seconds and its peak memory."""
    with tempfile.TemporaryFile("w+") as output:
        cost = measured("fewshot", *words, "--json", output=output)
        output.seek(0)
        found: dict[str, Any] = json.loads(output.read())
    found.pop("folder", None)
    return found | cost


def measured(program: str, *words: object, output: IO[str]) -> dict[str, Any]:
    """Seconds and peak memory of a command, whose answer goes to `output`."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", program, *map(str, words)], stdout=output)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{program} {' '.join(map(str, words))} ended with {process.returncode}")
    return {"seconds": round(time.monotonic() - started, 1), "peak_mb": round(usage.ru_maxrss / 1024, 1)}


if __name__ == "__main__":
    main()
