"""The main job: a folder of pictures in, the best classifier that it gives out, with what it is worth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.backbone import Backbone, Network
from finetune.classifier import Classifier, load
from finetune.config import Config
from finetune.engine import open_engine
from finetune.errors import InputError
from finetune.folder import Listing, list_folder
from finetune.frozen import Outputs
from finetune.head import LinearHead, fit_best_head
from finetune.inputs import Material
from finetune.loader import Pictures
from finetune.metrics import accuracy, log_loss
from finetune.pooled import PooledStages
from finetune.pretrained import load_pretrained
from finetune.probing import training_curve
from finetune.progress import Display
from finetune.reading import read_pictures
from finetune.run import RunFolder
from finetune.strategy import STRATEGIES, Strategy, choose
from finetune.training import Course, Score, plan_for, train
from finetune.transforms import evaluation_view, pixels_needed, training_view
from finetune.verdict import Rows, judge, verdict, write_run

# "auto" weighs classes once the largest has more than so many times the pictures of the smallest.
UNBALANCED = 3


def fit(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    config: Config | None = None,
    resume: bool = False,
    display: Display | None = None,
    **options: Any,
) -> Classifier:
    """Train a classifier on `folder`, one sub-folder of pictures for each class.

    out: run folder to leave it in, or None to keep it in memory. config, or its fields as keywords: see `Config`.
    resume: continue the run in `out`, with the same final weights as if it had never stopped. Ctrl-C during training
    returns the best so far, with `metrics["interrupted"]` true. What the run is worth
    stands in the returned classifier's `metrics`. Raises InputError for a folder, file or option that cannot be used,
    TrainingDiverged when the loss stops being finite.
    """
    started = time.monotonic()
    if config is not None and options:
        raise InputError(f"options are given twice, in config and by name: {', '.join(options)}")
    if config is not None and not isinstance(config, Config):
        raise InputError("config must be a finetune.Config; Config.from_dict makes one of a dictionary")
    config = config or Config.from_dict(options)
    display = display or Display()
    listing = list_folder(Path(folder))
    run = None if out is None else RunFolder(Path(out))
    if run is not None and run.begin(listing.root, config, resume=resume):
        display.say(f"{out} holds this run, finished")
        return load(run.path, device=config.device)

    fabric = open_engine(config.device, config.precision)
    torch.manual_seed(config.seed)
    backbone = Backbone(config.backbone, image_size=config.image_size)
    if config.unfreeze is not None:
        backbone.stage_index(config.unfreeze)  # wrong names are told before an hour of reading, not after
    if config.strategy == "auto" or STRATEGIES[config.strategy].start == "pretrained":
        load_pretrained(backbone, config.weights, display.say)
    backbone.to(fabric.device)

    stages = PooledStages(backbone)
    outputs = _read_every_picture(fabric, stages, listing, config, run, display)
    rows = Rows.audited(listing, outputs, backbone.width, config)
    found = rows.folder
    for line in rows.told():
        display.say(line)

    curve = training_curve(stages, rows) if config.strategy == "auto" else None
    choice = choose(config.strategy, len(found.train) / len(found.classes), curve)
    display.say(choice.reason)
    class_weights = _class_weights(config.class_weights, rows.of_split("train")[1], len(found.classes))
    last, head = fit_best_head(*rows.of_split("train"), *rows.of_split("val"), stages.widths, class_weights)
    reads = stages.last(head.width)
    if head is not last:
        display.say(f"head: on {', '.join(reads)} side by side, which validation prefers to the features alone.")
    network = Network(backbone, last.as_layer()).to(fabric.device)
    course = Course()
    if choice.strategy.trains != "head":
        course = _train(fabric, network, head, choice.strategy, config, rows, class_weights, run, resume, display)
    known = head if course.best_epoch == 0 and choice.strategy.head_first else None
    if known is not None and known.width > backbone.width:
        network = Network(backbone, known.as_layer(), stages).to(fabric.device)

    classifier = Classifier(network, found.classes, backbone.preprocessing, config, fabric)
    judged = judge(classifier, rows, known, display)
    spent = {"head_reads": list(reads), "seconds": round(time.monotonic() - started, 2)}
    classifier.metrics = verdict(rows, judged, choice, head, course) | spent
    if run is not None:
        write_run(run, classifier, rows, judged, course)
    return classifier


def _read_every_picture(
    fabric: Fabric, stages: PooledStages, listing: Listing, config: Config, run: RunFolder | None, display: Display
) -> Outputs:
    """Pooled activations of every stage; what this run has kept already is not read again."""
    kept = None if run is None else run.kept_features(listing)
    if kept is not None:
        return kept
    outputs = read_pictures(fabric, stages, listing, config, display)
    if run is not None:
        run.keep_features(listing, outputs)
    return outputs


def _train(
    fabric: Fabric,
    network: Network,
    head: LinearHead,
    strategy: Strategy,
    config: Config,
    rows: Rows,
    class_weights: Tensor | None,
    run: RunFolder | None,
    resume: bool,
    display: Display,
) -> Course:
    """Train by gradient what the strategy says, from the network's solved head where it starts from that.

    head: the best that is known without training, which training must beat.
    """
    val_pooled, val_labels = rows.of_split("val")
    logits = head(val_pooled)
    start: Score | None = Score(accuracy(logits, val_labels), log_loss(logits, val_labels, class_weights))
    if not strategy.head_first:
        torch.manual_seed(config.seed)
        network.head = nn.Linear(network.backbone.width, len(rows.folder.classes)).to(fabric.device)
        start = None
    preprocessing = network.backbone.preprocessing
    paths = rows.paths()
    val_paths = [paths[index] for index in rows.folder.val]
    material = Material(
        pictures=Pictures(
            paths,
            training_view(preprocessing, config),
            pixels_needed(preprocessing, config),
            config.max_pixels,
            config.seed,
        ),
        indices=list(rows.folder.train),
        labels=rows.labels,
        val=Pictures(val_paths, evaluation_view(preprocessing), preprocessing.shortest_side, config.max_pixels),
        val_labels=val_labels,
        class_weights=class_weights,
        preprocessing=preprocessing,
        hashes=rows.hashes,
        val_hashes=[rows.hashes[index] for index in rows.folder.val],
    )
    return train(
        fabric,
        network,
        plan_for(strategy, config, network, len(material.indices)),
        config,
        material,
        start=start,
        checkpoint=None if run is None else run.checkpoint,
        resume=resume,
        display=display,
    )


def _class_weights(requested: str, labels: Tensor, classes: int) -> Tensor | None:
    """Weights, (classes,), that make every class count the same in sum; None where all pictures count the same."""
    counts = torch.bincount(labels, minlength=classes)
    if requested == "none" or (requested == "auto" and counts.max() <= UNBALANCED * counts.min()):
        return None
    return len(labels) / (classes * counts.float())
