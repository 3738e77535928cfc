"""Everything before the first step of training: pictures read, strategy chosen, head solved, network ready to learn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from finetune.classifier.run_folder import RunFolder
from finetune.config import BEST, Config
from finetune.data.folder import Listing
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view, pixels_needed, training_view
from finetune.errors import InputError
from finetune.features.extraction import read_pictures
from finetune.features.forward import Outputs
from finetune.features.table import FeatureTable
from finetune.linear.head import Heads, solve_heads
from finetune.linear.probe import ProbeCurve, probe_curve
from finetune.linear.threads import one_thread_if_small
from finetune.models.backbone import Backbone, Network
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display
from finetune.strategies import STRATEGIES
from finetune.training.choice import StrategyChoice, choose, head_unless_training_pays
from finetune.training.inputs import TrainingData
from finetune.training.plan import Plan, plan_for

# "auto" weighs classes once the largest has more than so many times the pictures of the smallest.
UNBALANCED = 3


# Training pictures that a curve is made of, at most: it grows more slowly than the time that it takes.
MOST = 3000


@dataclass(frozen=True)
class Prepared:
    """What training starts from. heads: the best that is known without it. class_weights: (classes,), or None where all
    pictures count the same."""

    fabric: Fabric
    stages: PooledStages
    rows: FeatureTable
    choice: StrategyChoice
    heads: Heads
    class_weights: Tensor | None

    @property
    def backbone(self) -> Backbone:
        return self.stages.backbone

    def beginning(self, config: Config) -> tuple[Network, Tensor | None]:
        """The network as training by gradient starts, and the logits (m, classes) of the validation pictures that it
        must beat to be kept, None from random weights: the baseline is told as it is."""
        if self.choice.strategy.start == "pretrained":
            network = Network(self.backbone, self.heads.features.as_layer())
            return network.to(self.fabric.device), self.heads.val_logits
        torch.manual_seed(config.seed)
        layer = nn.Linear(self.backbone.width, len(self.rows.folder.classes))
        return Network(self.backbone, layer).to(self.fabric.device), None

    def plan(self, network: Network, config: Config) -> Plan:
        return plan_for(self.choice.strategy, config, network, len(self.rows.folder.train))

    def material(self, config: Config) -> TrainingData:
        """The training pictures, and the validation pictures that judge the result."""
        rows, preprocessing = self.rows, self.backbone.preprocessing
        paths, train, val = rows.paths(), rows.indices("train"), rows.indices("val")
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
            hashes=rows.hashes,
            val_hashes=[rows.hashes[index] for index in val],
        )


def prepare(listing: Listing, config: Config, run: RunFolder | None, display: Display) -> Prepared:
    """Read `listing` and choose how to learn from it. run: where what was read is kept for --resume.

    InputError for a folder, file or option that cannot be used.
    """
    fabric = open_engine(config.device, config.precision)
    torch.manual_seed(config.seed)
    backbone = Backbone(config.backbone, image_size=config.image_size)
    if config.unfreeze is not None:
        backbone.stage_index(config.unfreeze)  # wrong names are told before an hour of reading, not after
    if config.drop_above not in (None, BEST):
        backbone.stage_index(config.drop_above)
    if config.strategy == "auto" or STRATEGIES[config.strategy].start == "pretrained":
        load_pretrained(backbone, config.weights, display)
    backbone.to(fabric.device)

    stages = PooledStages(backbone)
    outputs = _read_every_picture(fabric, stages, listing, config, run, display)
    recorded = None if run is None else run.recorded
    rows = FeatureTable.audited(listing, outputs, backbone.width, config, recorded)
    for line in rows.told():
        display.say(line)
    with one_thread_if_small(rows.pooled.numel()):
        return _chosen_and_solved(fabric, stages, rows, config, display)


def _chosen_and_solved(
    fabric: Fabric, stages: PooledStages, rows: FeatureTable, config: Config, display: Display
) -> Prepared:
    """The strategy chosen and the heads solved, on what reading gave."""
    backbone, classes = stages.backbone, len(rows.folder.classes)
    curve = training_curve(stages, rows) if config.strategy == "auto" or config.drop_above == BEST else None
    choice = choose(config.strategy, len(rows.folder.train) / classes, curve)
    if config.drop_above is not None:
        stages, rows = drop_above(stages, rows, config.drop_above, curve, display)
        if config.unfreeze is not None and all(stage.name != config.unfreeze for stage in backbone.stages):
            left = ", ".join(stage.name for stage in backbone.stages)
            raise InputError(f"--unfreeze {config.unfreeze} is no stage that --drop-above leaves; these are {left}")
        if all(stage.name != choice.strategy.lowest for stage in backbone.stages):
            choice = replace(choice, strategy=replace(choice.strategy, lowest=None))
    class_weights = _class_weights(config.class_weights, rows.of_split("train")[1], classes)
    heads = solve_heads(
        rows.of_split("train"),
        rows.of_split("val"),
        stages.widths,
        class_weights,
        # Pictures set aside here only to choose by are learned from in the end. Seen in several views they are not:
        # what they are worth to choose by would have to be found anew.
        learn_from_val=rows.val_was_made and config.test_time == "plain",
    )
    if heads.best is not heads.features and choice.strategy.start == "pretrained":
        by = "cross-validation" if heads.cross_validated else "validation"
        display.say(f"head: on {', '.join(stages.last(heads.best.width))} side by side, chosen by {by}.")
    # Options of a training ask for one.
    if config.strategy == "auto" and (config.unfreeze, config.epochs, config.lr) == (None, None, None):
        pictures = len(rows.folder.train) + len(rows.folder.val)
        choice = head_unless_training_pays(choice, heads.error, pictures, len(rows.folder.train) / classes)
    display.say(choice.reason)
    return Prepared(fabric, stages, rows, choice, heads, class_weights)


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


def _class_weights(requested: str, labels: Tensor, classes: int) -> Tensor | None:
    """Weights, (classes,), that make every class count the same in sum; None where all pictures count the same."""
    counts = torch.bincount(labels, minlength=classes)
    if requested == "none" or (requested == "auto" and counts.max() <= UNBALANCED * counts.min()):
        return None
    return len(labels) / (classes * counts.float())


def drop_above(
    stages: PooledStages, rows: FeatureTable, asked: str, curve: ProbeCurve | None, display: Display
) -> tuple[PooledStages, FeatureTable]:
    """What `stages` and `rows` are without the stages above the one called `asked`, or with BEST above the depth that
    errs least on the curve. How much smaller that is, is told.

    InputError for a stage that there is not, where there is no curve to go by, and for a model that cannot be cut.
    """
    backbone = stages.backbone
    if asked == BEST:
        if curve is None:
            raise InputError(f"--drop-above {BEST} needs two training pictures of each class; name a stage instead")
        if curve.best is curve.last:
            display.say("no stage is dropped: none below the last errs less.")
            return stages, rows
        asked = curve.best.depth
    position = backbone.stage_index(asked)
    if position == len(backbone.stages) - 1:
        display.say(f"no stage is dropped: {asked} is the last.")
        return stages, rows
    if asked not in stages.depths:
        raise InputError(f"{backbone.name} cannot be cut above {asked}: the stage above it is not called as a module")
    # Where nothing was read it is not yet in evaluation mode, and a look at it would move its batch norms.
    backbone.eval()
    before = _size(backbone)
    backbone.drop_above(asked)
    after = _size(backbone)
    display.say(
        f"stages above {asked} dropped: {after[0] / 1e6:.2f} of {before[0] / 1e6:.2f} million parameters and "
        f"{after[1] / before[1]:.0%} of the multiplications are left."
    )
    widths = stages.widths[: stages.depths.index(asked) + 1]
    return PooledStages(backbone), replace(rows, pooled=rows.pooled[:, : sum(widths)], width=widths[-1])


def _size(backbone: Backbone) -> tuple[int, int]:
    """Parameters, and multiplications for one picture."""
    side, device = backbone.preprocessing.size, next(backbone.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        backbone(torch.zeros(1, 3, side, side, device=device))
    return sum(parameter.numel() for parameter in backbone.parameters()), counted.get_total_flops() // 2


def training_curve(stages: PooledStages, rows: FeatureTable) -> ProbeCurve | None:
    """The curve of the training pictures, of many some of each class; None where a class has fewer than two."""
    indices = torch.tensor(rows.indices("train"))
    if int(torch.bincount(rows.labels[indices], minlength=len(rows.folder.classes)).min()) < 2:
        return None
    if len(indices) > MOST:
        indices = indices[_every_class(rows.labels[indices], MOST)]
    return probe_curve(stages.split(rows.pooled[indices]), stages.depths, rows.labels[indices])


def _every_class(labels: torch.Tensor, most: int) -> torch.Tensor:
    """`most` or a few more positions in (n,) labels, the same share of every class and two of each at least."""
    chosen = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = max(2, round(most * len(rows) / len(labels)))
        chosen.append(rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()])
    return torch.cat(chosen).sort().values
