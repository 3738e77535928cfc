"""`forget`: pictures and classes taken out of a finished run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from finetune.api.changes.run import changing
from finetune.api.changes.solved import solve_again
from finetune.classifier.classifier import Classifier
from finetune.errors import InputError
from finetune.kept.added import delete_forgotten
from finetune.kept.background import Background
from finetune.kept.features import KeptFeatures
from finetune.kept.union import named, without
from finetune.options.suggestions import did_you_mean
from finetune.progress import Display
from finetune.random_state import restored_random_state


@restored_random_state()
def forget(
    run: str | Path,
    *,
    classes: Iterable[str] = (),
    pictures: Iterable[str | Path] = (),
    out: str | Path | None = None,
    for_good: bool = False,
    device: str = "auto",
    display: Display | None = None,
) -> Classifier:
    """Take pictures or whole classes out of a finished run.

    The head is solved again on the features of the other pictures: the result is that of `fit` without the forgotten
    ones, with the same splits. No picture is read. Afterwards no file of the run holds anything of the forgotten
    pictures, except in the earlier state that `undo` goes back to; `for_good` deletes all earlier states. What a
    trained backbone has learned from them stays in its weights.

    Args:
        run: A run folder.
        classes: Names of classes.
        pictures: Pictures, each with its copies: paths as in the run's pictures.csv, files, folders, or sha256 in hex;
            background pictures too.
        out: Folder for the new run, which leaves `run` as it is. None changes `run`.
        for_good: Delete the earlier states of the run, so that `undo` cannot bring anything back.
        device: One of auto, cpu, cuda.
        display: Shows progress.

    Returns:
        The classifier without them.

    Raises:
        InputError: If a class or picture is not in the run, or fewer than two classes would remain. The run is then
            unchanged.

    Example:
        >>> from finetune import forget
        >>> forget("runs/photos", pictures=["cat/03.png"], out="runs/fewer", device="cpu").classes
        ('cat', 'dog')
    """
    display = display or Display()
    classes = [classes] if isinstance(classes, str) else list(classes)
    pictures = [pictures] if isinstance(pictures, (str, Path)) else list(pictures)
    if not classes and not pictures:
        raise InputError("forget needs something to forget: give --class NAME or --pictures PICTURE")
    if out is not None and for_good:
        raise InputError("--for-good deletes earlier states of the run, and --out leaves the run as it is; give one")
    with changing(run, out, device) as job:
        kept, background, old = job.features(display), job.background(), job.classifier
        gone, others = set[int](), set[int]()
        for name in classes:
            if name not in old.classes:
                meant = did_you_mean(name, old.classes, {}) or f"; it has {', '.join(old.classes)}"
                raise InputError(f"{job.path} has no class {name!r}{meant}")
            gone |= {place for place, sample in enumerate(kept.listing.samples) if sample.label == name}
        if pictures:
            named_gone, named_others = _named(job.path, kept, background, pictures)
            gone |= named_gone
            others |= named_others
        left = {
            sample.label
            for place, sample in enumerate(kept.listing.samples)
            if place not in gone and kept.splits[place] is not None
        }
        if len(left) < 2:
            raise InputError(f"{job.path} would have fewer than two classes left; it is unchanged")
        if background is not None:
            others |= background.of_contents({kept.contents[place].sha256 for place in gone} - {""})
            background = background.at([place for place in range(len(background)) if place not in others])
        solved = solve_again(old, without(kept, gone), frozenset(), display, background=background, max_bad=1.0)
        classifier, change = job.replace(solved, "forget", removed=len(gone), background=len(others), for_good=for_good)
        if for_good:
            delete_forgotten(job.path)
    where = f"{classifier.folder} has {change.pictures:,} pictures"
    display.say(f"{change.sentence} in {change.seconds:.1f} s; {where}.")
    if out is None and not for_good:
        kept_in = f"{classifier.folder} keeps an earlier state with them"
        display.say(f"{kept_in}, for finetune undo; finetune history {classifier.folder} --drop deletes it.")
    return classifier


def _named(
    run: Path, kept: KeptFeatures, background: Background | None, pictures: Iterable[str | Path]
) -> tuple[set[int], set[int]]:
    """Positions of the named pictures among those of the classes, and among the background pictures. InputError for a
    name of neither."""
    labelled, unlabelled = named(kept), None if background is None else background.named()
    gone, others = set[int](), set[int]()
    for picture in pictures:
        name = os.fspath(picture)
        if not name:
            raise InputError("the name of a picture (--pictures) is empty")
        found = labelled.find(name), set[int]() if unlabelled is None else unlabelled.find(name)
        if not any(found):
            raise InputError(f"{picture} is no picture of {run}; its pictures.csv lists them")
        gone |= found[0]
        others |= found[1]
    return gone, others
