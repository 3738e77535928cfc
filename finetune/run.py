"""The run folder while a run is under way: may it start or go on there, and what it has computed already."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.audit import Content
from finetune.classifier import CONFIG_FILE, FORMAT, METRICS_FILE, WEIGHTS_FILE, read_config
from finetune.config import Config
from finetune.errors import InputError
from finetune.files import locked, read_tensors_and_metadata, write_json, write_tensors
from finetune.folder import Listing
from finetune.frozen import Outputs
from finetune.options import flag


class RunFolder:
    """A run folder that is being filled. What only a continuation needs lies in `state/` and goes at the end.

    As a context it keeps other processes away from `begin` on, until it is left.
    """

    def __init__(self, path: Path):
        self.path = path
        self.checkpoint = path / "state" / "checkpoint.safetensors"
        self.refit_checkpoint = path / "state" / "refit.safetensors"
        self._features = path / "state" / "features.safetensors"

        self._request: dict[str, Any] = {}
        self._lock = ExitStack()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def begin(self, folder: Path, config: Config, *, resume: bool) -> bool:
        """Check that this run may start or continue here; True when it has finished already. Nothing is changed.

        InputError when there is something else here, a run that was started with other options or pictures, or one that
        another process is at.
        """
        self._lock.enter_context(alone_in(self.path))
        return self._may_begin(folder, config, resume)

    def _may_begin(self, folder: Path, config: Config, resume: bool) -> bool:
        request = {"format": FORMAT, "folder": str(folder.resolve()), "config": config.to_dict()}
        self._request = request
        if not (self.path / CONFIG_FILE).exists():
            # What a write that was killed leaves behind begins with a dot and is nobody's.
            if self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise InputError(f"{self.path} (--out) is not empty and holds no run; choose another folder")
            return False
        if not resume:
            raise InputError(
                f"{self.path} (--out) already holds a run; continue it with --resume or choose another folder"
            )
        found = read_config(self.path)
        _same_request(self.path, found, request)
        finished = all((self.path / name).exists() for name in (WEIGHTS_FILE, METRICS_FILE))
        return "classes" in found and finished and not (self.path / "state").exists()

    def keep_features(self, listing: Listing, outputs: Outputs) -> None:
        """From now on there is something to lose: say in config.json what run this is, and keep what was computed."""
        write_json(self.path / CONFIG_FILE, self._request)
        contents = {position: asdict(content) for position, content in outputs.contents.items()}
        metadata = {"listing": _fingerprint(listing), "contents": json.dumps(contents)}
        write_tensors(self._features, {"values": outputs.values, "index": outputs.index}, metadata)

    def kept_features(self, listing: Listing) -> Outputs | None:
        """What keep_features was given, None when it was not called yet. InputError when the pictures have changed."""
        if not self._features.exists():
            return None
        tensors, metadata = read_tensors_and_metadata(self._features)
        if metadata["listing"] != _fingerprint(listing):
            raise InputError(
                f"{listing.root} has changed since the run in {self.path} was started; start a new one in another --out"
            )
        contents = {int(position): Content(**content) for position, content in json.loads(metadata["contents"]).items()}
        return Outputs(tensors["values"], tensors["index"], contents)

    def finish(self) -> None:
        gone = self.path / ".state"
        (self.path / "state").rename(gone)  # in one step: half a state would be taken for a whole one
        shutil.rmtree(gone, ignore_errors=True)
        for leftover in self.path.glob(".*.[0-9]*"):
            leftover.unlink(missing_ok=True)


@contextmanager
def alone_in(path: Path) -> Iterator[None]:
    """`path`, where a run is to be, for this process alone, made where it is missing, and gone where it stays empty.

    InputError where another process is at it, or it cannot be written to.
    """
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"{path} (--out) cannot be written to")
    busy = f"another process is at a run in {path} (--out); wait for its end or choose another folder"
    with locked(path, busy=busy):
        yield


def _same_request(path: Path, found: dict[str, Any], request: dict[str, Any]) -> None:
    if found.get("folder") != request["folder"]:
        raise InputError(f"{path} (--out) holds a run on {found.get('folder')}, not on {request['folder']}")
    before, now = Config.from_dict(found["config"]).to_dict(), request["config"]
    for name in before:
        if before[name] != now[name]:
            raise InputError(
                f"the run in {path} was started with {flag(name)} {before[name]}, not {now[name]}; "
                "--resume goes on with the same options only"
            )


def _fingerprint(listing: Listing) -> str:
    return json.dumps([[sample.path, sample.size] for sample in listing.samples])
