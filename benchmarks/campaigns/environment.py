"""Strange environments: closed streams, no terminal, other locales, read-only and missing folders, few resources."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaigns.attempts import Answer, Outcome, Workshop, complaint, emptied, made_pictures
from campaigns.scenarios import FAST, ON_CPU
from campaigns.shim import built_shim

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
WITHOUT_ROOT = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all")


@dataclass(frozen=True)
class Strange:
    """An environment.

    Attributes:
        name: For results.
        wrapper: A shell script that runs the command, which is "$@".
        variables: Environment variables; None removes one.
        codes: Exit codes that are right.
        needs: A program that makes it.
    """

    name: str
    wrapper: str = 'exec "$@"'
    variables: tuple[tuple[str, str | None], ...] = ()
    codes: tuple[int, ...] = (0,)
    needs: str = "sh"


PLACES = [
    *(Strange(f"closed {which}", f'exec "$@" {which}') for which in ("<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-")),
    Strange("stdout nobody reads", '"$@" | head -c 1 > /dev/null'),
    Strange("full stdout", 'exec "$@" > /dev/full', codes=(0, 2)),
    Strange("full stderr", 'exec "$@" 2> /dev/full'),
    Strange("LC_ALL=C", variables=tuple(ASCII.items())),
    Strange("latin-1 streams", variables=(("PYTHONIOENCODING", "latin-1"),)),
    Strange("no terminal type", variables=(("TERM", None), ("COLUMNS", "1"))),
    Strange("dumb terminal", variables=(("TERM", "dumb"), ("FORCE_COLOR", "1"))),
    Strange("no HOME", variables=(("HOME", None), ("FEWTUNE_CACHE", None))),
    Strange("missing HOME", variables=(("HOME", "MISSING"), ("FEWTUNE_CACHE", None))),
    Strange("read-only HOME", variables=(("HOME", "READONLY"), ("FEWTUNE_CACHE", None)), needs="setpriv"),
    Strange("read-only cache", variables=(("FEWTUNE_CACHE", "READONLY"),), codes=(0, 2), needs="setpriv"),
    Strange("read-only TMPDIR", variables=(("TMPDIR", "READONLY"),), needs="setpriv"),
    Strange("missing TMPDIR", variables=(("TMPDIR", "MISSING"),)),
    Strange("64 open files", 'ulimit -n 64; exec "$@"', codes=(0, 2)),
    Strange("address space of 1 GB", 'ulimit -v 1000000; exec "$@"', codes=(0, 1, 2)),
    Strange("address space of 6 GB", 'ulimit -v 6000000; exec "$@"', codes=(0, 1, 2)),
    Strange("one core", 'exec taskset -c 0 "$@"', needs="taskset"),
    Strange("no /dev/shm", "exec unshare -m sh -c 'mount -t tmpfs -o ro none /dev/shm && exec \"$@\"' sh \"$@\"",
            codes=(0, 2), needs="unshare"),
    Strange("clock goes back", variables=(("LD_PRELOAD", "SHIM"), ("FAULTS_CLOCK_BACK", "86400")), needs="gcc"),
    Strange("folder changes", codes=(0, 2)),
    Strange("working folder is gone", 'mkdir -p gone && cd gone && rmdir ../gone && exec "$@"', codes=(0, 2)),
]  # fmt: skip


class Environment:
    """Every command in every place."""

    def __init__(self, shop: Workshop):
        self.shop = shop
        self.pictures = made_pictures(shop.scratch / "größe 大", classes=2, each=10)
        (self.pictures / "class0000").rename(self.pictures / "größe 大")
        self.run = shop.scratch / "a run"
        jobs: dict[str, Callable[[Path], list[object]]] = {
            "fit": lambda out: ["finetune", "fit", self.pictures, "--out", out / "run", "--strategy", "head", *FAST],
            "predict": lambda out: ["finetune", "predict", self.run, self.pictures, "--device", "cpu"],
            "embed": lambda out: ["fewshot", "embed", self.pictures, "--out", out / "index", *ON_CPU],
            "inspect": lambda out: ["finetune", "inspect", self.pictures, *FAST[:4]],
        }
        self.cases = [(place, job, words) for job, words in jobs.items() for place in PLACES]
        self.total = len(self.cases)

    def attempt(self, number: int) -> list[Outcome]:
        place, job, words = self.cases[number]
        group = f"{place.name}: {job}"
        if shutil.which(place.needs) is None:
            return [Outcome(group, skipped=f"{place.needs} is not installed")]
        if not self.run.exists():
            self.shop.prepare(["finetune", "fit", self.pictures, "--out", self.run, "--strategy", "head", *FAST])
        out = emptied(self.shop.scratch / "attempt")
        answer = self._answer(place, words(out))
        codes = (*place.codes, 141) if "head -c" in place.wrapper else place.codes
        problem = complaint(answer, codes)
        if "2>" in place.wrapper and problem == "exit code 2 without a line":
            problem = ""
        if not problem and answer.code == 0 and job in ("fit", "embed"):
            made = out / ("run/model.safetensors" if job == "fit" else "index/index.json")
            problem = "" if made.exists() else "exit code 0, and the work is not done"
        return [Outcome(group, problem)]

    def _answer(self, place: Strange, words: list[object]) -> Answer:
        environment = self.shop.environment()
        for name, value in place.variables:
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = self._value(value)
        prefix = ["sh", "-c", place.wrapper, "sh"]
        if any(value == "READONLY" for _, value in place.variables):
            prefix = [*WITHOUT_ROOT, *prefix]
        watch = self._change if place.name == "folder changes" else None
        return self.shop.started(words, prefix=prefix, environment=environment, watch=watch, cwd=self.shop.scratch)

    def _value(self, value: str) -> str:
        if value == "SHIM":
            return str(built_shim())
        if value == "MISSING":
            return str(self.shop.scratch / "attempt" / "nowhere" / "at all")
        if value != "READONLY":
            return value
        folder = self.shop.scratch / "read-only"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o555)
        return str(folder)

    def _change(self, process: int) -> None:
        """Add, change and remove pictures while the command reads them."""
        end = threading.Event()

        def change() -> None:
            extra = self.pictures / "class0001"
            source = next(extra.glob("*.png")).read_bytes()
            for turn in range(400):
                if end.is_set() or not os.path.exists(f"/proc/{process}"):
                    break
                (extra / f"new{turn % 7}.png").write_bytes(source + bytes([turn % 256]))
                (extra / f"new{(turn + 3) % 7}.png").unlink(missing_ok=True)
                time.sleep(0.01)
            for path in extra.glob("new*.png"):
                path.unlink()

        threading.Thread(target=change, daemon=True).start()
