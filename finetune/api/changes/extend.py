"""`extend`: pictures, classes and background pictures added to a finished run, without the old pictures."""

from __future__ import annotations

from pathlib import Path

from finetune.api.changes.run import ChangingRun, changing
from finetune.api.changes.solved import retraining, shifted, solve_again
from finetune.classifier.classifier import Classifier
from finetune.data.folder import Listing
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError
from finetune.features.extraction import StageReader
from finetune.kept.background import MOST, list_background, read_pictures_of
from finetune.kept.features import KeptFeatures
from finetune.kept.union import copies_of_old, unknown, with_pictures, without
from finetune.models.pooled import PooledStages
from finetune.progress import Display
from finetune.random_state import restored_random_state


@restored_random_state()
def extend(
    run: str | Path,
    pictures: Source | None = None,
    *,
    background: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    display: Display | None = None,
) -> Classifier:
    """Add pictures to a finished run, of its classes, of new ones, or of none.

    The head is solved again on the features of all pictures, which the run keeps: the result is that of `fit` on all
    of them with the same splits. The old pictures are not read. Their splits stay; a new picture falls into one as in
    `fit`, by the hash of its content and beside its near-duplicates. A trained backbone stays as it is.

    Args:
        run: A run folder.
        pictures: One sub-folder of pictures for each class, or the same below train/, val/ and test/; or a table, as
            `fit` takes it. Pictures that the run has, and copies of them with the same label, are ignored. None to add
            background pictures alone.
        background: Folder of pictures of none of the classes, such as come in use, for the threshold of unknown ones.
            Those that the run has are ignored.
        out: Folder for the extended run, which leaves `run` as it is. None changes `run`; `undo` takes that back.
        device: One of auto, cpu, cuda.
        display: Shows progress.

    Returns:
        The extended classifier.

    Raises:
        InputError: If there is nothing to add, or a picture contradicts one of the run. The run is then unchanged.

    Example:
        >>> from finetune import extend
        >>> extend("runs/photos", [("sign.png", "sign")], out="runs/more", device="cpu").classes
        ('cat', 'dog', 'sign')
    """
    display = display or Display()
    if pictures is None and background is None:
        raise InputError("extend needs something to add: give pictures, or --background DIR")
    listing = None if pictures is None else list_pictures(pictures, to_train=False)
    with changing(run, out, device) as job:
        kept, others, old = job.features(display), job.background(), job.classifier
        positions, added, told = frozenset[int](), 0, None
        if listing is not None:
            kept, positions = _with_pictures(job, kept, listing, display)
        if background is not None:
            count = 0 if others is None else len(others)
            more, skipped = list_background(background, MOST - count)
            stages = PooledStages(old.network.backbone)
            found = read_pictures_of(old.fabric, stages, more, old.config, display, skipped)
            others = found.kept() if others is None else others.with_more(found)
            added = len(others) - count
        solved = solve_again(old, kept, positions, display, background=others)
        if positions and old.run_metrics is not None and old.run_metrics.kept != "head":
            told = retraining(solved)
            display.say(f"the trained backbone stays, and the head is solved on its features. {told}")
        classifier, change = job.replace(solved, "extend", background=added, retraining=told)
    where = f"{classifier.folder} has {change.pictures:,} pictures"
    display.say(f"{change.sentence} in {change.seconds:.1f} s; {where}.")
    return classifier


def _with_pictures(
    job: ChangingRun, kept: KeptFeatures, listing: Listing, display: Display
) -> tuple[KeptFeatures, frozenset[int]]:
    """The pictures of a run with the new ones of `listing`, and their positions. InputError where none is new."""
    old = job.classifier
    new = unknown(kept, listing, job.path)
    if not new.samples:
        raise InputError(f"{listing.name} has nothing to add: {job.path} has all its pictures")
    reader = StageReader.of(old.fabric, PooledStages(old.network.backbone), new, old.config, display)
    outputs = reader.read(display)
    if not len(outputs.index):
        first = outputs.contents[0].reason
        raise InputError(f"{listing.name} has nothing to add: none of its new pictures can be read ({first})")
    joined, positions = with_pictures(kept, new, outputs)
    copies = copies_of_old(joined, positions)
    if not copies:
        return joined, positions
    which = f"{len(copies):,} of the new pictures {'is a copy' if len(copies) == 1 else 'are copies'}"
    display.say(f"{which} of pictures that {job.path} has with the same label; copies are not added.")
    if copies == positions:
        raise InputError(f"{listing.name} has nothing to add: {job.path} has all its pictures, under other paths")
    return without(joined, copies), shifted(positions, copies)
