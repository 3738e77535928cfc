"""A folder that a run fills: whether a run may begin or continue there, and what only a continuation needs."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from finetune.classifier.run_config import CONFIG_FILE
from finetune.errors import InputError
from finetune.files.folders import check_free
from finetune.options.fields import flag

# Folder of what only a continuation needs; a run without it has finished.
STATE = "state"


def continues_run(folder: Path, *, resume: bool, overwritable: bool = False) -> bool:
    """Whether `folder` (--out) holds a run that is to be continued; False where a new run may begin.

    overwritable: whether the command can replace a run, which the message then says.

    Raises:
        InputError: If `folder` holds anything but a run, or a run and `resume` is False.
    """
    if not (folder / CONFIG_FILE).exists():
        check_free(folder, "--out", "run")
        return False
    if not resume:
        ways = "continue it with --resume" + (", replace it with --overwrite," if overwritable else "")
        raise InputError(f"{folder} (--out) already holds a run; {ways} or choose another folder")
    return True


def check_same_options(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], otherwise: str = "") -> None:
    """InputError for the first option whose value is not that of the run in `folder`. otherwise: what else to do."""
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(
                f"the run in {folder} was started with {flag(name)} {before.get(name)}, not {value}; "
                f"--resume needs the same options{otherwise}"
            )


def has_finished(folder: Path, files: Collection[str]) -> bool:
    """Whether all `files` of a finished run are in `folder`, and no state is left."""
    return all((folder / name).exists() for name in files) and not (folder / STATE).exists()


def remove_state(folder: Path) -> None:
    """Delete what only a continuation needs, and what killed writes have left: the run has then finished."""
    gone = folder / f".{STATE}"
    (folder / STATE).rename(gone)  # in one step: half a state would be taken for a whole one
    shutil.rmtree(gone, ignore_errors=True)
    for leftover in folder.glob(".*.[0-9]*"):
        leftover.unlink(missing_ok=True)
