"""Kills and signals at random moments of real commands: the state before or after, and the next start works."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

from campaigns.attempts import Outcome, Workshop, complaint, each_file
from campaigns.scenarios import Scenario, Scenarios

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
INTERPRETER = 0.15  # seconds in which Python itself starts; the project cannot answer a signal before
IMPORTS = 4.0  # seconds
AT_ANY = 0.35  # share of the kills at any moment; the others come while files are written


class Kills:
    """Each scenario under each signal in turn, at a moment that the number draws."""

    total = 200

    def __init__(self, shop: Workshop):
        self.shop, self.scenarios = shop, Scenarios(shop)

    def attempt(self, number: int) -> list[Outcome]:
        scenario = self.scenarios.all[number % len(self.scenarios.all)]
        which = SIGNALS[number // len(self.scenarios.all) % len(SIGNALS)]
        group = f"{scenario.name}, {which.name}"
        folder = self.scenarios.fresh(scenario)
        moment = _Moment(number, which, folder, self.scenarios.baseline(scenario).seconds)
        cache = self.scenarios.cache(scenario)
        # Every third command is a new interpreter, from its first instruction on; the others begin with their work.
        run = self.shop.started if moment.from_the_start else self.shop.forked
        answer = run(scenario.words(folder), watch=moment, cache=cache)
        figures = {"files_left": len([path for path in each_file(folder) if path.name.startswith(".")])}
        allowed = (0, -which) if which == signal.SIGKILL or moment.early else (0, 128 + which)
        if not moment.early or answer.code is None:
            if problem := complaint(answer, allowed):
                return [Outcome(group, f"{problem} (after {moment.after:.2f} s)", figures)]
            if answer.code == 128 + which and len(answer.err.strip().splitlines()) < 1:
                return [Outcome(group, "no word about the signal", figures)]
        problem = self._judged(scenario, folder, cache)
        return [Outcome(group, f"{problem} (after {moment.after:.2f} s)" if problem else "", figures)]

    def _judged(self, scenario: Scenario, folder: Path, cache: Path) -> str:
        if not scenario.own_cache:
            return self.scenarios.judged(scenario, folder)
        for words in (["finetune", "cache", "list"], ["finetune", "cache", "clear"]):
            if problem := complaint(self.shop.forked(words, cache=cache), (0,)):
                return f"the next start: {problem}"
        left = [path.name for path in each_file(cache / "activations")]
        return f"leftovers: {left[:3]}" if left else ""


class _Moment:
    """Sends the signal at its moment: so long after the start, or after the first change of the folder."""

    def __init__(self, number: int, which: signal.Signals, folder: Path, seconds: float):
        draw = random.Random(number)
        self.which, self.folder = which, folder
        self.from_the_start = number % 3 == 0
        self.at_any = draw.random() < AT_ANY
        self.share, self.seconds = draw.random(), seconds
        self.after = 0.0

    @property
    def early(self) -> bool:
        """Whether the signal came before the project could answer it."""
        return self.after < INTERPRETER

    def __call__(self, process: int) -> None:
        began = time.monotonic()
        if self.at_any:
            time.sleep(self.share * (self.seconds + (IMPORTS if self.from_the_start else 0)))
        else:
            known = _names(self.folder)
            while _names(self.folder) == known and _alive(process):
                time.sleep(0.002)
            time.sleep(self.share * self.seconds / 2)
        self.after = time.monotonic() - began
        with suppress(ProcessLookupError):
            os.killpg(process, self.which)


def _names(folder: Path) -> set[str]:
    with suppress(FileNotFoundError):
        return {path.as_posix() for path in folder.rglob("*")}
    return set()


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
