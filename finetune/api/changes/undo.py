"""`undo` and `history`: the changes of a finished run, and back before the last one."""

from __future__ import annotations

from pathlib import Path

from finetune.api.changes.run import locked_run
from finetune.classifier.classifier import Classifier
from finetune.classifier.loading import load
from finetune.classifier.published.fetched import check_local
from finetune.classifier.run_config import read_run_config
from finetune.kept.added import delete_forgotten
from finetune.kept.history import Change, drop_earlier, read_changes, take_back
from finetune.progress import Display


def undo(run: str | Path, *, device: str = "auto", display: Display | None = None) -> Classifier:
    """Take back the last change of a run by `extend` or `forget`, with all its files as they were before.

    Args:
        run: A run folder.
        device: One of auto, cpu, cuda.
        display: Shows what was undone.

    Returns:
        The classifier as it was before the change. Another call takes back the change before.

    Raises:
        InputError: If there is no change, or the state before it is no longer kept.

    Example:
        >>> from finetune import forget, undo
        >>> forget("runs/photos", pictures=["dog/03.png"], device="cpu").classes
        ('cat', 'dog')
        >>> undo("runs/photos", device="cpu").classes
        ('cat', 'dog')
    """
    run = Path(run)
    with locked_run(run):
        change = take_back(run)
    (display or Display()).say(f"undone in {run}: {change.sentence} at {change.when}.")
    return load(run, device=device)


def history(run: str | Path) -> list[Change]:
    """The changes of a run by `extend` and `forget`, the oldest first; those that were undone are no longer there.

    Args:
        run: A run folder.

    Returns:
        The changes.

    Raises:
        InputError: If `run` is no run folder, or its list of changes is damaged.

    Example:
        >>> from finetune import history
        >>> history("runs/photos")
        []
    """
    check_local(run)
    read_run_config(Path(run))
    return list(read_changes(Path(run)))


def drop_history(run: str | Path) -> int:
    """Delete the earlier states of a run, with what they hold of forgotten pictures; its changes can no longer be
    undone.

    Args:
        run: A run folder.

    Returns:
        Number of bytes that this frees.

    Raises:
        InputError: If `run` is no run folder, or another process is at it.

    Example:
        >>> from finetune import drop_history
        >>> drop_history("runs/photos")
        0
    """
    run = Path(run)
    with locked_run(run):
        delete_forgotten(run)
        return drop_earlier(run)
