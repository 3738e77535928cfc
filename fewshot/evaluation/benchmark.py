"""A model measured by several protocols in one go, beside what was published; another one beside it where asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.evaluation.intervals import RESAMPLINGS
from fewshot.evaluation.measure import NEEDED, Result, measure, refused, seconds_to_measure
from fewshot.evaluation.models import Model, open_model
from fewshot.evaluation.protocols import ProtocolResult
from fewshot.omniglot.dataset import lake_runs, read_omniglot
from finetune.errors import InputError
from finetune.progress import Display
from finetune.training.expected_time import in_words

# What stands for several protocols, and how their names begin.
SEVERAL = {"all": "", "all-way": "all-way-"}


@dataclass(frozen=True)
class BenchmarkReport:
    """What `model` came to. skipped: protocol -> why it was not measured by it. differences: to `against`, in order."""

    model: str
    fingerprint: str | None
    results: tuple[Result, ...]
    skipped: dict[str, str]
    against: str | None = None
    against_fingerprint: str | None = None
    against_results: tuple[Result, ...] = ()
    differences: tuple[Difference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def benchmark(
    source: str,
    protocols: Sequence[str] = ("all",),
    *,
    against: str | None = None,
    views: int = 1,
    rerank: bool = False,
    allow_leaks: bool = False,
    seed: int = 0,
    data: Path | None = None,
    device: str = "auto",
    display: Display | None = None,
) -> BenchmarkReport:
    """Measure the model `source` (as open_model takes it) by `protocols`: names in NEEDED, or "all" or "all-way", which
    leave out those that it was trained on characters of, or is not made for. views and rerank are of `source`, as in
    open_model; `against` is measured plain.

    InputError for a protocol that is asked for by name and refused, and as read_omniglot and open_model raise it.
    """
    display = display or Display()
    model = open_model(source, views=views, rerank=rerank, device=device)
    other = None if against is None else open_model(against, device=device)
    models = [model] if other is None else [model, other]
    names, skipped = _chosen(models, protocols, allow_leaks)
    for line in skipped.values():
        display.say(f"left out: {line}")
    runs = lake_runs(data) if any(not NEEDED[name] for name in names) else []
    omniglot = read_omniglot(data) if any(NEEDED[name] for name in names) else None
    if display.console is not None:
        seconds = seconds_to_measure(models, names, omniglot, runs)
        display.say(f"measuring by {', '.join(names)}: {in_words(seconds)} from now on")
    results = [measure(each, omniglot, runs, protocols=names, seed=seed, allow_leaks=allow_leaks) for each in models]
    return BenchmarkReport(
        model=model.name,
        fingerprint=model.fingerprint,
        results=tuple(results[0]),
        skipped=skipped,
        against=other.name if other else None,
        against_fingerprint=other.fingerprint if other else None,
        against_results=tuple(results[-1]) if other else (),
        differences=tuple(compare(a, b, seed) for a, b in zip(results[0], results[1], strict=True)) if other else (),
    )


def _chosen(models: Sequence[Model], protocols: Sequence[str], allow_leaks: bool) -> tuple[list[str], dict[str, str]]:
    """The protocols to measure by; and of those that "all" or "all-way" stand for, the refused, with the reason."""
    names: list[str] = []
    skipped: dict[str, str] = {}
    for asked in protocols:
        several = [name for name in NEEDED if asked in SEVERAL and name.startswith(SEVERAL[asked])]
        for name in several or [asked]:
            reasons = [reason for model in models if (reason := refused(model, name, allow_leaks))]
            if not reasons:
                names.append(name)
            elif several:
                skipped[name] = reasons[0]
            else:
                raise InputError(reasons[0])
    if not names:
        raise InputError(f"no protocol may measure this model: {next(iter(skipped.values()))}")
    return list(dict.fromkeys(names)), skipped


def published_for(result: Result) -> tuple[Published, ...]:
    """What was published by the same protocol, way and shot; a figure of leaking characters is compared with none."""
    way, shot = (result.way, result.shot) if isinstance(result, ProtocolResult) else (2, 1)
    return () if result.leaking else PUBLISHED.get((result.protocol, way, shot), ())


def shape_of(result: Result) -> str:
    """Like `vinyals 20-way 1-shot`."""
    if isinstance(result, ProtocolResult):
        return f"{result.protocol} {result.way}-way {result.shot}-shot"
    return f"{result.protocol} verification"


@dataclass(frozen=True)
class Published:
    """accuracy: a fraction. source: where it stands. note: what one must know to compare."""

    name: str
    accuracy: float
    source: str
    note: str = ""


# Protocol, way and shot -> rows, best first. Koch's table 2 is the one that lectures show.
PUBLISHED: Mapping[tuple[str, int, int], tuple[Published, ...]] = {
    ("lake", 20, 1): (
        Published("ConvARC", 0.985, "Shyam et al. 2017", "compares pairs in the context of all supports; no embedding"),
        Published("Bayesian program learning", 0.967, "Lake et al. 2015", "learns from strokes"),
        Published("humans", 0.955, "Lake et al. 2015"),
        Published("hierarchical Bayesian program learning", 0.952, "Koch et al. 2015, table 2", "learns from strokes"),
        Published("convolutional Siamese network", 0.920, "Koch et al. 2015, table 2", "trained on 40 alphabets"),
        Published("affine model", 0.818, "Koch et al. 2015, table 2"),
        Published("hierarchical deep", 0.652, "Koch et al. 2015, table 2"),
        Published("deep Boltzmann machine", 0.620, "Koch et al. 2015, table 2"),
        Published("modified Hausdorff", 0.612, "Lake et al. 2015", "the official demo: 38.8 % error"),
        Published("Siamese network, fully connected", 0.583, "Koch et al. 2015, table 2"),
        Published("simple strokes", 0.352, "Koch et al. 2015, table 2"),
        Published("nearest neighbour in pixels", 0.217, "Koch et al. 2015, table 2"),
    ),
    ("lake-minimal", 20, 1): (
        Published("Bayesian program learning", 0.957, "Lake et al. 2015", "first minimal set; learns from strokes"),
        Published("deep convolutional network", 0.777, "Lake et al. 2015", "the better of the two minimal sets"),
    ),
    ("vinyals", 5, 1): (
        Published("Meta-Curvature MC2+", 0.9997, "Park & Oliva 2019"),
        Published("prototypical networks", 0.988, "Snell et al. 2017"),
        Published("matching networks", 0.981, "Vinyals et al. 2016"),
    ),
    ("vinyals", 5, 5): (
        Published("Meta-Curvature MC2+", 0.9989, "Park & Oliva 2019"),
        Published("prototypical networks", 0.997, "Snell et al. 2017"),
        Published("matching networks", 0.989, "Vinyals et al. 2016"),
    ),
    ("vinyals", 20, 1): (
        Published("Meta-Curvature MC2+", 0.9912, "Park & Oliva 2019"),
        Published("prototypical networks", 0.960, "Snell et al. 2017"),
        Published("matching networks", 0.938, "Vinyals et al. 2016"),
    ),
    ("vinyals", 20, 5): (
        Published("Meta-Curvature MC2+", 0.9965, "Park & Oliva 2019"),
        Published("prototypical networks", 0.989, "Snell et al. 2017"),
        Published("matching networks", 0.985, "Vinyals et al. 2016"),
    ),
    ("all-way-423", 423, 1): (Published("adaptive posterior learning", 0.735, "Ramalho & Garnelo 2019"),),
    ("koch", 2, 1): (
        Published(
            "convolutional Siamese network",
            0.9342,
            "Koch et al. 2015, table 1",
            "whether its threshold was chosen on validation pairs is not said",
        ),
    ),
}

# Learned without labels, by 20-way 1-shot of `vinyals` (as quoted by the papers that compare with them).
WITHOUT_LABELS: tuple[Published, ...] = (
    Published("Meta-GMVAE", 0.8221, "Lee et al. 2021"),
    Published("UMTRA", 0.7425, "Khodadadeh et al. 2019"),
    Published("ProtoTransfer", 0.7227, "Medina et al. 2020"),
    Published("AAL", 0.6879, "Antoniou & Storkey 2019"),
)


@dataclass(frozen=True)
class Difference:
    """difference: of the accuracies, the first less the second. interval: 95 %. p: how often a difference as large, in
    either direction, comes about where the two are as good as each other."""

    protocol: str
    difference: float
    interval: tuple[float, float]
    p: float


def compare(one: Result, other: Result, seed: int = 0) -> Difference:
    """Both by the same protocol, seed and questions.

    What is paired are the runs, characters or alphabets, not the questions: those of one share pictures. The interval
    resamples them; p flips the sign of each one's difference at random (Fisher's randomisation test, two-sided).
    InputError for results of different questions.
    """
    if _questions(one) != _questions(other):
        raise InputError(f"{one.protocol} and {other.protocol} asked different questions; they cannot be compared")
    differences = np.array(one.parts) - np.array(other.parts)
    random = np.random.default_rng(seed)
    drawn = differences[random.integers(len(differences), size=(RESAMPLINGS, len(differences)))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    flipped = (random.integers(2, size=(RESAMPLINGS, len(differences))) * 2 - 1) @ differences / len(differences)
    observed = float(differences.mean())
    # Sums in another order differ in the last bits.
    as_large = np.count_nonzero(np.abs(flipped) >= abs(observed) - 1e-12)
    return Difference(one.protocol, observed, (float(low), float(high)), (as_large + 1) / (RESAMPLINGS + 1))


def _questions(result: Result) -> tuple[object, ...]:
    shape = (result.way, result.shot) if isinstance(result, ProtocolResult) else ()
    return result.protocol, result.tested, result.trials, result.seed, len(result.parts), *shape
