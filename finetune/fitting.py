"""The main job: a folder of pictures in, the best classifier that it gives out, with what it is worth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Unpack

from finetune.backbone import Network
from finetune.checkpoint import Course
from finetune.classifier import Classifier, load
from finetune.config import AUTO, Config
from finetune.errors import InputError
from finetune.fit_options import FitOptions
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
    **options: Unpack[FitOptions],
) -> Classifier:
    """Train a classifier on a folder of pictures, or on a table of them, and measure it.

    Ctrl-C during training returns the best classifier so far, with `metrics["interrupted"]` true.

    Args:
        folder: One sub-folder of pictures for each class, or the same below train/, val/ and test/; or a table: a CSV
            file, a data frame, or a list of (path, label) or (path, label, split), see `table.list_pictures`.
        out: Run folder to leave the classifier in. None keeps it in memory.
        config: All options in one object, instead of keywords.
        resume: Continue the run in `out`, with the same final weights as if it had never stopped.
        overwrite: Replace the run in `out`; the old run stays until the new classifier is saved.
        display: Where progress is shown; nowhere by default.
        strategy: Which layers are trained: head (only the linear head), partial (the head and the top stages), full
            (all layers, lower ones more slowly), train (all layers at one rate) or scratch (all layers, from random
            weights). One of auto, head, partial, full, train, scratch. Default: 'auto'.
        backbone: Name of the pretrained network: any timm model, or fewtune_conv4. Default: 'tf_efficientnet_lite0'.
        weights: File with the weights of the backbone: safetensors, or a torch file of plain tensors. Default: the
            published weights, from the local cache or downloaded.
        epochs: Number of passes over the training pictures. Default: chosen by strategy and number of pictures.
        image_size: Side of the network's square input, in pixels. Default: the size the backbone was trained at.
        test_fraction: Share of the pictures set aside to measure the result, where the folder has no test/. Default:
            0.15.
        val_fraction: Share of the pictures set aside to choose between settings, where the folder has no val/. Default:
            0.15.
        class_weights: Whether rare classes weigh more in the loss. One of auto, balanced, none. Default: 'auto'.
        device: Device to compute on. One of auto, cpu, cuda. Default: 'auto'.
        seed: Seed of all random numbers. Default: 0.
        lr: Learning rate of the head. Default: chosen by the strategy.
        batch_size: Number of pictures in each training step. Default: 32.
        patience: Stop training after this many epochs without a better validation result. Default: chosen by the number
            of epochs.
        unfreeze: Name of the lowest stage that --strategy partial trains. Default: the top quarter of the stages, or
            more for unusual pictures.
        optimizer: Optimiser of the training loop. One of adamw, sgd. Default: 'adamw'.
        weight_decay: Weight decay: decoupled for AdamW, an L2 penalty for SGD. Default: 0.02.
        label_smoothing: Share of the target probability that is spread over all classes. Default: 0.05.
        warmup: Share of the training steps in which the learning rate rises. Default: 0.1.
        stage_decay: Factor from the learning rate of one stage to that of the stage below it. Default: chosen by the
            strategy.
        flip: Mirror training pictures left to right at random. Default: True.
        crop_scale: Smallest share of a picture that a random crop keeps. Default: 0.35.
        trivial_augment: Apply one random change of colour or shape to each training picture (TrivialAugment). Default:
            True.
        mixup: Strength of mixup: alpha of its beta distribution. Default: 0.0.
        views: Number of augmented views of each picture that frozen stages compute. Default: 12.
        test_time: Views of a picture that are averaged for one prediction. One of plain, flip, ten-crop. Default:
            'plain'.
        drop_above: Remove the stages above this one, for a smaller and faster network. Default: no stage is removed.
        max_bad: Stop where more than this share of the files is unreadable. Default: 0.1.
        max_pixels: Most pixels of a picture; larger ones count as unreadable. Default: 89478485.
        cache: Keep the outputs of frozen stages on disk for later runs. Default: True.
        precision: Number format of the computation. One of auto, float32, bfloat16. Default: 'auto'.
        workers: Number of processes or threads that decode pictures. Default: one per CPU core.
        log: Where each epoch's metrics are sent, in addition to history.jsonl in the run folder. One of none,
            tensorboard, wandb. Default: 'none'.

    Returns:
        The classifier. Its `metrics` say how good it is, as metrics.json in the run folder does.

    Raises:
        InputError: For a folder, file or option that cannot be used.
        TrainingDiverged: When the loss stops being finite.

    Example:
        >>> classifier = fit("flowers", "runs/flowers", strategy="head")
        >>> classifier.predict("new.jpg").label
        'tulip'
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
