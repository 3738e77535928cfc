"""A run by its folder or by its address on the hub, from which the files of a run alone are fetched."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from finetune.classifier.run_config import CONFIG_FILE
from finetune.classifier.run_metrics import METRICS_FILE, MOST_METRICS_BYTES
from finetune.classifier.stored import WEIGHTS_FILE
from finetune.errors import InputError
from finetune.files.reading import MOST_JSON_BYTES
from finetune.hub.address import is_address, needs_folder, parse_address
from finetune.open_set.unknown_model import UNKNOWN_FILE
from finetune.progress import Display

# Answers to the validation pictures without their names, for `predict --target-error`.
ANSWERS_FILE = "predictions.csv"
# Hashes and splits of the pictures, by which `evaluate` leaves out those that the run has learned from.
HASHES_FILE = "pictures.csv"

# Files of a run that are fetched, with the most bytes of each. The largest weights of timm have 20 GB.
BOUNDS = {
    CONFIG_FILE: MOST_JSON_BYTES,
    WEIGHTS_FILE: 24 << 30,
    METRICS_FILE: MOST_METRICS_BYTES,
    UNKNOWN_FILE: 4 << 30,
    ANSWERS_FILE: 1 << 30,
    HASHES_FILE: 1 << 30,
}


def run_at(run: str | Path, display: Display | None = None) -> Path:
    """The folder of a run: `run` itself, or that in the cache of the hub for an address such as hf://user/name.

    display: Shows what is downloaded. A silent one has one line on stderr: nothing is downloaded unseen.
    """
    if not is_address(run):
        return Path(run)
    return _fetched(run, display)


def check_local(run: str | Path) -> None:
    """InputError for an address of the hub, where a run is to be changed."""
    if is_address(run):
        raise InputError(needs_folder(parse_address(run)))


def _fetched(run: str | Path, display: Display | None) -> Path:
    from finetune.hub.fetching import fetch  # its import takes time

    return fetch(
        parse_address(run),
        BOUNDS,
        needed=(CONFIG_FILE, WEIGHTS_FILE),
        last=CONFIG_FILE,
        display=lambda: display if display is not None and display.console else Display(Console(stderr=True)),
    )
