"""The classifier of a run folder, or of an address of the hub."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from finetune.classifier.classifier import Classifier
from finetune.classifier.published.fetched import run_at
from finetune.classifier.run_config import CONFIG_FILE
from finetune.classifier.run_metrics import METRICS_FILE, read_run_metrics
from finetune.classifier.stored import WEIGHTS_FILE, read_finished, restored, state_of
from finetune.errors import InputError
from finetune.files.reading import read_tensors
from finetune.hub.address import is_address, parse_address
from finetune.open_set.unknown_model import UNKNOWN_FILE, read_unknown
from finetune.progress import Display
from finetune.random_state import restored_random_state

# How often a run is read again that another process changes meanwhile.
_MOST_CHANGES = 5


@restored_random_state()
def load(
    folder: str | Path, *, device: str = "auto", precision: str | None = None, display: Display | None = None
) -> Classifier:
    """Load the classifier of a run.

    Args:
        folder: A run folder; or an address of the Hugging Face hub, hf://user/name or hf://user/name@revision, whose
            files are fetched into the cache of the hub.
        device: One of auto, cpu, cuda.
        precision: One of auto, float32, bfloat16; by default that of the run.
        display: Shows what is downloaded, on stderr by default.

    Returns:
        The classifier.

    Raises:
        InputError: If `folder` holds no finished run, its files are damaged or do not belong together, or the hub
            cannot be reached and the cache does not have them.

    Example:
        >>> from finetune import load
        >>> load("runs/photos", device="cpu").classes
        ('cat', 'dog')
    """
    if is_address(folder):
        return _at_address(folder, run_at(folder, display), device, precision)
    folder = Path(folder)
    for _ in range(_MOST_CHANGES):
        before = state_of(folder)
        try:
            classifier = _read(folder, device, precision)
        except InputError:
            if state_of(folder) == before:
                raise
            continue
        if state_of(folder) == before:
            return classifier
    return _read(folder, device, precision)


def _at_address(address: str | Path, fetched: Path, device: str, precision: str | None) -> Classifier:
    classifier = _read(fetched, device, precision)
    if (fetched / UNKNOWN_FILE).exists():
        classifier.unknown = read_unknown(fetched, len(classifier.classes))
    # The cache names the folder by the commit.
    classifier.address, classifier.folder = str(replace(parse_address(address), revision=fetched.name)), None
    return classifier


def _read(folder: Path, device: str, precision: str | None) -> Classifier:
    saved = read_finished(folder)
    names = str(folder / CONFIG_FILE), str(folder / WEIGHTS_FILE)
    classifier = Classifier(*restored(saved, read_tensors(folder / WEIGHTS_FILE), names, device, precision))
    if (folder / METRICS_FILE).exists():
        classifier.run_metrics = read_run_metrics(folder)
    classifier.folder = folder
    return classifier
