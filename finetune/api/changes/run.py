"""A finished run while it is changed: locked, read, and exchanged for its new state in one step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from finetune.api.changes.solved import Solved
from finetune.classifier.classifier import Classifier
from finetune.classifier.loading import load
from finetune.classifier.published.fetched import check_local
from finetune.classifier.run_config import CONFIG_FILE, RunConfig, read_run_config
from finetune.classifier.run_folder import HISTORY_FILE, PICTURES_FILE, VERSIONED
from finetune.classifier.run_state import STATE
from finetune.data.folder import IN_MEMORY
from finetune.data.table import list_pictures
from finetune.errors import InputError
from finetune.features.extraction import read_pictures
from finetune.features.table import SPLITS
from finetune.files.exchange import exchange, finish_exchange, staged
from finetune.files.folders import alone_in, check_free, check_writable
from finetune.files.locks import locked
from finetune.files.tables import read_csv
from finetune.kept.background import Background, read_background
from finetune.kept.features import MOST_DEPTHS, KeptFeatures, keeps_features, read_features
from finetune.kept.history import Change, read_changes, replace_state, write_changes
from finetune.models.pooled import PooledStages
from finetune.progress import Display


@dataclass(frozen=True)
class ChangingRun:
    """A run that is being changed.

    Attributes:
        path: The run folder.
        out: Where the new state goes; None for the run folder itself.
        classifier: The old state.
        config: Its config.json.
        started: On the monotonic clock.
    """

    path: Path
    out: Path | None
    classifier: Classifier
    config: RunConfig
    started: float

    def features(self, display: Display) -> KeptFeatures:
        """The features of its pictures. A run that keeps none reads the pictures again, where these are still there.

        Raises:
            InputError: Where neither is there, or the file is damaged.
        """
        if keeps_features(self.path):
            return read_features(self.path, self.classifier.classes)
        return self._read_again(display)

    def background(self) -> Background | None:
        """Its pictures of none of the classes; None where it has none. InputError where the file is damaged."""
        return read_background(self.path, PooledStages(self.classifier.network.backbone).widths)

    def _read_again(self, display: Display) -> KeptFeatures:
        source = self.config.table or self.config.folder
        why = f"{self.path} keeps no features of its pictures"
        if source is None or source == IN_MEMORY or not Path(source).exists():
            gone = "" if source in (None, IN_MEMORY) else f" in {source}"
            raise InputError(f"{why}, and the pictures{gone} are no longer there; run finetune fit on them again")
        display.say(f"{why}: they are read again, once, and their features are kept from now on.")
        table = {row["path"]: row for row in read_csv(self.path / PICTURES_FILE, ("path", "split", "sha256"))}
        metrics = self.classifier.run_metrics
        assert metrics is not None
        others = {entry.path for entry in (*metrics.unreadable, *metrics.left_out)}
        listing = list_pictures(source, to_train=False)
        samples = tuple(sample for sample in listing.samples if sample.path in table or sample.path in others)
        listing = replace(listing, samples=samples)
        if lost := set(table) - {sample.path for sample in samples}:
            raise InputError(f"{why}, and {listing.root / min(lost)} is gone; run finetune fit on the pictures again")
        stages = PooledStages(self.classifier.network.backbone)
        outputs = read_pictures(self.classifier.fabric, stages, listing, self.classifier.config, display)
        contents = tuple(outputs.contents[position] for position in range(len(samples)))
        splits: list[str | None] = []
        for sample, content in zip(samples, contents, strict=True):
            row = table.get(sample.path)
            if row is not None and (row["sha256"] != content.sha256 or row["split"] not in SPLITS):
                path = listing.root / sample.path
                raise InputError(f"{why}, and {path} has changed; run finetune fit on the pictures again")
            splits.append(None if row is None else row["split"])
        widths = stages.widths[-MOST_DEPTHS:]
        pooled = outputs.values[:, 0, -sum(widths) :]
        return KeptFeatures(
            listing, contents, tuple(splits), pooled, outputs.index, stages.depths[-MOST_DEPTHS:], widths
        )

    def replace(
        self,
        solved: Solved,
        kind: Literal["extend", "forget"],
        *,
        removed: int = 0,
        background: int = 0,
        retraining: str | None = None,
        for_good: bool = False,
    ) -> tuple[Classifier, Change]:
        """Exchange the run for its new state, or write that to `out`; the classifier and the entry in the history.

        removed, background: Number of pictures that were forgotten, and of background pictures that were added or
        forgotten.
        """
        before = read_changes(self.path)
        metrics, classes = solved.outcome.metrics, solved.outcome.classifier.classes
        change = Change(
            number=len(before) + 1,
            kind=kind,
            when=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            seconds=self._seconds(),
            added=len(solved.new & solved.used),
            removed=removed,
            background=background,
            classes_added=len(set(classes) - set(self.classifier.classes)),
            classes_removed=len(set(self.classifier.classes) - set(classes)),
            pictures=len(solved.used),
            accuracy=metrics.accuracy,
            split=metrics.split,
            n=metrics.n,
            retraining=retraining,
        )
        place = self.out or self.path
        with staged(place) as stage:
            solved.write(stage, self.path, self.config.asked, (*before, change), place)
            change = replace(change, seconds=self._seconds())  # the report took part of it
            write_changes(stage, (*before, change))
            if self.out is None:
                replace_state(self.path, stage, change.number, for_good=for_good)
            else:
                exchange(self.out, (*VERSIONED, HISTORY_FILE), stage=stage)
        classifier = solved.outcome.classifier
        classifier.folder = place
        return classifier, change

    def _seconds(self) -> float:
        """Since the change began."""
        return round(time.monotonic() - self.started, 2)


@contextmanager
def locked_run(run: Path) -> Iterator[None]:
    """Lock a run folder for a change, after one that was interrupted is completed.

    Raises:
        InputError: Where there is no finished run, or another process is at it.
    """
    check_local(run)
    read_run_config(run)
    with locked(run, busy=f"another process is at the run in {run}; wait for its end"):
        finish_exchange(run)
        if (run / STATE).exists():
            raise InputError(f"{run} holds a run that has not finished; continue it with: finetune fit … --resume")
        yield


@contextmanager
def changing(run: str | Path, out: str | Path | None, device: str) -> Iterator[ChangingRun]:
    """A run to change, locked until the end.

    Args:
        run: The run folder.
        out: Folder for the new state, which leaves the run as it is. None to change the run.
        device: One of auto, cpu, cuda.

    Raises:
        InputError: As for `locked_run` and `load`; where `out` holds anything.
    """
    started, run, place = time.monotonic(), Path(run), None if out is None else Path(out)
    with ExitStack() as stack:
        stack.enter_context(locked_run(run))
        if place is None:
            check_writable(run, "RUN", is_folder=True)
        elif place.exists() and place.samefile(run):
            raise InputError(f"{place} (--out) is the run itself, which is changed without --out")
        else:
            stack.enter_context(alone_in(place))
            if (place / CONFIG_FILE).exists():
                raise InputError(f"{place} (--out) already holds a run; choose another folder")
            check_free(place, "--out", "run")
        classifier, config = load(run, device=device), read_run_config(run)
        if classifier.run_metrics is None or config.folder is None:
            raise InputError(f"{run} holds a classifier without its run; extend and forget need the run folder of fit")
        yield ChangingRun(run, place, classifier, config, started)
