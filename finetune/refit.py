"""A training done once more, with the validation pictures among those that it learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from finetune.checkpoint import Course
from finetune.classifier import Classifier
from finetune.errors import TrainingDiverged
from finetune.head import ENOUGH_TO_CHOOSE
from finetune.interpolation import between
from finetune.metrics import accuracy
from finetune.plan import plan_for
from finetune.preparation import Prepared
from finetune.progress import Display
from finetune.steps import copy_of
from finetune.training import train
from finetune.verdict import log_probabilities


def worth_refitting(prepared: Prepared, course: Course) -> bool:
    """Whether what was trained is kept, and the run set aside so few validation pictures that they chose no epoch.

    What they said of it then holds for its like, and in a folder of few pictures these are worth the time.
    """
    few = len(prepared.rows.folder.val) < ENOUGH_TO_CHOOSE
    return few and prepared.rows.val_was_made and course.best_epoch > 0 and not course.interrupted


def refit(
    prepared: Prepared,
    classifier: Classifier,
    begun: Mapping[str, Tensor],
    course: Course,
    *,
    checkpoint: Path | None,
    resume: bool,
    display: Display,
) -> Tensor | None:
    """Put in the place of what was trained, as `course` tells from the weights `begun`, what the same training makes of
    training and validation pictures together: as many epochs, at the same rate, as far on the way from the start.

    Returns log-probabilities (m, classes) of the validation pictures by the classifier as it was, or None where it
    stays so: after Ctrl-C, of which `course` then tells, and where the weights grow without bound, or know these
    pictures less well for having learned from them. checkpoint, resume: as for `train`. InputError for a picture that
    is no longer what it was.
    """
    rows, network = prepared.rows, classifier.network
    val = rows.indices("val")
    before, unseen = copy_of(network), log_probabilities(classifier, rows, val, Display())
    config = replace(classifier.config, lr=course.lr)
    material = prepared.material(config, learn_from_val=True)
    plan = plan_for(prepared.choice.strategy, config, network, len(material.indices))
    display.say(f"training once more, on the {len(val)} validation pictures, too.")
    network.load_state_dict(begun)
    done = False
    try:
        again = train(
            prepared.fabric,
            network,
            replace(plan, epochs=course.epoch),
            config,
            material,
            start=None,
            checkpoint=checkpoint,
            resume=resume,
            display=display,
        )
        course.interrupted, done = again.interrupted, not again.interrupted
    except KeyboardInterrupt:  # in its first epoch
        course.interrupted = True
    except TrainingDiverged as error:
        display.say(f"{error}; what was trained before is kept.")
    if done:
        network.load_state_dict(between(begun, copy_of(network), course.share))
        seen = log_probabilities(classifier, rows, val, Display())
        if accuracy(seen, rows.labels[val]) >= accuracy(unseen, rows.labels[val]):
            return unseen
        display.say("these are known less well for it; what was trained before is kept.")
    network.load_state_dict(before)
    return None
