"""The benchmark: a model measured by several protocols, and optionally compared with a second model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewshot.evaluation.intervals import RESAMPLINGS
from fewshot.evaluation.measure import NEEDED, Result, measure, refusal, seconds_to_measure
from fewshot.evaluation.models import Model, open_model
from fewshot.evaluation.protocols import ProtocolResult
from fewshot.evaluation.published import PUBLISHED, Published
from fewshot.omniglot.dataset import lake_runs, read_omniglot
from finetune.errors import InputError
from finetune.progress import Display, in_words

# Names that stand for several protocols -> how the names of these begin.
SEVERAL = {"all": "", "all-way": "all-way-"}


@dataclass(frozen=True)
class Difference:
    """A paired comparison of two models by one protocol.

    Attributes:
        protocol: Its name.
        difference: Accuracy of the first model less that of the second.
        interval: 95 % interval of the difference.
        p: Probability of a difference at least as large, in either direction, if the two are equally good.
    """

    protocol: str
    difference: float
    interval: tuple[float, float]
    p: float


@dataclass(frozen=True)
class BenchmarkReport:
    """Results of a benchmark.

    Attributes:
        model, fingerprint, results: The model and its results.
        skipped: Protocol -> why the model was not measured by it.
        against, against_fingerprint, against_results: The second model and its results, by the same protocols.
        differences: Paired comparisons of the two, in the order of the results.
    """

    model: str
    fingerprint: str | None
    results: tuple[Result, ...]
    skipped: dict[str, str]
    against: str | None = None
    against_fingerprint: str | None = None
    against_results: tuple[Result, ...] = ()
    differences: tuple[Difference, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
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
    """Measure a model by published protocols.

    Args:
        source: A model, as `open_model` takes it.
        protocols: Names in NEEDED, or "all" or "all-way". These two leave out protocols that do not suit the model or
            test on characters that it was trained on.
        against: A second model for a paired comparison, as `open_model` takes it.
        views, rerank: As for `open_model`, for `source` alone.
        allow_leaks: Also test on characters that the model was trained on.
        seed: Of all random numbers.
        data: Folder of Omniglot, as `read_omniglot` takes it.
        device: "auto", "cpu" or "cuda".
        display: Shows the expected time and what is left out.

    Raises:
        InputError: For a protocol that is named and cannot be used, and as `read_omniglot` and `open_model` raise it.

    Returns:
        Accuracy with a 95 % interval for each protocol, and the reasons for protocols that were left out.

    Example:
        >>> from fewshot import benchmark
        >>> report = benchmark("pixels", ["lake"], data=Path("omniglot"))
        >>> result = report.results[0]
        >>> result.way, result.shot, result.trials
        (20, 1, 400)
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
        display.say(f"measuring by {', '.join(names)}; expected time: {in_words(seconds)}")
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
    """The protocols to use, and the unsuitable ones of "all" and "all-way" with the reason."""
    names: list[str] = []
    skipped: dict[str, str] = {}
    for asked in protocols:
        several = [name for name in NEEDED if asked in SEVERAL and name.startswith(SEVERAL[asked])]
        for name in several or [asked]:
            reasons = [reason for model in models if (reason := refusal(model, name, allow_leaks))]
            if not reasons:
                names.append(name)
            elif several:
                skipped[name] = reasons[0]
            else:
                raise InputError(reasons[0])
    if not names:
        raise InputError(f"no protocol suits this model: {next(iter(skipped.values()))}")
    return list(dict.fromkeys(names)), skipped


def compare(one: Result, other: Result, seed: int = 0) -> Difference:
    """Compare two models by the same protocol, seed and questions.

    The pairs are runs, characters or alphabets rather than questions, since the questions of one share pictures. The
    interval resamples them; p is that of Fisher's randomisation test, which flips the signs of their differences.

    Raises:
        InputError: If the questions differ.
    """
    if _questions(one) != _questions(other):
        raise InputError(f"{one.protocol} and {other.protocol} asked different questions, so they cannot be compared")
    differences = np.array(one.parts) - np.array(other.parts)
    random = np.random.default_rng(seed)
    drawn = differences[random.integers(len(differences), size=(RESAMPLINGS, len(differences)))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    flipped = (random.integers(2, size=(RESAMPLINGS, len(differences))) * 2 - 1) @ differences / len(differences)
    observed = float(differences.mean())
    # Sums in a different order differ in the last bits.
    as_large = np.count_nonzero(np.abs(flipped) >= abs(observed) - 1e-12)
    return Difference(one.protocol, observed, (float(low), float(high)), (as_large + 1) / (RESAMPLINGS + 1))


def _questions(result: Result) -> tuple[object, ...]:
    shape = (result.way, result.shot) if isinstance(result, ProtocolResult) else ()
    return result.protocol, result.tested, result.trials, result.seed, len(result.parts), *shape


def published_for(result: Result) -> tuple[Published, ...]:
    """Published accuracies for the same protocol, way and shot; none for a result with leaking characters."""
    way, shot = (result.way, result.shot) if isinstance(result, ProtocolResult) else (2, 1)
    return () if result.leaking else PUBLISHED.get((result.protocol, way, shot), ())


def task_name(result: Result) -> str:
    """The task of a result, such as "vinyals 20-way 1-shot"."""
    if isinstance(result, ProtocolResult):
        return f"{result.protocol} {result.way}-way {result.shot}-shot"
    return f"{result.protocol} verification"
