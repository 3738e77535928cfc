"""The main job: a folder of pictures in, the best classifier that it gives out, with what it is worth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from finetune.backbone import Network
from finetune.checkpoint import Course
from finetune.classifier import Classifier, load
from finetune.config import AUTO, Config
from finetune.errors import InputError
from finetune.folder import Listing
from finetune.head import Heads
from finetune.loggers import check_log, open_log
from finetune.preparation import Prepared, prepare
from finetune.processes import require_one_process
from finetune.progress import Display
from finetune.refit import refit, worth_refitting
from finetune.report import REPORT_FILE, write_report
from finetune.run import RunFolder
from finetune.split_record import record_splits
from finetune.steps import copy_of
from finetune.table import Source, list_pictures
from finetune.training import train
from finetune.verdict import measure
from finetune.writing import write_run


def fit(
    folder: Source,
    out: str | Path | None = None,
    *,
    config: Config | None = None,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    **options: Any,
) -> Classifier:
    """Train a classifier on `folder`: one sub-folder of pictures per class, or a table of pictures.

    A table is a CSV file, a data frame, or a list of (path, label) or (path, label, split): see `table.list_pictures`.

    out: run folder to leave it in, or None to keep it in memory. config, or its fields as keywords: see `Config`.
    resume: continue the run in `out`, with the same final weights as if it had never stopped. overwrite: replace the
    run in `out`; the old run stays until the new classifier is saved. Ctrl-C during training returns the best
    so far, with `metrics["interrupted"]` true. The returned classifier's `metrics` say how good it is. Raises
    InputError for a folder, file or option that cannot be used, TrainingDiverged when the loss stops being finite.
    """
    started = time.monotonic()
    require_one_process("finetune fit")
    if config is not None and options:
        raise InputError(f"options are given twice, in config and by name: {', '.join(options)}")
    if config is not None and not isinstance(config, Config):
        raise InputError("config must be a finetune.Config; Config.from_dict makes one of a dictionary")
    config = config or Config.from_dict(options)
    display = display or Display()
    check_log(config, None if out is None else Path(out))
    listing = list_pictures(folder)
    if out is None:
        return _fitted(listing, None, config, False, display, started)
    with RunFolder(Path(out)) as run:
        if run.begin(listing.root, config, resume=resume, overwrite=overwrite, table=listing.table):
            display.say(f"{out} holds this run, finished")
            classifier = load(run.path, device=config.device)
            if not (run.path / REPORT_FILE).exists():  # killed when all else was written
                _report(run, classifier)
            return classifier
        return _fitted(listing, run, config, resume, display, started)


def _fitted(
    listing: Listing, run: RunFolder | None, config: Config, resume: bool, display: Display, started: float
) -> Classifier:
    """The whole job, once it may begin. started: when it did, for the seconds that it took."""
    prepared = prepare(listing, config, run, display)
    if run is not None:
        run.started()
    record_splits(listing, prepared.rows.splits_by_content, config, display.say)
    network, start = prepared.beginning(config)
    begun, course = copy_of(network), Course()
    with open_log(config, None if run is None else run.path) as log:
        if prepared.choice.strategy.trains != "head":
            course = train(
                prepared.fabric,
                network,
                prepared.plan(network, config),
                config,
                prepared.material(config),
                start=start,
                checkpoint=None if run is None else run.checkpoint,
                resume=resume,
                display=display,
                log=log,
            )
        elif config.lr == AUTO:
            display.say("--lr auto changes nothing here: the head is solved at once, without a learning rate.")
        classifier, heads = _kept(prepared, network, course, config)
        unseen = None
        if worth_refitting(prepared, course):
            checkpoint = None if run is None else run.refit_checkpoint
            unseen = refit(prepared, classifier, begun, course, checkpoint=checkpoint, resume=resume, display=display)
        measured = measure(classifier, prepared, heads, course, display, unseen=unseen)
        classifier.metrics = measured.metrics | {"seconds": round(time.monotonic() - started, 2)}
        log.result(classifier.metrics)
    if run is not None:
        write_run(run, classifier, prepared.rows, measured, course)
        classifier.folder = run.path
        _report(run, classifier)
    return classifier


def _report(run: RunFolder, classifier: Classifier) -> None:
    from finetune.explain import explanation  # with a drawing library, which nothing else needs

    write_report(run.path, explain=explanation(classifier))


def _kept(prepared: Prepared, network: Network, course: Course, config: Config) -> tuple[Classifier, Heads | None]:
    """What the run leaves: what was trained, or the solved heads where that did not beat them; these then, too."""
    heads = prepared.heads if course.best_epoch == 0 and prepared.choice.strategy.start == "pretrained" else None
    backbone = prepared.backbone
    if heads is not None:
        stages = None if heads.kept.width == backbone.width else prepared.stages
        network = Network(backbone, heads.kept.as_layer(), stages).to(prepared.fabric.device)
    classes = prepared.rows.folder.classes
    return Classifier(network, classes, backbone.preprocessing, config, prepared.fabric), heads
