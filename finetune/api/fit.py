"""`fit`: from a folder of pictures to a measured classifier."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from torch import Tensor

from finetune.api.backbones import BackboneChoice, choose_backbone
from finetune.api.budget import Budget, seconds_after
from finetune.api.fit_options import FitOptions
from finetune.api.outcome import Outcome, learn_features, measure, write_run
from finetune.api.prepare import Prepared, prepare
from finetune.classifier.classifier import Classifier
from finetune.classifier.loading import load
from finetune.classifier.run_folder import RunFolder
from finetune.classifier.run_metrics import BackbonesMetrics, write_metrics
from finetune.config import Config
from finetune.data.folder import Listing
from finetune.data.split_record import record_splits
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError, TrainingDiverged
from finetune.features.unlabelled import list_some
from finetune.files.reading import as_type
from finetune.kept.background import list_background
from finetune.linear.head import Heads
from finetune.models.backbone import Network
from finetune.models.device import reproducible_numerics
from finetune.options.fields import no_effect
from finetune.progress import Display, in_words
from finetune.random_state import restored_random_state
from finetune.ranks.start import goes_on_alone, joined
from finetune.report.report import REPORT_FILE, write_report
from finetune.training.budget import OutOfTime, training_costs
from finetune.training.loggers import Log, check_log, open_log
from finetune.training.loop import EpochResult, OnEpoch, TrainingResult, train
from finetune.training.plan import TrainingTask
from finetune.training.step import weights_on_cpu


@restored_random_state()
def fit(
    folder: Source,
    out: str | Path | None = None,
    *,
    config: Config | None = None,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    on_epoch: OnEpoch | None = None,
    started: float | None = None,
    devices: int = 1,
    **options: Unpack[FitOptions],
) -> Classifier:
    """Train a classifier on a folder of pictures, or on a table of them, and measure it.

    The linear head comes first: within seconds of reading the pictures it is measured and saved in `out`, where it can
    be loaded from then on. Strategies that train the backbone then try to improve on it. Ctrl-C during training returns
    the best classifier so far, with `metrics["interrupted"]` true.

    One picture of each class is enough for the head. It is then not measured unless the folder has a test/, and
    `metrics["accuracy"]` is None. Other strategies need two different pictures of a class, one of them for validation.

    Args:
        folder: One sub-folder of pictures for each class, or the same below train/, val/ and test/; or a table: a CSV
            file, a data frame, or a list of (path, label) or (path, label, split), see `table.list_pictures`.
        out: Run folder to leave the classifier in. None keeps it in memory.
        config: All options in one object, instead of keywords.
        resume: Continue the run in `out`, with the same final weights as if it had never stopped.
        overwrite: Replace the run in `out`; the old run stays until the new classifier is saved.
        display: Where progress is shown; nowhere by default.
        on_epoch: Called with an `EpochResult` after every epoch of training. An exception that it raises ends the run
            and is passed on; what `out` holds by then stays, and `resume` can continue. KeyboardInterrupt acts as
            Ctrl-C does.
        started: When the job began, by `time.monotonic`, if that was before this call; `minutes` count from then on.
        devices: Number of processes to train in on this machine, each on its own GPU or on a share of the cores. More
            than one run this program again, from its start. Processes that torchrun or srun started join each other
            without it. Every process returns the classifier; the first one alone writes files and shows progress.
        strategy: Which layers are trained: head (only the linear head), partial (the head and the top stages), full
            (all layers, lower ones more slowly), train (all layers at one rate) or scratch (all layers, from random
            weights). One of auto, head, partial, full, train, scratch. Default: 'auto'.
        backbone: Name of the pretrained network: any timm model, fewtune_conv4, or auto, which compares several on
            these pictures and takes the best. Default: 'tf_efficientnet_lite0'.
        backbones: Names of the networks that --backbone auto compares, separated by commas. Default: the default list
            and the files in --weights-dir, as far as their weights are at hand.
        max_ms: Most milliseconds a picture, on this machine, that a network of --backbone auto may take. Default: no
            bound.
        weights: File with the weights of the backbone: safetensors, or a torch file of plain tensors. Default: the
            published weights, from the local cache or downloaded.
        weights_dir: Folder with files of weights, NAME.safetensors for network NAME. Default: none.
        epochs: Number of passes over the training pictures. Default: chosen by strategy and number of pictures.
        minutes: Duration of the whole run in minutes, report included. Default: no limit.
        image_size: Side of the network's square input, in pixels. Default: the size the backbone was trained at.
        test_fraction: Share of the pictures set aside to measure the result, where the folder has no test/. Default:
            0.15.
        val_fraction: Share of the pictures set aside to choose between settings, where the folder has no val/. Default:
            0.15.
        unlabelled: Folder of pictures without labels, from which the head learns too as far as cross-validation shows
            that they help. Default: none.
        background: Folder of pictures of none of the classes, such as come in use, for `finetune predict
            --false-accept-rate`. Default: none.
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
        keep: Weights to keep after training: best (the trained weights, a mixture of them with those before training,
            or the linear head, whichever is best on the validation pictures) or trained (the weights of the best epoch,
            even where the head is better). Default: 'best'.
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
        keep_features: Keep the features of the pictures in the run folder, for `finetune extend` and `finetune forget`.
            Default: True.
        precision: Number format of the computation. One of auto, float32, bfloat16. Default: 'auto'.
        workers: Number of processes or threads that decode pictures. Default: one per CPU core.
        log: Where each epoch's metrics are sent, in addition to history.jsonl in the run folder. One of none,
            tensorboard, wandb. Default: 'none'.

    Returns:
        The classifier. Its `metrics` say how good it is, as metrics.json in the run folder does.

    Raises:
        InputError: For a folder, file or option that cannot be used.
        TrainingDiverged: When the loss stops being finite; the head stays in `out`.

    Example:
        >>> from finetune import fit
        >>> classifier = fit("photos/", "runs/flowers", strategy="head", backbone="fewtune_conv4", device="cpu")
        >>> classifier.predict("new.png").label
        'cat'
    """
    started = time.monotonic() if started is None else started
    if config is not None and options:
        raise InputError(f"options are given twice, in config and by name: {', '.join(options)}")
    if config is not None and not isinstance(config, Config):
        raise InputError("config must be a finetune.Config; Config.from_dict makes one of a dictionary")
    config = config or Config.from_dict(options)
    with joined(config.device, devices) as ranks:
        if ranks is not None and ranks.rank > 0:
            classifier: Classifier = ranks.serve()
            return classifier
        classifier = _fitted(folder, out, config, resume, overwrite, display or Display(), on_epoch, started)
        if ranks is not None:
            ranks.finish((classifier,))
        return classifier


def _fitted(
    folder: Source,
    out: str | Path | None,
    config: Config,
    resume: bool,
    overwrite: bool,
    display: Display,
    on_epoch: OnEpoch | None,
    started: float,
) -> Classifier:
    """The classifier of a new run, of one that is continued, or of one that has finished."""
    check_log(config, None if out is None else Path(out))
    listing = list_pictures(folder)
    if config.unlabelled is not None:
        list_some(config.unlabelled)  # an empty folder is refused here, before an hour of reading
    if config.background is not None:
        list_background(config.background)
    if out is None:
        return _Job.of(config, None, display, started, on_epoch, listing).classifier(listing)
    with RunFolder(Path(out)) as run:
        if run.begin(listing.root, config, resume=resume, overwrite=overwrite, table=listing.table):
            display.say(f"{out} holds this run, finished")
            classifier = load(run.path, device=config.device)
            if not (run.path / REPORT_FILE).exists():  # killed when all else was written
                write_report(run.path, classifier=classifier)
            return classifier
        return _Job.of(config, run, display, started, on_epoch, listing).classifier(listing)


@dataclass(frozen=True)
class _Job:
    """One run. started: its start on the monotonic clock. backbones: the comparison by which --backbone auto chose the
    network of `config`. splits: of the pictures by sha256, which that comparison has made. budget: of its time, with
    --minutes."""

    config: Config
    run: RunFolder | None
    display: Display
    started: float
    on_epoch: OnEpoch | None
    backbones: BackbonesMetrics | None = None
    splits: Mapping[str, str] | None = None
    budget: Budget | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        run: RunFolder | None,
        display: Display,
        started: float,
        on_epoch: OnEpoch | None,
        listing: Listing,
    ) -> _Job:
        """The run with one network: where --backbone auto was given, the best for these pictures. A run that is resumed
        keeps the network that it has chosen."""
        kept = None if run is None else run.resolved()
        if kept is not None:
            choice, found = BackboneChoice(kept), None if run is None else run.comparison
        else:
            choice = choose_backbone(listing, config, display)
            found = None if choice.comparison is None else choice.comparison.to_dict()
            if run is not None and found is not None:
                run.resolve(choice.config, found, choice.splits or {})
        backbones = None if found is None else as_type(found, BackbonesMetrics, "comparison of backbones")
        budget = None if config.minutes is None else Budget(config, started, run)
        return cls(choice.config, run, display, started, on_epoch, backbones, choice.splits, budget)

    def classifier(self, listing: Listing) -> Classifier:
        """The best classifier for the pictures, measured and saved."""
        config, run = self.config, self.run
        prepared = prepare(listing, config, run, self.display, self.splits, self.budget)
        if run is not None:
            run.started()
        record_splits(listing, prepared.rows.splits_by_content, config, self.display)
        trains = prepared.choice.strategy.trains != "head"
        name = prepared.choice.strategy.name
        if unused := config.without_effect(strategy=name):
            self.display.say(no_effect(unused, f"strategy {name}"))
        with open_log(config, None if run is None else run.path) as log:
            outcome = self._head(prepared) if prepared.choice.strategy.start == "pretrained" else None
            if outcome is not None and trains:
                self._save_first(outcome, prepared)
            if trains and self.budget is not None:
                prepared, outcome, trains = self._within(self.budget, prepared, outcome)
            if trains:
                outcome = self._trained(prepared, outcome, log)
            assert outcome is not None
            self._save(outcome, prepared)
            metrics = outcome.metrics
            if metrics.accuracy is not None:
                log.result({f"{metrics.split}_accuracy": metrics.accuracy, "best_epoch": metrics.best_epoch})
        if not outcome.training.interrupted:
            learn_features(None if run is None else run.path, outcome, prepared, self.display)
        if run is not None:
            if not outcome.training.interrupted:
                run.finish()
            elif self.budget is not None:
                self.budget.record()
            write_report(run.path, classifier=outcome.classifier)
            self._count_report(outcome.classifier)
        return outcome.classifier

    def _within(
        self, budget: Budget, prepared: Prepared, head: Outcome | None
    ) -> tuple[Prepared, Outcome | None, bool]:
        """The run with the strategy that fits in the budget, and whether anything is trained."""
        if head is not None and self.run is not None:
            with budget.measured_reserve():
                write_report(self.run.path, classifier=head.classifier)
        plan = budget.plan_training(prepared, self.config)
        prepared = replace(prepared, choice=plan.applied_to(prepared.choice))
        if plan.reason:
            self.display.say(plan.reason)
        if head is not None:
            choice = prepared.choice
            head = replace(head, metrics=replace(head.metrics, strategy=choice.strategy.name, reason=choice.reason))
        return prepared, head, plan.epochs > 0

    def _head(self, prepared: Prepared) -> Outcome:
        """The solved head on the frozen backbone, as a classifier."""
        heads, backbone = prepared.heads, prepared.backbone
        hooks = None if heads.kept.width == backbone.width else prepared.stages.hooks
        network = Network(backbone, heads.kept.as_layer(), hooks).to(prepared.fabric.device)
        return self._measured(network, prepared, heads, TrainingResult())

    def _save_first(self, head: Outcome, prepared: Prepared) -> None:
        """Show the head's result and save it, so that it can be used while training goes on."""
        figures, run = head.metrics, self.run
        assert figures.split is not None, "training has validation pictures"
        assert figures.interval is not None
        low, high = figures.interval
        pictures = {"test": "test", "val": "validation"}[figures.split]
        where = ""
        if run is not None:
            if not run.holds_classifier():  # a run that is resumed may hold a better one
                self._save(head.after(TrainingResult(interrupted=True)), prepared)
            where = f"; saved in {run.path}, ready for finetune predict"
        self.display.say(
            f"head: accuracy {figures.accuracy:.1%} ({low:.1%} to {high:.1%} with 95 % confidence) "
            f"on {figures.n} {pictures} pictures{where}."
        )

    def _trained(self, prepared: Prepared, head: Outcome | None, log: Log) -> Outcome:
        """The network trained by gradient; `head` where that is not better and --keep is best. head: None from random
        weights."""
        task, start_logits = prepared.task(self._training_options())
        network, start = task.network, weights_on_cpu(task.network)
        try:
            training = self._train(task, start_logits, prepared, log)
            if training.best_epoch > 0 or head is None:
                trained = self._measured(network, prepared, None, training)
                # Training compares in its own precision. What counts is the accuracy of the classifier that is saved.
                if head is None or self.config.keep == "trained" or trained.val_accuracy >= head.val_accuracy:
                    return trained
                self.display.say("the trained network is less accurate on the validation pictures; the head is kept.")
                training = replace(training, best_epoch=0, share=1.0)
        except KeyboardInterrupt:
            if head is None or not goes_on_alone():
                raise
            training = TrainingResult(interrupted=True)
        except TrainingDiverged as error:
            if head is None or self.run is None:
                raise
            _restore(network, start)
            self._save(head, prepared)
            self.run.finish()  # the same training would diverge again
            raise TrainingDiverged(f"{error}; {self.run.path} holds the head") from error
        _restore(network, start)  # the head shares the backbone
        return head.after(training)

    def _training_options(self) -> Config:
        """The options of the training: with --minutes, those of its plan."""
        if self.budget is None or self.budget.plan is None:
            return self.config
        plan = self.budget.plan
        return replace(self.config, minutes=None, epochs=plan.epochs, views=plan.views)

    def _train(self, task: TrainingTask, start_logits: Tensor | None, prepared: Prepared, log: Log) -> TrainingResult:
        if self.display.console is not None:
            kept = "the best weights so far" if start_logits is None else "the head, or better weights found by then"
            self.display.say(f"{self._expected(task, prepared)}; Ctrl-C stops it and keeps {kept}.")
        try:
            with reproducible_numerics(prepared.fabric.device):
                return train(
                    task,
                    start_logits=start_logits,
                    checkpoint=None if self.run is None else self.run.checkpoint,
                    display=self.display,
                    log=log,
                    on_epoch=self._after_epoch,
                    deadline=None if self.budget is None else self.budget.deadline(),
                )
        except OutOfTime as slow:
            assert self.budget is not None
            if not self.budget.fewer_views(slow.share):
                self.display.say("the frozen stages are slower than planned, and the time of the training is over.")
                return TrainingResult(out_of_time=True)
            fewer = self._training_options()
            self.display.say(f"the frozen stages are slower than planned: views of a picture: {fewer.views}.")
            return self._train(replace(task, config=fewer), start_logits, prepared, log)

    def _expected(self, task: TrainingTask, prepared: Prepared) -> str:
        """How long the training and the whole run take."""
        name, so_far = prepared.choice.strategy.name, time.monotonic() - self.started
        if self.budget is not None and self.budget.plan is not None:
            epochs, seconds = self.budget.plan.epochs, self.budget.plan.seconds
            return f"training {name}, number of epochs {epochs} at first: the whole run takes {in_words(seconds)}"
        costs = training_costs(task)
        training = costs.seconds(task.plan.epochs, task.config.views)
        whole = so_far + training + seconds_after(costs, prepared.rows)
        return f"training {name}: {in_words(training)} at most, the whole run {in_words(whole)}"

    def _after_epoch(self, result: EpochResult) -> None:
        if self.budget is not None:
            self.budget.record()
        if self.on_epoch is not None:
            self.on_epoch(result)

    def _measured(self, network: Network, prepared: Prepared, heads: Heads | None, training: TrainingResult) -> Outcome:
        """`network` as a classifier. heads: where it is one of them."""
        classes, preprocessing = prepared.rows.folder.classes, prepared.backbone.preprocessing
        classifier = Classifier(network, classes, preprocessing, self.config, prepared.fabric)
        outcome = measure(classifier, prepared, heads, training, self.display)
        return replace(outcome, metrics=replace(outcome.metrics, backbones=self.backbones))

    def _save(self, outcome: Outcome, prepared: Prepared) -> None:
        """Give the classifier its figures, and write it where there is a run folder."""
        metrics = replace(outcome.metrics, seconds=round(time.monotonic() - self.started, 2))
        if self.budget is not None:
            read, planned = len(prepared.rows.listing.samples), outcome.training.planned
            metrics = replace(metrics, budget=self.budget.metrics(read, planned))
        outcome.classifier.run_metrics = metrics
        if self.run is not None:
            write_run(self.run.path, self.run.asked, replace(outcome, metrics=metrics), prepared.rows)
            outcome.classifier.folder = self.run.path

    def _count_report(self, classifier: Classifier) -> None:
        """Add the time of the report to the time that was used."""
        metrics = classifier.run_metrics
        if self.run is None or self.budget is None or metrics is None or metrics.budget is None:
            return
        used = replace(metrics.budget, used_seconds=round(self.budget.limit.used, 2))
        seconds = round(time.monotonic() - self.started, 2)
        classifier.run_metrics = replace(metrics, budget=used, seconds=seconds)
        write_metrics(self.run.path, classifier.run_metrics)


def _restore(network: Network, weights: dict[str, Tensor]) -> None:
    network.load_state_dict(weights)
    network.eval()
