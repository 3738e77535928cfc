"""Logs of a training: history.jsonl in the run folder, and TensorBoard or Weights & Biases for --log."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from finetune.config import Config
from finetune.errors import InputError
from finetune.extras import check_extra
from finetune.files.reading import parse_json
from finetune.files.writing import write_text

LINES_FILE = "history.jsonl"
PROJECT = "fewtune"

# Values of --log, also the names of the extras that install them.
TRACKERS = ("tensorboard", "wandb")

Row = Mapping[str, float]


class Tracker(Protocol):
    """Sends figures to another program, in the order of the epochs."""

    def epoch(self, row: Row) -> None: ...
    def result(self, figures: Row) -> None: ...
    def close(self, failed: bool) -> None: ...


class Log:
    """Receives the figures of a training. This one keeps none."""

    def begin(self, history: Sequence[Row]) -> None:
        """Start. history: rows of finished epochs; later ones follow, even where they were logged before."""

    def epoch(self, row: Row) -> None:
        """Log a finished epoch."""

    def result(self, figures: Row) -> None:
        """Log the result of the run by name."""


class RunLog(Log):
    """Writes a line per finished epoch to history.jsonl in a run folder, and sends it to a tracker where --log asks."""

    def __init__(self, folder: Path, config: Config):
        self._folder, self._config = folder, config
        self._tracker: Tracker | None = None
        self._since = time.monotonic()

    def begin(self, history: Sequence[Row]) -> None:
        self._drop_lines_after(history)
        self._started_tracker(len(history))
        self._since = time.monotonic()

    def epoch(self, row: Row) -> None:
        now = time.monotonic()
        line = {**row, "seconds": round(now - self._since, 3)}
        self._since = now
        try:
            with (self._folder / LINES_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"{self._folder / LINES_FILE} cannot be written: {error.strerror}") from error
        if self._tracker is not None:
            self._tracker.epoch(line)

    def result(self, figures: Row) -> None:
        tracker = self._started_tracker(0)
        if tracker is not None:
            tracker.result({name: float(value) for name, value in figures.items()})

    def close(self, failed: bool) -> None:
        if self._tracker is not None:
            self._tracker.close(failed)

    def _started_tracker(self, epochs: int) -> Tracker | None:
        """The tracker; it is started first where it was not yet. epochs: number of finished epochs."""
        if self._tracker is None and self._config.log != "none":
            start = TensorBoard if self._config.log == "tensorboard" else WeightsAndBiases
            self._tracker = start(self._folder, self._config, epochs)
        return self._tracker

    def _drop_lines_after(self, history: Sequence[Row]) -> None:
        """Keep the lines of the epochs in `history` only. A crash may leave later ones, which will be repeated."""
        path, lines = self._folder / LINES_FILE, dict[Any, Row]()
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
            try:
                row = parse_json(text, str(path))
                lines[row["epoch"]] = row
            except (InputError, KeyError, TypeError):
                continue
        rows = [lines.get(row["epoch"], row) for row in history]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


@contextmanager
def open_log(config: Config, folder: Path | None) -> Iterator[Log]:
    """The log of a run in `folder`, or one that keeps nothing where that is None; closed at the end."""
    check_log(config, folder)
    if folder is None:
        yield Log()
        return
    log, failed = RunLog(folder, config), True
    try:
        yield log
        failed = False
    finally:
        log.close(failed)


def check_log(config: Config, folder: Path | None) -> None:
    """InputError if the package of `config.log` is not installed, or there is no run folder for it."""
    if config.log == "none":
        return
    check_extra(config.log, f"--log {config.log}")
    if folder is None:
        raise InputError(f"--log {config.log} writes into the run folder: name one (--out)")


class TensorBoard:
    """Event files in RUN/tensorboard, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, config: Config, epochs: int):
        from torch.utils.tensorboard import SummaryWriter

        # Hides what an earlier process wrote about epochs that will be repeated.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1 if epochs else None)
        self._writer.add_text("config", f"```json\n{json.dumps(config.to_dict(), indent=2)}\n```", 0)
        self._epoch = epochs

    def epoch(self, row: Row) -> None:
        self._epoch = int(row["epoch"])
        for name, value in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, value, self._epoch)
        self._writer.flush()

    def result(self, figures: Row) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(f"result/{name}", value, self._epoch)

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases. Its environment variables, such as WANDB_MODE, apply."""

    def __init__(self, folder: Path, config: Config, epochs: int):
        import wandb

        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.resolve().name,
            id=_run_id(folder / "wandb" / "run-id"),
            resume="allow",
            dir=str(folder),
            config=config.to_dict(),
        )
        self._run.define_metric("*", step_metric="epoch")

    def epoch(self, row: Row) -> None:
        self._run.log(dict(row))

    def result(self, figures: Row) -> None:
        self._run.summary.update(dict(figures))

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def _run_id(path: Path) -> str:
    """Identifier of the run, kept in a file so that a resumed run continues it."""
    if not path.exists():
        write_text(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8")
