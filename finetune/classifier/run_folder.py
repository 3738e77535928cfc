"""The run folder of `finetune fit`: begin, resume, replace, finish; and the tables in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor

from finetune.classifier.run_config import CONFIG_FILE, FORMAT, read_run_config
from finetune.classifier.run_metrics import METRICS_FILE
from finetune.classifier.run_state import STATE, check_same_options, continues_run, has_finished, remove_state
from finetune.classifier.stored import REPLACED, WEIGHTS_FILE
from finetune.config import Config
from finetune.data.folder import Listing, Sample
from finetune.data.images import Content
from finetune.data.split_record import recorded_splits
from finetune.errors import InputError
from finetune.features.forward import Outputs
from finetune.features.table import SPLITS
from finetune.files.exchange import finish_exchange
from finetune.files.folders import alone_in
from finetune.files.reading import as_type, parse_json, read_json, read_tensors_and_metadata, read_tensors_header
from finetune.files.tensors import check_tensor
from finetune.files.writing import write_json, write_tensors
from finetune.open_set.unknown_model import UNKNOWN_FILE

PREDICTIONS_FILE = "predictions.csv"
# Log-probabilities (n, classes) by split, in the order of predictions.csv.
PROBABILITIES_FILE = "probabilities.safetensors"
PREDICTIONS_HEADER = ("path", "split", "label", "predicted", "probability", "probability_of_label")
PICTURES_FILE = "pictures.csv"
# Features and hashes of pictures of none of the classes.
BACKGROUND_FILE = "background.safetensors"
# A row for each epoch, written when training has ended.
HISTORY_FILE = "history.csv"
# learned: whether the kept classifier has learned from the picture.
PICTURES_HEADER = ("path", "split", "label", "sha256", "learned")

# Earlier states of a run that was extended, a folder each.
EARLIER = "earlier"
# Pictures that the page of `finetune try` has added.
ADDED = "added"

# Bytes of the header of kept activations, which lists the pictures: the bound of safetensors itself.
_MOST_HEADER_BYTES = 100_000_000

# Everything that a run writes to its folder. config.json is first: without it there is no run.
RUN_FILES = (
    CONFIG_FILE,
    WEIGHTS_FILE,
    METRICS_FILE,
    HISTORY_FILE,
    "history.jsonl",
    PREDICTIONS_FILE,
    PROBABILITIES_FILE,
    PICTURES_FILE,
    "features.safetensors",
    BACKGROUND_FILE,
    "changes.json",
    UNKNOWN_FILE,
    "report.html",
    "evaluations",
    "tensorboard",
    "wandb",
    ADDED,
    EARLIER,
    STATE,
)
# What `extend` and `forget` exchange: all but what the training left.
_UNCHANGED = (HISTORY_FILE, "history.jsonl", "tensorboard", "wandb", ADDED, EARLIER, STATE)
VERSIONED = tuple(name for name in RUN_FILES if name not in _UNCHANGED)


@dataclass(frozen=True)
class _Budget:
    """What a run with --minutes keeps for its continuation: seconds that were used, the plan, the note."""

    spent: Annotated[float, Meta(ge=0, le=1e100)] = 0.0
    plan: dict[str, Any] | None = None
    note: str = ""


class RunFolder:
    """A run folder while it is being written.

    As a context manager it locks out other processes from `begin` until the end. A run that fails before `started`
    leaves nothing in the folder. A run that replaces another one moves the old files to `.replaced/` when it writes its
    first file. They are deleted once the new classifier is saved, and moved back if it never is. `state/` keeps what
    only a continuation needs, and is deleted at the end.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoint = path / STATE / "checkpoint.safetensors"
        self._features = path / STATE / "features.safetensors"
        self._unlabelled = path / STATE / "unlabelled.safetensors"
        self._budget = path / STATE / "budget.json"
        self._replaced = path / REPLACED

        # Splits recorded by earlier runs on the pictures, by sha256; None until they are read.
        self.recorded: dict[str, str] | None = None

        # What --backbone auto found, as JSON values; None where one network was named.
        self.comparison: dict[str, Any] | None = None

        self._splits: Mapping[str, str] = {}
        self._request: dict[str, Any] = {}
        self._lock = ExitStack()
        self._began = self._resumes = self._overwrites = self._wrote = self._started = False

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if self._began:  # otherwise the folder belongs to another run, or to another process
                self._tidy(kind)
        finally:
            self._lock.close()

    def begin(
        self, folder: Path, config: Config, *, resume: bool, overwrite: bool = False, table: str | None = None
    ) -> bool:
        """Check that the run may begin or continue here, and lock the folder; True where it has finished already.

        folder, table: of the pictures; table is None where the folder itself lists them. InputError where there is
        anything but a run, or a run with other options or pictures, or one that another process is writing.
        """
        if resume and overwrite:
            raise InputError("--resume continues the run in --out and --overwrite replaces it; give one of them")
        self._lock.enter_context(alone_in(self.path))
        self._recover()
        request = {"format": FORMAT, "folder": str(folder.resolve()), "config": config.to_dict()}
        self._request = request if table is None else request | {"table": table}
        self._resumes = resume and (self.path / CONFIG_FILE).exists()
        finished = self._may_begin(resume, overwrite)
        self._began = True
        return finished

    def _may_begin(self, resume: bool, overwrite: bool) -> bool:
        if not continues_run(self.path, resume=resume or overwrite, overwritable=True):
            return False
        try:
            found = read_run_config(self.path)
        except InputError as error:
            what = f"{self.path} (--out) holds no run that can be continued or replaced"
            raise InputError(f"{what}; choose another folder ({error})") from error
        if overwrite:
            self._overwrites = True
            return False
        before, now = found.table or found.folder, self._request.get("table", self._request["folder"])
        if before != now:
            raise InputError(f"{self.path} (--out) holds a run on {before}, not on {now}")
        options, asked = Config.from_dict(found.config).to_dict() | found.asked, self._request["config"]
        check_same_options(self.path, options, asked, ", and --overwrite starts anew")
        return found.classes is not None and has_finished(self.path, (WEIGHTS_FILE, METRICS_FILE))

    @property
    def asked(self) -> dict[str, Any]:
        """The options that were asked for with another value than config.json has, such as backbone "auto"."""
        found: dict[str, Any] = self._request.get("asked", {})
        return found

    def resolved(self) -> Config | None:
        """The options as the run that is continued has resolved them; None where it has resolved nothing."""
        if not self._resumes or not self._features.exists():
            return None
        found = read_run_config(self.path)
        if not found.asked:
            return None
        metadata = read_tensors_header(self._features, most_header=_MOST_HEADER_BYTES).metadata
        config = found.options()
        comparison = parse_json(metadata.get("comparison", "null"), str(self._features))
        if not isinstance(comparison, dict | None):
            raise _damaged(self._features, "comparison is no JSON object")
        self.resolve(config, comparison, {})
        return config

    def resolve(self, config: Config, comparison: dict[str, Any] | None, splits: Mapping[str, str]) -> None:
        """Continue with other options than were asked for: a run that is resumed chooses no network again.

        comparison: What --backbone auto found. splits: of the pictures by sha256, which the run keeps to.
        """
        asked, now = self._request["config"], config.to_dict()
        self._request["asked"] = {name: value for name, value in asked.items() if now[name] != value}
        self._request["config"] = now
        self.comparison, self._splits = comparison, splits

    def started(self) -> None:
        """Call when all options and pictures are accepted: a failure from here on leaves what --resume needs."""
        self._started = True

    def _recover(self) -> None:
        """Complete a change of the run, or move the old run back, where a process was killed while doing it."""
        finish_exchange(self.path)
        if self._replaced.is_dir() and not (self.path / CONFIG_FILE).exists():
            self._put_back()

    def _set_aside(self) -> None:
        """Move the old run to `.replaced/`. An unfinished run is deleted where `.replaced/` holds a run already."""
        if self._replaced.is_dir() and not _saved(self.path):
            _delete(self.path)
            return
        shutil.rmtree(self._replaced, ignore_errors=True)
        self._replaced.mkdir()
        for name in RUN_FILES:
            if (self.path / name).exists():
                (self.path / name).rename(self._replaced / name)

    def _put_back(self) -> None:
        """Move the old run from `.replaced/` back; config.json is last, because with it there is a run."""
        for name in reversed(RUN_FILES):
            if (self._replaced / name).exists():
                (self._replaced / name).rename(self.path / name)
        shutil.rmtree(self._replaced)

    def _tidy(self, kind: type[BaseException] | None) -> None:
        """Delete the old run where the new one is saved; undo a failed run. kind: of the exception, or None."""
        replaced = self._replaced.is_dir()
        if _saved(self.path):
            if replaced:
                shutil.rmtree(self._replaced, ignore_errors=True)
        elif kind is not None and self._wrote:
            if replaced:
                _delete(self.path)
                self._put_back()
            elif not self._started and issubclass(kind, Exception):  # after Ctrl-C, --resume goes on
                _delete(self.path)

    def keep_features(self, listing: Listing, outputs: Outputs) -> None:
        """Write config.json, with which the run begins, and keep the activations for --resume."""
        if self._overwrites:
            self._set_aside()
        self._wrote = not self._resumes
        write_json(self.path / CONFIG_FILE, self._request)
        config = Config.from_dict(self._request["config"])
        self.recorded = {**recorded_splits(listing, config), **self._splits}
        metadata = {
            "comparison": json.dumps(self.comparison),
            "recorded": json.dumps(self.recorded),
        }
        _write_outputs(self._features, listing, outputs, metadata)

    def kept_features(self, listing: Listing, width: int) -> Outputs | None:
        """The activations that `keep_features` kept; None where it was not called.

        width: Number of activations of a picture. InputError for changed pictures, and where the file is damaged.
        """
        if not self._features.exists() or self._overwrites:
            return None
        outputs, metadata = self._read_outputs(self._features, listing, width)
        recorded = parse_json(metadata.get("recorded", "{}"), str(self._features))
        if not isinstance(recorded, dict) or not all(split in SPLITS for split in recorded.values()):
            raise _damaged(self._features, "recorded holds no splits")
        self.recorded = recorded
        return outputs

    def keep_unlabelled(self, listing: Listing, outputs: Outputs) -> None:
        """Keep the activations of unlabelled pictures for --resume."""
        _write_outputs(self._unlabelled, listing, outputs, {})

    def kept_unlabelled(self, listing: Listing, width: int) -> Outputs | None:
        """The activations that `keep_unlabelled` kept, as for `kept_features`."""
        if not self._unlabelled.exists() or self._overwrites:
            return None
        return self._read_outputs(self._unlabelled, listing, width)[0]

    def _read_outputs(self, path: Path, listing: Listing, width: int) -> tuple[Outputs, dict[str, str]]:
        tensors, metadata = read_tensors_and_metadata(path, most_header=_MOST_HEADER_BYTES)
        if metadata.get("listing") != _fingerprint(listing):
            raise InputError(
                f"{listing.name} has changed since the run in {self.path} was started; start a new run in another "
                "--out, or with --overwrite in this one"
            )
        values = check_tensor(tensors, "values", (None, None, width), str(path), formats=[torch.float32])
        index = check_tensor(tensors, "index", (len(values),), str(path), formats=[torch.int64], finite=False)
        contents = as_type(parse_json(metadata.get("contents", ""), str(path)), dict[int, Content], str(path))
        readable = sorted(position for position, content in contents.items() if content.reason is None)
        if not all(0 <= position < len(listing.samples) for position in contents):
            raise _damaged(path, "contents are not of these pictures")
        if sorted(index.tolist()) != readable or not values.shape[1]:
            raise _damaged(path, "index is not of the readable pictures")
        return Outputs(values, index, contents), metadata

    def keep_budget(self, values: dict[str, Any]) -> None:
        """Keep the time that was used and the plan that was made, for --resume."""
        write_json(self._budget, values)

    def kept_budget(self) -> dict[str, Any]:
        """What `keep_budget` kept; empty where it was not called."""
        if not self._budget.exists() or self._overwrites:
            return {}
        return asdict(as_type(read_json(self._budget), _Budget, str(self._budget)))

    def holds_classifier(self) -> bool:
        """Whether a classifier can be loaded from here; its run may still be under way."""
        return _saved(self.path)

    def finish(self) -> None:
        """Delete what only a continuation needs."""
        remove_state(self.path)


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} may be damaged: {why}; start a new run with --overwrite")


def _saved(path: Path) -> bool:
    """Whether `path` holds a classifier that can be loaded."""
    if not all((path / name).exists() for name in (CONFIG_FILE, WEIGHTS_FILE)):
        return False
    return read_run_config(path).classes is not None


def _delete(path: Path) -> None:
    """Delete the files of a run; other files in `path` stay."""
    for name in RUN_FILES:
        if (path / name).is_dir():
            shutil.rmtree(path / name)
        else:
            (path / name).unlink(missing_ok=True)


def _write_outputs(path: Path, listing: Listing, outputs: Outputs, metadata: Mapping[str, str]) -> None:
    contents = {position: asdict(content) for position, content in outputs.contents.items()}
    known = {"listing": _fingerprint(listing), "contents": json.dumps(contents), **metadata}
    write_tensors(path, {"values": outputs.values, "index": outputs.index}, known)


def _fingerprint(listing: Listing) -> str:
    return json.dumps([[sample.path, sample.size, sample.label, sample.split] for sample in listing.samples])


def prediction_rows(classes: Sequence[str], predictions: Sequence[tuple[Sample, str, Tensor]]) -> list[tuple[str, ...]]:
    """Rows of predictions.csv. predictions: picture, split and log-probabilities (classes,) of each."""
    table: list[tuple[str, ...]] = []
    for sample, split, log_probabilities in predictions:
        row = log_probabilities.exp()
        best, truth = int(row.argmax()), float(row[classes.index(sample.label)])
        table.append((sample.path, split, sample.label, classes[best], f"{float(row[best]):.6f}", f"{truth:.6f}"))
    return table
