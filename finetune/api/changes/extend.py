"""`extend`: pictures and classes added to a finished run, without the old pictures and without forgetting them."""

from __future__ import annotations

from pathlib import Path

from finetune.api.changes.run import changing
from finetune.api.changes.solved import retraining, solve_again
from finetune.classifier.classifier import Classifier
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError
from finetune.features.extraction import StageReader
from finetune.kept.union import unknown, with_pictures
from finetune.models.pooled import PooledStages
from finetune.progress import Display
from finetune.random_state import restored_random_state


@restored_random_state()
def extend(
    run: str | Path,
    pictures: Source,
    *,
    out: str | Path | None = None,
    device: str = "auto",
    display: Display | None = None,
) -> Classifier:
    """Add pictures to a finished run, of its classes or of new ones.

    The head is solved again on the features of all pictures, which the run keeps: the result is that of `fit` on all
    of them with the same splits. The old pictures are not read. Their splits stay; a new picture falls into one as in
    `fit`, by the hash of its content and beside its near-duplicates. A trained backbone stays as it is.

    Args:
        run: A run folder.
        pictures: One sub-folder of pictures for each class, or the same below train/, val/ and test/; or a table, as
            `fit` takes it. Pictures that the run has are ignored.
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
    listing = list_pictures(pictures, to_train=False)
    with changing(run, out, device) as job:
        kept, old = job.features(display), job.classifier
        new = unknown(kept, listing, job.path)
        if not new.samples:
            raise InputError(f"{listing.name} has nothing to add: {job.path} has all its pictures")
        stages = PooledStages(old.network.backbone)
        reader = StageReader.of(old.fabric, stages, new, old.config, display)
        outputs = reader.read(display)
        if not len(outputs.index):
            first = outputs.contents[0].reason
            raise InputError(f"{listing.name} has nothing to add: none of its new pictures can be read ({first})")
        joined, positions = with_pictures(kept, new, outputs)
        solved = solve_again(old, joined, positions, display)
        told = None
        if old.run_metrics is not None and old.run_metrics.kept != "head":
            told = retraining(solved)
            display.say(f"the trained backbone stays, and the head is solved on its features. {told}")
        classifier, change = job.replace(solved, "extend", retraining=told)
    where = f"{classifier.folder} has {change.pictures:,} pictures"
    display.say(f"{change.sentence} in {change.seconds:.1f} s; {where}.")
    return classifier
