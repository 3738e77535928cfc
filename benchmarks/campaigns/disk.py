"""Faults of the file system at the n-th call, for every n: the old state or the new, and one clear line."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from campaigns import shim
from campaigns.attempts import Answer, Outcome, Workshop, complaint
from campaigns.scenarios import Scenario, Scenarios

# A full disk stays full; the others happen once.
FAULTS = (
    ("write", "ENOSPC", True), ("write", "EIO", False), ("write", "short", False), ("open", "EACCES", False),
    ("open", "ENOSPC", True), ("sync", "EIO", False), ("sync", "slow", False), ("rename", "EIO", False),
    ("rename", "EACCES", False), ("read", "EIO", False),
)  # fmt: skip
SCENARIOS = ("fit head", "fit full", "embed", "embed more", "enrol", "fewshot train", "export", "report")
FILE_SIZES = (0, 1_000, 20_000, 100_000)  # bytes of `ulimit -f`
DISK_SIZES = (16, 64, 256)  # kB that are free on a tmpfs


@dataclass(frozen=True)
class Fault:
    scenario: Scenario
    group: str
    command: Callable[[list[object], Path], Answer]


class Disk:
    """Every fault of every scenario, in an order that a seed draws."""

    def __init__(self, shop: Workshop):
        self.shop, self.scenarios = shop, Scenarios(shop)
        self.chosen = [scenario for scenario in self.scenarios.all if scenario.name in SCENARIOS]
        self.faults = [*self._sized(), *(self._of_calls() if shim.is_loaded() else ())]
        random.Random(0).shuffle(self.faults)
        self.total = len(self.faults) + (not shim.is_loaded())

    def attempt(self, number: int) -> list[Outcome]:
        if number >= len(self.faults):
            return [Outcome("n-th calls", skipped="no C compiler, or not Linux: faults at the n-th call are not made")]
        fault = self.faults[number]
        folder = self.scenarios.fresh(fault.scenario)
        answer = fault.command(fault.scenario.words(folder), folder)
        problem = complaint(answer)
        if not problem and answer.code and len(answer.err.strip().splitlines()[-1]) > 400:
            problem = f"the last line is no clear one: {answer.err.strip().splitlines()[-1][:200]}"
        if not problem and answer.code and " != " in answer.err:
            problem = f"not in words: {answer.err.strip().splitlines()[-1][:200]}"
        return [Outcome(fault.group, problem or self.scenarios.judged(fault.scenario, folder))]

    def _of_calls(self) -> list[Fault]:
        found = []
        for scenario in self.chosen:
            counts = self._counts(scenario)
            for kind, error, lasts in FAULTS:
                for at in range(1, counts[kind] + 1):
                    group = f"{scenario.name}, {error} at {kind}"
                    found.append(Fault(scenario, group, self._armed(scenario, kind, at, error, lasts)))
        return found

    def _armed(
        self, scenario: Scenario, kind: str, at: int, error: str, lasts: bool
    ) -> Callable[[list[object], Path], Answer]:
        def command(words: list[object], folder: Path) -> Answer:
            return self.shop.forked(
                words,
                cache=self.scenarios.cache(scenario),
                before=lambda: shim.arm(folder.parent, kind, at, error, lasts),
            )

        return command

    def _counts(self, scenario: Scenario) -> dict[str, int]:
        """Calls of each kind in an undisturbed run."""
        folder = self.scenarios.fresh(scenario)
        counts = self.shop.scratch / "counts"

        def told() -> None:
            counts.write_text(json.dumps({kind: shim.counted(kind) for kind in shim.KINDS}))

        self.shop.forked(
            scenario.words(folder),
            cache=self.scenarios.cache(scenario),
            before=lambda: shim.arm(folder.parent, "open", -1, "slow", False),
            after=told,
        )
        return dict(json.loads(counts.read_text()))

    def _sized(self) -> list[Fault]:
        def limited(scenario: Scenario, size: int) -> Callable[[list[object], Path], Answer]:
            def limit() -> None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself sets it
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

            return lambda words, folder: self.shop.forked(words, cache=self.scenarios.cache(scenario), before=limit)

        def small(scenario: Scenario, size: int) -> Callable[[list[object], Path], Answer]:
            return lambda words, folder: self._on_a_small_disk(scenario, words, folder, size)

        limits = [
            Fault(each, f"{each.name}, ulimit -f", limited(each, size)) for each in self.chosen for size in FILE_SIZES
        ]
        disks = [
            Fault(each, f"{each.name}, small tmpfs", small(each, size)) for each in self.chosen for size in DISK_SIZES
        ]
        return limits + (disks if os.geteuid() == 0 and _mounts(self.shop) else [])

    def _on_a_small_disk(self, scenario: Scenario, words: list[object], folder: Path, size: int) -> Answer:
        """The command, with its folder on a disk that is soon full; what it leaves is copied back."""
        aside = folder.with_name("aside")
        needed = sum(path.stat().st_size // 4096 + 2 for path in folder.rglob("*")) * 4  # kB of what is there before
        subprocess.run(["mv", folder, aside], check=True)
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={needed + size}k", "none", folder], check=True)
        try:
            subprocess.run(["cp", "-a", f"{aside}/.", folder], check=True)
            answer = self.shop.forked(words, cache=self.scenarios.cache(scenario))
            subprocess.run(["rm", "-rf", aside], check=True)
            subprocess.run(["cp", "-a", folder, aside], check=True)
        finally:
            subprocess.run(["umount", folder], check=True)
        folder.rmdir()
        subprocess.run(["mv", aside, folder], check=True)
        return answer


def _mounts(shop: Workshop) -> bool:
    place = shop.scratch / "mounted"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True, check=False).returncode == 0
    if done:
        subprocess.run(["umount", place], check=True)
    return done
