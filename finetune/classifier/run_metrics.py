"""metrics.json as dataclasses: of a run, and of an evaluation of one; the one place that writes and reads it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from msgspec import Meta

from finetune.data.splits import Unreadable
from finetune.errors import InputError
from finetune.files.reading import as_type, read_json
from finetune.files.writing import write_json
from finetune.metrics import Accuracy, ClassMetrics, Count, Finite, Measurement, Share
from finetune.open_set.unknown_metrics import UnknownMetrics
from finetune.strategies import BASELINES, check_strategies

METRICS_FILE = "metrics.json"
# Largest metrics.json in bytes: the confusion of 7,000 classes.
MOST_METRICS_BYTES = 512 << 20

# A number that a chart can show: differences of such numbers stay finite.
Plotted = Annotated[float, Meta(ge=-1e100, le=1e100)]
Rate = Annotated[float, Meta(ge=1e-100, le=1e100)]


@dataclass(frozen=True, kw_only=True)
class SplitMetrics:
    """Figures of a split that the result is not measured on. Older runs lack the interval, or n."""

    accuracy: Share
    interval: tuple[Share, Share] | None = None
    loss: Finite
    n: Count | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationMetrics(SplitMetrics):
    """Figures of the validation pictures, which also served to choose between settings."""

    n: Annotated[int, Meta(ge=1, le=10**15)]
    used_for_selection: bool = True


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """What a run is compared with, on the pictures that it is measured on; None in a run that lacks one."""

    majority_class: Accuracy | None = None
    nearest_class_mean: Accuracy | None = None
    head: Accuracy | None = None

    def named(self) -> Iterator[tuple[str, Accuracy]]:
        """Each baseline that there is, with its name for people."""
        for key, name in BASELINES.items():
            found: Accuracy | None = getattr(self, key)
            if found is not None:
                yield name, found


@dataclass(frozen=True, kw_only=True)
class CalibrationMetrics:
    """The temperature, and the expected calibration error before and after it on n pictures of `split`."""

    temperature: Annotated[float, Meta(gt=0, le=1e100)]
    ece_before: Finite
    ece_after: Finite
    n: Count
    split: Literal["val", "test"]


@dataclass(frozen=True, kw_only=True)
class ProbeMetrics:
    """One depth of the probe curve, as `finetune.linear.probe.Probe` describes it. Older runs lack what is None."""

    depth: str
    width: Count | None = None
    accuracy: Share
    interval: tuple[Share, Share]
    over_last: Finite | None = None
    over_last_interval: tuple[Finite, Finite] | None = None
    error: Finite | None = None
    less_error: Finite | None = None
    less_error_interval: tuple[Finite, Finite] | None = None
    strength: Finite | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeCurveMetrics:
    """The probe curve: each depth, all depths together, the best depth, and whether the pictures differ from those
    that the backbone was pretrained on."""

    pictures: Count | None = None
    classes: Count | None = None
    probes: Annotated[tuple[ProbeMetrics, ...], Meta(min_length=1)]
    together: ProbeMetrics
    best: str
    different: bool
    distance: Finite | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneMetrics:
    """One network of a comparison, as `finetune.linear.comparison.BackboneFigures` describes it."""

    name: str
    image_size: Count | None = None
    weights: str
    licence: str | None = None
    parameters: Count | None = None
    ms: Rate | None = None
    ms_single: Rate | None = None
    runtime: str | None = None
    accuracy: Share | None = None
    interval: tuple[Share, Share] | None = None
    error: Finite | None = None
    left_out: str | None = None


@dataclass(frozen=True, kw_only=True)
class BackbonesMetrics:
    """The networks that --backbone auto compared on `pictures` of `of` training and validation pictures."""

    candidates: tuple[BackboneMetrics, ...]
    chosen: str
    reason: str
    pictures: Count
    of: Count
    classes: Count


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """A step of the learning-rate sweep; None for a loss that is no finite number."""

    lr: Rate
    loss: Plotted | None
    smoothed: Plotted | None


@dataclass(frozen=True, kw_only=True)
class SweepMetrics:
    """The learning-rate sweep, as `finetune.training.lr_finder.Sweep` describes it."""

    suggestion: Rate | None
    trouble: str | None = None
    diverged: bool = False
    stage_rates: dict[str, Finite] | None = None
    points: tuple[SweepPoint, ...]


@dataclass(frozen=True, kw_only=True)
class PictureCounts:
    """Pictures of each split."""

    train: Count
    val: Count
    test: Count


@dataclass(frozen=True, kw_only=True)
class PictureToLabel:
    """An unlabelled picture whose label would teach much.

    path: below the folder of unlabelled pictures. second: class that is next in probability after `predicted`. doubt: 1
    minus the difference of both probabilities. novelty: 1 minus the cosine of its features with the most similar
    picture that is labelled or listed before it. score: how much nearer the unlabelled pictures come to one with a
    label, by the cosine, weighted by their doubt.
    """

    path: str
    predicted: str
    probability: Share
    second: str
    doubt: Share
    novelty: Annotated[float, Meta(ge=0, le=2)]
    score: Annotated[float, Meta(ge=0, le=2)]

    @property
    def reason(self) -> str:
        """Why its label would teach, in words."""
        return f"{self.predicted} or {self.second}? doubt {self.doubt:.2f}, novelty {self.novelty:.2f}"


@dataclass(frozen=True, kw_only=True)
class UnlabelledMetrics:
    """What unlabelled pictures did for the head.

    folder: of the pictures. pictures: how many the head could learn from. unreadable: files left out. labelled: how
    many are left out as copies of labelled or other unlabelled pictures; measuring: as copies of validation or test
    pictures; skipped: how many were not read. strength: share of the head that learned from them in the head of the
    run. alike: whether they are like the labelled pictures; if not, they do not count. judged: number of labelled
    pictures that chose the strength, each held out. without, accuracy: accuracy of the head without and with the
    unlabelled pictures on these. label_next: those whose label would teach most, by the head.
    """

    folder: str
    pictures: Count
    unreadable: tuple[Unreadable, ...] = ()
    labelled: Count = 0
    measuring: Count = 0
    skipped: Count = 0
    strength: Share
    alike: bool = True
    judged: Count = 0
    without: Share | None = None
    accuracy: Share | None = None
    label_next: tuple[PictureToLabel, ...] = ()

    @property
    def sentence(self) -> str:
        """How many were used, and what they gained."""
        if not self.pictures:
            return f"No picture in {self.folder} is used: all are left out."
        count = f"{self.pictures:,} unlabelled picture{'s' if self.pictures > 1 else ''}"
        if not self.alike:
            return f"{count}: not used, because most of them are like none of the classes."
        if self.without is None or self.accuracy is None:
            return f"{count}: strength {self.strength:g}. One labelled picture a class leaves none to measure by."
        before = f"{100 * self.without:.1f} %"
        if not self.strength:
            return f"{count}: not used. They do not improve the head, whose cross-validated accuracy is {before}."
        return (
            f"{count}: cross-validated accuracy {before} -> {100 * self.accuracy:.1f} % on {self.judged:,} labelled "
            f"pictures; strength {self.strength:g}."
        )


@dataclass(frozen=True, kw_only=True)
class BudgetMetrics:
    """A run with `--minutes`: seconds by the plan and in fact, epochs planned before training and at its end, views of
    a picture through frozen stages, pictures that were found and read, and what more time would buy."""

    minutes: Annotated[float, Meta(gt=0, le=1e100)]
    planned_seconds: Finite
    used_seconds: Finite
    epochs_planned: Count = 0
    epochs_at_end: Count = 0
    views: Count | None = None
    pictures_found: Count
    pictures_read: Count
    more_time: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunMetrics:
    """metrics.json of a run. Fields that have a default are missing in runs of older versions.

    accuracy, interval, balanced_accuracy, loss, n, per_class, confusion: as in `Measurement`. Where the run has neither
    a test nor a validation picture they are None or empty, and n is 0. split: of the pictures that the figures are of,
    None without any. used_for_selection: whether these also served to choose between settings. kept: "head", or the
    strategy whose training was better. learned_from: splits that the kept classifier has learned from. head_reads,
    frozen_head_reads: depths that the classifier's head and the baseline head read. epochs: how many were trained.
    best_epoch: the one whose weights were kept, 0 for none. share_of_the_way: share of the trained weights in their
    mixture with those before training. lr: learning rate of the head. seconds: of the whole run. budget: None without
    --minutes. unlabelled: None without --unlabelled. unknown: None where the classifier has no features to tell unknown
    pictures by.
    """

    accuracy: Share | None
    interval: tuple[Share, Share] | None
    balanced_accuracy: Share | None
    loss: Finite | None
    n: Count
    per_class: dict[str, ClassMetrics]
    confusion: tuple[tuple[Count, ...], ...] = ()
    split: Literal["val", "test"] | None
    used_for_selection: bool = False
    strategy: str
    reason: str | None = None
    backbones: BackbonesMetrics | None = None
    probe_curve: ProbeCurveMetrics | None = None
    kept: str | None = None
    learned_from: tuple[str, ...] | None = None
    highest_stage: str | None = None
    head_reads: tuple[str, ...] | None = None
    frozen_head_reads: tuple[str, ...] | None = None
    interrupted: bool = False
    epochs: Count = 0
    best_epoch: Count = 0
    share_of_the_way: Share | None = None
    lr: Finite | None = None
    lr_sweep: SweepMetrics | None = None
    baselines: Baselines = Baselines()
    train: SplitMetrics | None = None
    val: ValidationMetrics | None = None
    calibration: CalibrationMetrics | None = None
    pictures: PictureCounts | None = None
    unreadable: tuple[Unreadable, ...] = ()
    left_out: tuple[Unreadable, ...] = ()
    notes: tuple[str, ...] = ()
    unlabelled: UnlabelledMetrics | None = None
    unknown: UnknownMetrics | None = None
    seconds: Finite | None = None
    budget: BudgetMetrics | None = None

    def __post_init__(self) -> None:
        figures = (self.split, self.accuracy, self.interval, self.balanced_accuracy, self.loss, self.n or None)
        if any(figure is None for figure in figures) and any(figure is not None for figure in figures):
            raise ValueError("split, accuracy, interval, balanced_accuracy, loss and n belong together")
        check_strategies(strategy=self.strategy, kept=self.kept)

    @classmethod
    def from_dict(cls, values: Any, source: str = METRICS_FILE) -> Self:
        """The metrics that `to_dict` gave. InputError, naming `source` and the field, for anything else."""
        return as_type(values, cls, source)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of metrics.json."""
        return _json_values(self)


@dataclass(frozen=True, kw_only=True)
class EvaluationSource:
    """What an evaluation measured: the run, the folder or table of pictures, and the split that was asked for.

    config: config.json of the run at the time, so that the report needs no run folder.
    """

    run: str
    folder: str
    asked: str | None
    table: str | None = None
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without the configuration."""
        table = {} if self.table is None else {"table": self.table}
        return {"run": self.run, "folder": self.folder, "asked": self.asked, **table}


@dataclass(frozen=True, kw_only=True)
class EvaluationMetrics(Measurement):
    """metrics.json of an evaluation.

    split: "val" where the pictures are those that the run was chosen on, else "test". left_out_trained_on,
    left_out_chosen_on: pictures that were not measured, because the run was trained or chosen on them.
    """

    split: Literal["val", "test"]
    used_for_selection: bool = False
    strategy: str | None = None
    left_out_trained_on: Count = 0
    left_out_chosen_on: Count = 0
    unreadable: tuple[Unreadable, ...] = ()
    left_out: tuple[Unreadable, ...] = ()
    seconds: Finite | None = None
    evaluated: EvaluationSource | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the content of metrics.json; without `evaluated` where there is none."""
        values = _json_values(self)
        evaluated = values.pop("evaluated")
        if self.evaluated is not None:
            values["evaluated"] = self.evaluated.to_dict() | {"config": evaluated["config"]}
        return values


def write_metrics(folder: Path, metrics: RunMetrics | EvaluationMetrics) -> None:
    """Write metrics.json of a run or of an evaluation."""
    write_json(folder / METRICS_FILE, metrics.to_dict())


def read_metrics(folder: Path) -> RunMetrics | EvaluationMetrics:
    """metrics.json in a run folder, or in a folder that an evaluation was written to.

    Raises:
        InputError: If it is missing or damaged; the message names the file and the field.
    """
    path = folder / METRICS_FILE
    values = read_json(path, most_bytes=MOST_METRICS_BYTES)
    if isinstance(values, Mapping) and "evaluated" in values:
        return as_type(values, EvaluationMetrics, str(path))
    return as_type(values, RunMetrics, str(path))


def read_run_metrics(folder: Path) -> RunMetrics:
    """metrics.json of a run. InputError as for `read_metrics`, and where it is of an evaluation."""
    metrics = read_metrics(folder)
    if not isinstance(metrics, RunMetrics):
        raise InputError(f"{folder / METRICS_FILE} is of an evaluation, not of a run")
    return metrics


def _json_values(metrics: RunMetrics | EvaluationMetrics) -> dict[str, Any]:
    """Nested dataclasses as dictionaries, tuples as lists."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(metrics)))
    return values
