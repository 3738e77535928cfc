"""What every campaign uses: an attempt's outcome, commands in processes of their own, folders of made pictures."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

WARM = (
    *(f"finetune.{name}" for name in ("api.fit", "api.evaluate", "api.inspect", "classifier.export", "report.report")),
    *(f"fewshot.{name}" for name in ("recognition.recognizer", "search.picture_index", "training.train")),
    *("finetune.cli.main", "fewshot.cli.main", "onnxscript", "openvino", "scipy.stats", "sklearn.metrics", "faiss"),
)
LONGEST = 600.0  # seconds of a command; what takes longer hangs, even on a machine that does much else


@dataclass(frozen=True)
class Outcome:
    """What one attempt found.

    Attributes:
        group: Kind of the attempt, such as "fit head, SIGKILL".
        failure: What went wrong; empty where the project stood it.
        figures: Measured numbers.
        skipped: Why it could not be tried here; empty where it was.
    """

    group: str
    failure: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    skipped: str = ""


class Campaign(Protocol):
    """Attempts by number. The number is the seed: the same one makes the same fault again."""

    total: int

    def attempt(self, number: int) -> list[Outcome]: ...


@dataclass(frozen=True)
class Answer:
    """What a command answered. code: None where it took longer than it may; negative for a signal."""

    code: int | None
    out: str
    err: str
    seconds: float
    peak: int = 0  # bytes of memory


Watch = Callable[[int], None]


def complaint(answer: Answer, codes: Sequence[int] = (0, 2)) -> str:
    """What a user would not forgive in an answer; empty where there is nothing."""
    if answer.code is None:
        return f"hangs: still running after {answer.seconds:.0f} s"
    last = (answer.err.strip().splitlines() or [""])[-1][:200]
    for word in ("Traceback", "Exception ignored", "Segmentation fault"):
        if word in answer.err:
            return f"{word}: {last}"
    if answer.code not in codes:
        return f"exit code {answer.code}: {last}"
    if answer.code == 2 and not last:
        return "exit code 2 without a line"
    return ""


class Workshop:
    """A scratch folder with made pictures, and processes that run the tree under test in it.

    largest: Largest number of pictures of the campaign `scale`.
    """

    def __init__(self, tree: Path, largest: int):
        self.tree, self.largest = tree, largest
        self.scratch = Path(tempfile.mkdtemp(prefix="fewtune-faults-"))
        self.cache = self.scratch / "cache"
        self.pictures = made_pictures(self.scratch / "pictures", classes=3, each=12)

    def warm(self) -> None:
        """Import what the commands import, without computing anything: a fork begins with the work."""
        for module in WARM:
            importlib.import_module(module)

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def environment(self, cache: Path | None = None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        return kept | {
            "PYTHONPATH": str(self.tree),
            "FEWTUNE_CACHE": str(cache or self.cache),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
        }

    def started(
        self,
        words: Sequence[object],
        *,
        watch: Watch | None = None,
        cache: Path | None = None,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Answer:
        """The real command, in a new interpreter and a session of its own."""
        program, *rest = map(str, words)
        began = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(
                [*prefix, sys.executable, "-m", program, *rest],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment or self.environment(cache),
                cwd=cwd,
                start_new_session=True,
            )
            try:
                if watch is not None:
                    watch(process.pid)
                code: int | None = process.wait(LONGEST)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            out.seek(0)
            err.seek(0)
            said, told = (stream.read().decode(errors="replace") for stream in (out, err))
        return Answer(code, said, told, time.monotonic() - began)

    def forked(
        self,
        words: Sequence[object],
        *,
        cache: Path | None = None,
        before: Callable[[], None] = lambda: None,
        after: Callable[[], None] = lambda: None,
        watch: Watch | None = None,
        longest: float = LONGEST,
    ) -> Answer:
        """The command in a fork of this process, which has imported everything: without the seconds of imports."""

        def job() -> None:
            before()
            run_command(words)
            after()

        return forked(job, {"FEWTUNE_CACHE": str(cache or self.cache)}, watch=watch, longest=longest)

    def prepare(self, words: Sequence[object], cache: Path | None = None) -> None:
        """As `forked`; SystemExit where the command fails."""
        answer = self.forked(words, cache=cache)
        if problem := complaint(answer, (0,)):
            raise SystemExit(f"cannot prepare: {problem}\n{answer.err}")


def run_command(words: Sequence[object]) -> None:
    """The command in this process."""
    sys.argv = [str(word) for word in words]
    importlib.import_module(f"{words[0]}.cli.main").main()


def forked(
    job: Callable[[], object],
    variables: Mapping[str, str] | None = None,
    *,
    watch: Watch | None = None,
    longest: float = LONGEST,
) -> Answer:
    """Run `job` in a fork; its exit code is 0 unless it raises."""
    began = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            _in_child(job, variables or {}, out.fileno(), err.fileno())
        if watch is not None:
            watch(child)
        code, peak = _waited(child, began + longest)
        out.seek(0)
        err.seek(0)
        said, told = (stream.read().decode(errors="replace") for stream in (out, err))
    return Answer(code, said, told, time.monotonic() - began, peak)


def _in_child(job: Callable[[], object], variables: Mapping[str, str], out: int, err: int) -> None:
    code = 1
    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(variables)
        job()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _waited(child: int, deadline: float) -> tuple[int | None, int]:
    while time.monotonic() < deadline:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    _, _, usage = os.wait4(child, 0)
    return None, usage.ru_maxrss * 1024


def made_pictures(folder: Path, *, classes: int, each: int, side: int = 40, seed: int = 0) -> Path:
    """A folder of coloured noise, one hue a class."""
    random = np.random.default_rng(seed)
    hues = random.integers(30, 226, (classes, 3))
    for label in range(classes):
        (folder / f"class{label:04d}").mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(hues[label] + random.normal(0, 15, (side, side, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label:04d}" / f"{number:05d}.png")
    return folder


def names_below(folder: Path) -> list[str]:
    """Names of the files below a folder; what is random in them is left out."""
    return sorted(
        re.sub(r"[0-9a-f]{16,}", "TOKEN", path.relative_to(folder).as_posix())
        for path in folder.rglob("*")
        if path.is_file()
    )


def copied(source: Path, target: Path) -> Path:
    """A copy of a folder in the place of what was there."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def emptied(folder: Path) -> Path:
    """A new, empty folder in the place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def each_file(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
