"""Expected duration of a run; and `--minutes`: which pictures are read, and which training fits in the time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.classifier.run_folder import RunFolder
from finetune.classifier.run_metrics import BudgetMetrics
from finetune.computing.threads import one_thread
from finetune.config import BEST, Config
from finetune.data.folder import Listing
from finetune.data.loader import cores
from finetune.errors import InputError
from finetune.features.forward import Outputs
from finetune.features.limited_reading import PartlyRead, ReadingLimit, read_within
from finetune.features.table import FeatureTable
from finetune.files.reading import as_type
from finetune.linear.choice import StrategyChoice, choose, expected_gain
from finetune.linear.head import solve_heads
from finetune.linear.probe import MOST, probe_curve
from finetune.metrics import Count, Finite
from finetune.models.pooled import PooledStages
from finetune.progress import Display, TimeLimit, in_words
from finetune.strategies import FEW, HEAD, SCRATCH, STRATEGIES
from finetune.training.budget import Deadline, TrainingCosts, training_costs
from finetune.training.plan import TrainingTask

if TYPE_CHECKING:
    from finetune.api.prepare import Prepared

# Share of the time that is left for reading and for the head: other programs may slow down what follows, which cannot
# be cut short. Until the speed is known, a smaller share.
_READING, _FIRST = 0.6, 0.35
# The time of heads and probes grows with this power of the pictures up to as many as there are activations, and in
# proportion beyond.
_POWER, _ACTIVATIONS = 1.9, 2000
# Seconds of everything after the head, before it is measured: a share of the budget, and at least so many.
_AFTER, _LEAST_AFTER = 0.05, 2.5
# Fewest epochs for which "auto" trains a strategy: with fewer, a cheaper strategy gains more.
FEWEST_EPOCHS = 3
# Share of the time for training that is planned: estimates come from few pictures.
_PLANNED = 0.85
# Factor on the measured times of what cannot be cut short: measuring, and the report.
_CAUTION = 1.3


# CPU seconds of the heads, and of the probe curve, of so many pictures; and of the report.
_PICTURES, _HEADS, _PROBE, _REPORT = 1000, 1.8, 3.0, 1.0
# The report reads and explains so many pictures: its time is that of classifying them.
_SHOWN = 100


def told_while_reading(pictures: int, config: Config, display: Display) -> Callable[[float, float], None]:
    """Shows the expected time of reading `pictures`, of the linear head and of its report."""

    def told(seconds: float, cores_used: float) -> None:
        solving = _HEADS * _growth(_PICTURES, pictures)
        if config.strategy == "auto":
            solving += _PROBE * _growth(_PICTURES, min(pictures, MOST))
        # Reading has kept all cores busy: where it had less, other programs run, and one thread gets less of a core.
        busy = max(1.0, cores() / max(cores_used, 0.05))
        whole = seconds + busy * (solving + _REPORT)
        display.say(f"reading the pictures, the linear head and its report: {in_words(whole)} from now.")

    return told


def _growth(before: int, after: int) -> float:
    """How many times longer heads take for `after` pictures than for `before`."""
    one, other = (min(count, _ACTIVATIONS) ** (_POWER - 1) * count for count in (before, after))
    return float(other / one)


def seconds_after(costs: TrainingCosts, rows: FeatureTable) -> float:
    """Expected seconds from the end of a training to the written report."""
    return _REPORT + costs.picture * (rows.to_measure + min(_SHOWN, rows.to_measure))


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The training that fits in a budget.

    Attributes:
        strategy: Its name; "head" where none fits.
        lowest: `Strategy.lowest`.
        epochs: Epochs planned before the first step. 0 where no training fits.
        most_epochs: Epochs without a budget.
        views: Views of a picture through frozen stages.
        frozen: Whether there are frozen stages, and views of them are computed once.
        epoch: Estimated seconds of an epoch.
        after: Seconds from the end of the training to the written report.
        seconds: Planned seconds of the whole run.
        reason: Why, and what more time would buy; empty where everything fits.
    """

    strategy: str
    lowest: str | None = None
    epochs: Count = 0
    most_epochs: Count = 0
    views: Count = 1
    frozen: bool = False
    epoch: Finite = 0.0
    after: Finite = 0.0
    seconds: Finite
    reason: str = ""

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy: {self.strategy!r} is none of {', '.join(STRATEGIES)}")

    def applied_to(self, choice: StrategyChoice) -> StrategyChoice:
        """`choice` with the strategy of the plan, and its reason."""
        strategy = replace(STRATEGIES[self.strategy], lowest=self.lowest)
        return replace(choice, strategy=strategy, reason=f"{choice.reason} {self.reason}".strip())


class Budget:
    """The time of a run, and what is planned in it.

    Args:
        config: The run's options, with `minutes`.
        started: Start of the run, by `time.monotonic`.
        run: Keeps the plan and the time that was used, for --resume.

    Attributes:
        limit: The time of the run.
        plan: The training; None until it is planned.
        reserve: Seconds from the end of the training to the written report, without measuring.
        found: Number of pictures in the folder or table.
        expected: Planned seconds of a run that trains nothing beyond the head.
        note: Which pictures are read and what more time would buy; empty where all are.
    """

    def __init__(self, config: Config, started: float, run: RunFolder | None):
        assert config.minutes is not None
        kept = {} if run is None else run.kept_budget()
        self.minutes, self._run = config.minutes, run
        self.limit = TimeLimit(60 * self.minutes, started, float(kept.get("spent", 0.0)))
        self.plan = as_type(kept["plan"], TrainingPlan, "the plan in state/budget.json") if kept.get("plan") else None
        self.note = str(kept.get("note", ""))
        # A command has been imported by now: how much longer than its CPU time that took says how busy the machine is.
        busy = (time.monotonic() - started) / time.process_time() if time.monotonic() - started > 1 else 1.0
        self.reserve = max(_LEAST_AFTER * min(10.0, max(1.0, busy)), _AFTER * self.limit.seconds)
        self.found, self._report_measured = 0, False
        self.expected = self.limit.seconds

    def record(self) -> None:
        """Keep the plan and the time that was used so far."""
        if self._run is not None:
            plan = None if self.plan is None else asdict(self.plan)
            self._run.keep_budget({"spent": self.limit.used, "plan": plan, "note": self.note})

    def metrics(self, read: int, epochs: int) -> BudgetMetrics:
        """For metrics.json. read: number of pictures. epochs: of the plan at the end of the training."""
        more = [self.note, "" if self.plan is None else self.plan.reason]
        return BudgetMetrics(
            minutes=self.minutes,
            planned_seconds=round(self.expected if self.plan is None else self.plan.seconds, 2),
            used_seconds=round(self.limit.used, 2),
            epochs_planned=0 if self.plan is None else self.plan.epochs,
            epochs_at_end=epochs,
            views=self.plan.views if self.plan is not None and self.plan.frozen else None,
            pictures_found=max(self.found, read),
            pictures_read=read,
            more_time=" ".join(line for line in more if line) or None,
        )

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, fabric: Fabric, stages: PooledStages, listing: Listing, config: Config, display: Display) -> Outputs:
        """Pooled activations of all pictures, or of as many as fit, the same share of every class.

        Raises:
            InputError: If the budget is too short for a few pictures of every class.
        """

        def limit(sample: Outputs, seconds: float) -> ReadingLimit:
            return self._reading_limit(sample, seconds, listing, stages, config)

        now, left = time.monotonic(), self.limit.left
        first = ReadingLimit(now + _FIRST * left, now + _READING * left, len(listing.samples))
        found = read_within(fabric, stages, listing, config, display, first=first, limit=limit)
        read, every = len(found.outputs.contents), len(listing.samples)
        if not found.enough:
            raise InputError(self._too_short(found, listing))
        if read < every:
            needed = self.limit.used + found.seconds * (every - read) + self.reserve
            self.note = (
                f"{read:,} of {every:,} pictures are read, about the same share of every class, because of --minutes "
                f"{self.minutes:g}. All of them need {in_words(needed / _READING)}: {_minutes(needed / _READING)} "
                "reads them."
            )
        return found.outputs

    def _too_short(self, found: PartlyRead, listing: Listing) -> str:
        read, classes = len(found.outputs.contents), len(listing.classes)
        missing = (found.fewest - read) * (found.seconds or 1.0)
        return (
            f"--minutes {self.minutes:g} is too short for {listing.name}: there is time to read {read:,} pictures, and "
            f"{classes:,} classes need {found.fewest:,}; give {_minutes((self.limit.used + missing) / _FIRST)}"
        )

    def _reading_limit(
        self, sample: Outputs, seconds: float, listing: Listing, stages: PooledStages, config: Config
    ) -> ReadingLimit:
        """As many pictures as can be read, and their heads solved, in a share of the time that is left."""
        every, read = len(listing.samples), len(sample.contents)
        available = _READING * (self.limit.left - self.reserve)
        head, probe = _solving_seconds(sample, listing, stages, config)

        def needed(pictures: int) -> float:
            solving = head * _growth(read, pictures) + probe * _growth(read, min(pictures, MOST))
            return (pictures - read) * seconds + solving

        most = every
        while most > read and needed(most) > available:
            most = max(read, int(0.95 * most))
        # The head's time must be left when reading is slower than it was.
        solving = needed(most) - (most - read) * seconds
        self.expected = self.limit.used + needed(most) + self.reserve
        ends = time.monotonic() + max(0.0, available - solving)
        return ReadingLimit(ends, max(ends, time.monotonic() + available), most)

    @contextmanager
    def measured_reserve(self) -> Iterator[None]:
        """Take the time of the block, which writes a report, for what follows training."""
        started = time.monotonic()
        yield
        self.reserve, self._report_measured = max(_LEAST_AFTER, time.monotonic() - started), True

    # --- training -----------------------------------------------------------------------------------------------------

    def plan_training(self, prepared: Prepared, config: Config) -> TrainingPlan:
        """The plan of a run that continues, or else the best training that fits in the time that is left."""
        if self.plan is None:
            self.plan = self._planned(prepared, config)
            self.record()
        return self.plan

    def _planned(self, prepared: Prepared, config: Config) -> TrainingPlan:
        wanted, asked = prepared.choice.strategy, config.strategy != "auto"
        candidates = [wanted]
        if not asked and wanted.trains == "all":
            smaller = choose("auto", FEW, prepared.choice.curve).strategy
            candidates += [prepared.within(smaller)] if smaller.trains == "top" else []
        needs = ""
        for strategy in candidates:
            task, _ = prepared.task(config, strategy)
            costs, epochs = training_costs(task), task.plan.epochs
            after = self.after_training(costs, prepared)
            if strategy is wanted:
                whole = self.limit.used + costs.seconds(epochs, config.views) / _PLANNED + after
                needs = f"{strategy.name} with {_epochs(epochs)} needs {in_words(whole)}: {_minutes(whole)} allows it"
                needs += "" if asked else _gain(prepared)
            left = self.limit.left - after
            fits = costs.fitted(epochs, config.views, _PLANNED * left)
            if fits is None and asked:
                fits = costs.fitted(1, 1, left)
            if fits is None or fits[0] < (1 if asked else min(FEWEST_EPOCHS, epochs)):
                continue
            complete = strategy is wanted and fits[0] == epochs
            return TrainingPlan(
                strategy=strategy.name,
                lowest=strategy.lowest,
                epochs=fits[0],
                most_epochs=epochs,
                views=fits[1],
                frozen=costs.view > 0,
                epoch=costs.epoch + costs.validation,
                after=after,
                seconds=self.limit.used + costs.seconds(*fits) + after,
                reason="" if complete else f"{strategy.name} with {_epochs(fits[0])} fits in {self._told}; {needs}.",
            )
        if wanted.start == "random":
            return self._one_epoch(task, after, needs)
        what = f"{wanted.name} does not fit in {self._told}" if asked else f"no training fits in {self._told}"
        return TrainingPlan(
            strategy=wanted.name if asked else HEAD.name,
            lowest=wanted.lowest if asked else None,
            seconds=self.limit.used + self.reserve,
            reason=f"{what}, so the linear head is kept; {needs}.",
        )

    @property
    def _told(self) -> str:
        return f"--minutes {self.minutes:g}"

    def _one_epoch(self, task: TrainingTask, after: float, needs: str) -> TrainingPlan:
        """From random weights there is no head to keep: an epoch is trained, and cut short where it must."""
        return TrainingPlan(
            strategy=SCRATCH.name,
            epochs=1,
            most_epochs=task.plan.epochs,
            after=after,
            seconds=self.limit.seconds,
            reason=f"not one epoch of {SCRATCH.name} fits in {self._told}; {needs}.",
        )

    def after_training(self, costs: TrainingCosts, prepared: Prepared) -> float:
        """Seconds from the end of the training to the written report."""
        shown = 0 if self._report_measured else _SHOWN
        return _CAUTION * (self.reserve + costs.picture * (prepared.rows.to_measure + shown))

    def deadline(self) -> Deadline:
        """When the training of the plan must end."""
        assert self.plan is not None
        ends = time.monotonic() + self.limit.left - self.plan.after
        return Deadline(ends, self.plan.most_epochs, self.plan.epoch)

    def fewer_views(self, share: float) -> bool:
        """Reduce the views of the plan to a share, because frozen stages are slower than planned; False where not one
        fits."""
        assert self.plan is not None
        views = int(_PLANNED * share * self.plan.views)
        if views < 1:
            return False
        self.plan = replace(self.plan, views=views)
        self.record()
        return True


def _solving_seconds(sample: Outputs, listing: Listing, stages: PooledStages, config: Config) -> tuple[float, float]:
    """Seconds that the heads and the probe curve of the sample take."""
    rows, labels, held_out = _labelled(sample, listing)
    with one_thread():
        started = time.monotonic()
        solve_heads((rows[~held_out], labels[~held_out]), (rows[held_out], labels[held_out]), stages.widths)
        solved = time.monotonic()
        if config.strategy == "auto" or config.drop_above == BEST:
            probe_curve(stages.split(rows), stages.depths, labels)
        return solved - started, time.monotonic() - solved


def _labelled(sample: Outputs, listing: Listing) -> tuple[Tensor, Tensor, Tensor]:
    """Activations (n, sum of widths), labels (n,) of the classes with two pictures or more, and every fifth picture of
    a class, and at least one, as held out."""
    names = [listing.samples[position].label for position in sample.index.tolist()]
    counts = Counter(names)
    used = sorted(name for name, count in counts.items() if count > 1)
    chosen = [row for row, name in enumerate(names) if counts[name] > 1]
    labels = torch.tensor([used.index(names[row]) for row in chosen])
    ranks: Counter[str] = Counter()
    held_out = []
    for row in chosen:
        held_out.append(ranks[names[row]] % 5 == 1)
        ranks[names[row]] += 1
    return sample.values[chosen, 0], labels, torch.tensor(held_out)


def _gain(prepared: Prepared) -> str:
    """The expected gain of the strategy over the head, in words; empty where it is none."""
    folder, curve = prepared.rows.folder, prepared.choice.curve
    per_class = len(folder.train) / len(folder.classes)
    gain = expected_gain(prepared.heads.error, per_class, different=curve is not None and curve.different)
    return f" (expected gain over the linear head: {100 * gain:.1f} points)" if gain >= 0.0005 else ""


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


def _minutes(seconds: float) -> str:
    """The option that allows a run of so many seconds, with a little room."""
    minutes = 1.1 * seconds / 60
    return f"--minutes {math.ceil(2 * minutes) / 2 if minutes < 5 else math.ceil(minutes):g}"
