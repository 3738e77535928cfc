"""Everything before training by gradient: pictures read, strategy chosen, stages dropped, heads solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.api.budget import Budget, told_while_reading
from finetune.api.unlabelled import LearnedUnlabelled, learn_unlabelled, read_unlabelled
from finetune.classifier.run_folder import RunFolder
from finetune.computing.threads import one_thread, one_thread_if_small
from finetune.config import BEST, Config
from finetune.data.folder import Listing
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view, pixels_needed, training_view
from finetune.errors import InputError
from finetune.features.extraction import read_pictures
from finetune.features.familiarity import PICTURES, batch_norm_distance
from finetune.features.forward import Outputs
from finetune.features.limited_reading import only
from finetune.features.table import FeatureTable, drop_above
from finetune.features.unlabelled import UnlabelledPictures
from finetune.kept.background import Background, list_background, read_pictures_of
from finetune.kept.views import Views
from finetune.linear.choice import StrategyChoice, choose, head_unless_training_pays
from finetune.linear.head import Heads, solve_heads
from finetune.linear.probe import MOST, ProbeCurve, probe_curve
from finetune.models.backbone import Backbone, Network
from finetune.models.candidates import load_weights
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages
from finetune.progress import Display
from finetune.strategies import HEAD, STRATEGIES, Strategy
from finetune.training.inputs import TrainingData
from finetune.training.plan import Plan, TrainingTask, plan_for

# "auto" weighs classes where the largest has more than this many times the pictures of the smallest.
UNBALANCED = 3


@dataclass(frozen=True)
class Prepared:
    """A run before training by gradient: the frozen backbone, the pictures with their activations, the strategy, and
    linear heads. class_weights: shape (classes,), or None where all pictures count the same. unlabelled: the unlabelled
    pictures that `heads` have learned from, None without --unlabelled. views: of pictures for predictions that average
    several, as far as they are known. background: pictures of none of the classes, None without any."""

    fabric: Fabric
    stages: PooledStages
    rows: FeatureTable
    choice: StrategyChoice
    heads: Heads
    class_weights: Tensor | None
    unlabelled: LearnedUnlabelled | None = None
    views: Views | None = None
    background: Background | None = None

    @property
    def backbone(self) -> Backbone:
        return self.stages.backbone

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of activations of each depth of `rows.pooled`: of all depths, or of the last ones."""
        widths, count = self.stages.widths, self.rows.pooled.shape[1]
        return next(widths[start:] for start in range(len(widths)) if sum(widths[start:]) == count)

    def starting_network(self, config: Config) -> tuple[Network, Tensor | None]:
        """The network before training by gradient, and its logits (m, classes) of the validation pictures, which
        training must improve on. From random weights, and with `--keep trained`, the logits are None: whatever was
        trained is kept."""
        if self.choice.strategy.start == "pretrained":
            network = Network(self.backbone, self.heads.features.as_layer())
            return network.to(self.fabric.device), self.heads.val_logits if config.keep == "best" else None
        torch.manual_seed(config.seed)
        layer = nn.Linear(self.backbone.width, len(self.rows.folder.classes))
        return Network(self.backbone, layer).to(self.fabric.device), None

    def plan(self, network: Network, config: Config) -> Plan:
        """Epochs, learning rates and patience of the training."""
        return plan_for(self.choice.strategy, config, network, len(self.rows.folder.train))

    def task(self, config: Config, strategy: Strategy | None = None) -> tuple[TrainingTask, Tensor | None]:
        """The training of a strategy, by default the chosen one, with its frozen stages; and the logits that it must
        improve on, as for `starting_network`."""
        of = self if strategy is None else replace(self, choice=replace(self.choice, strategy=strategy))
        network, start_logits = of.starting_network(config)
        plan = of.plan(network, config)
        network.backbone.freeze_below(plan.lowest, batch_norm_trains=plan.batch_norm_trains)
        return TrainingTask(self.fabric, network, plan, config, self.training_data(config)), start_logits

    def within(self, strategy: Strategy) -> Strategy:
        """`strategy`, whose lowest stage may have been dropped, for the stages that there are."""
        there = strategy.lowest in [stage.name for stage in self.backbone.stages]
        return strategy if there else replace(strategy, lowest=None)

    def training_data(self, config: Config) -> TrainingData:
        """The training and the validation pictures."""
        rows, preprocessing = self.rows, self.backbone.preprocessing
        paths, train, val, hashes = rows.paths(), rows.indices("train"), rows.indices("val"), rows.hashes
        return TrainingData(
            pictures=Pictures(
                paths,
                training_view(preprocessing, config),
                pixels_needed(preprocessing, config),
                config.max_pixels,
                config.seed,
            ),
            indices=train,
            labels=rows.labels,
            val=Pictures(
                [paths[index] for index in val],
                evaluation_view(preprocessing),
                preprocessing.shortest_side,
                config.max_pixels,
            ),
            val_labels=rows.labels[val],
            class_weights=self.class_weights,
            preprocessing=preprocessing,
            hashes=hashes,
            val_hashes=[hashes[index] for index in val],
        )


def prepare(
    listing: Listing,
    config: Config,
    run: RunFolder | None,
    display: Display,
    splits: Mapping[str, str] | None = None,
    budget: Budget | None = None,
) -> Prepared:
    """Read the pictures, choose the strategy and solve the heads.

    Args:
        listing: The pictures.
        config: The run's options.
        run: Keeps the activations for --resume.
        display: Shows progress.
        splits: Splits by sha256 that a run without a folder keeps to. None for those of earlier runs.
        budget: Bounds the number of pictures that are read.

    Raises:
        InputError: For a folder, file or option that cannot be used.
    """
    fabric = open_engine(config.device, config.precision)
    stages = PooledStages(_backbone(config, display).to(fabric.device))
    outputs = _activations(fabric, stages, listing, config, run, display, budget)
    if budget is not None:
        budget.found = len(listing.samples)
        listing, outputs = only(listing, outputs)
        listing = replace(listing, notes=(*listing.notes, *([budget.note] if budget.note else [])))
    recorded = splits if run is None else run.recorded
    rows = FeatureTable.audited(listing, outputs, stages.backbone.width, config, recorded)
    for line in rows.summary():
        display.say(line)
    unlabelled = None
    if config.strategy == "auto" or STRATEGIES[config.strategy].start == "pretrained":
        contents = [outputs.contents[position] for position in range(len(listing.samples))]
        measuring = [*rows.indices("val"), *rows.indices("test")]
        unlabelled = read_unlabelled(fabric, stages, contents, measuring, config, run, display)
    background = None
    if config.background is not None:
        found, skipped = list_background(config.background)
        background = read_pictures_of(fabric, stages, found, config, display, skipped)
    numbers = rows.pooled.numel() + (0 if unlabelled is None else unlabelled.pooled.numel())
    with one_thread_if_small(numbers) if budget is None else one_thread():
        prepared = _with_heads(fabric, stages, rows, unlabelled, config, display)
    if background is None:
        return prepared
    return replace(prepared, background=background.up_to(prepared.stages.widths))


def _backbone(config: Config, display: Display) -> Backbone:
    """The backbone, with pretrained weights where the strategy begins from them."""
    torch.manual_seed(config.seed)
    backbone = Backbone(config.backbone, image_size=config.image_size)
    # Unknown names are refused here, before an hour of reading.
    if config.unfreeze is not None:
        backbone.stage_index(config.unfreeze)
    if config.drop_above not in (None, BEST):
        backbone.stage_index(config.drop_above)
    if config.strategy == "auto" or STRATEGIES[config.strategy].start == "pretrained":
        load_weights(backbone, config, display)
    return backbone


def _with_heads(
    fabric: Fabric,
    stages: PooledStages,
    rows: FeatureTable,
    unlabelled: UnlabelledPictures | None,
    config: Config,
    display: Display,
) -> Prepared:
    """Choose the strategy, drop stages where asked for, and solve the heads."""
    per_class = len(rows.folder.train) / len(rows.folder.classes)
    curve = (
        training_curve(stages, rows, config.max_pixels)
        if config.strategy == "auto" or config.drop_above == BEST
        else None
    )
    choice = choose(config.strategy, per_class, curve)
    if not rows.folder.val:
        choice = _without_validation(choice, config)
    if config.drop_above is not None:
        stages, rows = drop_above(stages, rows, config.drop_above, None if curve is None else curve.best.depth, display)
        choice = _within(stages.backbone, choice, config)
    heads, class_weights, learned = solve(stages.widths, rows, unlabelled, config)
    if choice.strategy.start == "pretrained":
        shares = ", ".join(f"{name} {share:.0%}" for name, share in heads.shares.items())
        display.say(f"head: average of linear classifiers, by their likelihood on held-out pictures: {shares}.")
    if learned is not None:
        display.say(learned.metrics(()).sentence)
    # Whoever gives options of the training wants one.
    if config.strategy == "auto" and (config.unfreeze, config.epochs, config.lr) == (None, None, None):
        pictures = len(rows.folder.train) + len(rows.folder.val)
        choice = head_unless_training_pays(choice, heads.error, pictures, per_class)
    display.say(choice.reason)
    if learned is not None and choice.strategy.trains != "head":
        display.say(f"{choice.strategy.name} starts from that head; its training reads the labelled pictures alone.")
    return Prepared(fabric, stages, rows, choice, heads, class_weights, learned)


def solve(
    widths: Sequence[int], rows: FeatureTable, unlabelled: UnlabelledPictures | None, config: Config
) -> tuple[Heads, Tensor | None, LearnedUnlabelled | None]:
    """Solve the heads: the heads, the weights of the classes, and what they have learned from unlabelled pictures.

    widths: Number of activations of each depth of `rows.pooled`.
    """
    class_weights = _class_weights(config.class_weights, rows.of_split("train")[1], len(rows.folder.classes))
    # Validation pictures that were split off here may train the final head. Not with several views of a picture: the
    # features here are of one view, and the validation figures must come from the head that is kept.
    learn_from_val = rows.val_was_made and config.test_time == "plain"
    heads = solve_heads(
        rows.of_split("train"), rows.of_split("val"), widths, class_weights, learn_from_val=learn_from_val
    )
    if unlabelled is None:
        return heads, class_weights, None
    learned = learn_unlabelled(heads, rows, unlabelled.up_to(widths), widths, class_weights)
    return learned.heads, class_weights, learned


def _without_validation(choice: StrategyChoice, config: Config) -> StrategyChoice:
    """The head, which alone needs no validation pictures. InputError where another strategy is asked for."""
    if choice.strategy is HEAD:
        return choice
    if config.strategy != "auto":
        raise InputError(
            f"--strategy {config.strategy} needs validation pictures to choose an epoch by, and no class has two "
            "different training pictures; add pictures, or give --strategy head"
        )
    return replace(
        choice,
        strategy=HEAD,
        reason="head: without validation pictures, nothing shows whether training the backbone helps.",
    )


def _within(backbone: Backbone, choice: StrategyChoice, config: Config) -> StrategyChoice:
    """`choice` for a backbone without its upper stages. InputError where --unfreeze names one of these."""
    left = [stage.name for stage in backbone.stages]
    if config.unfreeze is not None and config.unfreeze not in left:
        raise InputError(
            f"--drop-above removes stage {config.unfreeze}, which --unfreeze names; left are {', '.join(left)}"
        )
    if choice.strategy.lowest in left:
        return choice
    return replace(choice, strategy=replace(choice.strategy, lowest=None))


def _activations(
    fabric: Fabric,
    stages: PooledStages,
    listing: Listing,
    config: Config,
    run: RunFolder | None,
    display: Display,
    budget: Budget | None,
) -> Outputs:
    """Pooled activations of every stage: what an interrupted run has kept, or a pass over the pictures."""
    kept = None if run is None else run.kept_features(listing, sum(stages.widths))
    if kept is not None:
        return kept
    if budget is None:
        told = None if run is None else told_while_reading(len(listing.samples), config, display)
        outputs = read_pictures(fabric, stages, listing, config, display, told=told)
    else:
        outputs = budget.read(fabric, stages, listing, config, display)
    if run is not None:
        run.keep_features(listing, outputs)
    if budget is not None:
        budget.record()
    return outputs


def _class_weights(requested: str, labels: Tensor, classes: int) -> Tensor | None:
    """Weights, shape (classes,), that give every class the same total; None where all pictures count the same."""
    counts = torch.bincount(labels, minlength=classes)
    if requested == "none" or (requested == "auto" and counts.max() <= UNBALANCED * counts.min()):
        return None
    return len(labels) / (classes * counts.float())


def training_curve(stages: PooledStages, rows: FeatureTable, max_pixels: int) -> ProbeCurve | None:
    """The probe curve of the training pictures, of at most about MOST; None where a class has fewer than two."""
    indices = torch.tensor(rows.indices("train"))
    if int(torch.bincount(rows.labels[indices], minlength=len(rows.folder.classes)).min()) < 2:
        return None
    if len(indices) > MOST:
        indices = indices[every_class(rows.labels[indices], MOST)]
    curve = probe_curve(stages.split(rows.pooled[indices]), stages.depths, rows.labels[indices])
    return replace(curve, distance=_distance(stages, rows, indices, max_pixels))


def _distance(stages: PooledStages, rows: FeatureTable, indices: Tensor, max_pixels: int) -> float | None:
    """The distance of some of the pictures at `indices` from those that the backbone was trained on."""
    preprocessing, device = stages.backbone.preprocessing, next(stages.parameters()).device
    some = indices[torch.linspace(0, len(indices) - 1, min(PICTURES, len(indices))).round().long()]
    pictures = Pictures(rows.paths(), evaluation_view(preprocessing), preprocessing.shortest_side, max_pixels)
    batch = pictures.batch(some.tolist())
    if len(batch.index) == 0:
        return None
    return batch_norm_distance(stages.backbone, preprocessing.normalize(batch.pixels.to(device)))


def every_class(labels: torch.Tensor, most: int) -> torch.Tensor:
    """About `most` positions in (n,) labels: the same share of every class, and at least two of each."""
    chosen = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = max(2, round(most * len(rows) / len(labels)))
        chosen.append(rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()])
    return torch.cat(chosen).sort().values
