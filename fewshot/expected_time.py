"""How long a measurement will take, estimated before it begins from a short timed sample and the amount of work."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewshot.embedded import ALL_TURNS, Embed, Embedded
from fewshot.measuring import NEEDED, TURNED
from fewshot.models import Model
from fewshot.omniglot.dataset import DRAWERS, Character, Omniglot, Run
from fewshot.omniglot.splits import SPLITS
from fewshot.protocols import vinyals

# Arithmetic of each protocol on vectors that are there, and of the report's further figures, in runs of the sample
# `unit_seconds`. Processor time on random vectors of 256 numbers, divided by that of the sample in the same process.
WORK: dict[str, float] = {
    "within": 16, "koch": 6, "vinyals": 34, "vinyals-upright": 34,
    "all-way-423": 10, "all-way-659": 46, "all-way-1692": 86,
}  # fmt: skip
FURTHER = 120
# The sample: episodes of 20-way 5-shot; drawings that are embedded, and before them some that set things up.
EPISODES, DRAWINGS, FIRST = 150, 256, 32
# Drawings of a run on each side that slow comparisons are timed on, and pairs of drawings compared again.
SIDE, PAIRS = 4, 16
# A run of this many seconds, by the estimate from a part of it, is not timed whole.
LONG = 20.0
# Pairs that affine alignment compares again: five for each question of Lake's runs; the pairs of koch.
COMPARED_AGAIN = {"lake": 2_000, "lake-minimal": 2_000, "koch": 20_000}


def seconds_to_measure(
    models: Sequence[Model],
    names: Sequence[str],
    omniglot: Omniglot | None,
    runs: Sequence[Run],
    *,
    explored: str | None = None,
) -> float:
    """Estimated duration of measuring `models` by the protocols `names`. The estimate itself takes seconds.

    explored: split of which the report draws its curves, hardest classes and nearest neighbours; None for none.
    """
    return sum(_of_model(model, names, omniglot, runs, explored) for model in models)


def drawings_to_embed(names: Sequence[str], explored: str | None = None) -> int:
    """How many drawings, turned ones included, the protocols `names` and the split `explored` embed."""
    splits = {split for name in names for split in NEEDED[name]} | ({explored} if explored else set())
    needed = frozenset[Character]().union(*(SPLITS[split].characters for split in splits))
    turned = any(name in TURNED for name in names)
    turns = len(ALL_TURNS) - 1
    return DRAWERS * (len(needed) + (turns * len(SPLITS["vinyals-test"].characters) if turned else 0))


def seconds_per_drawing(embed: Embed, drawings: Tensor) -> float:
    """Of embedding many drawings (n, 105, 105), timed on some of them."""
    embed(drawings[:FIRST])
    some = drawings[:DRAWINGS]
    return _seconds(lambda: embed(some)) / len(some)


def unit_seconds(device: torch.device) -> float:
    """Of the sample of arithmetic: EPISODES episodes of 20-way 5-shot on random vectors."""
    characters = tuple(Character("", number) for number in range(423))
    character = torch.arange(len(characters)).repeat_interleave(DRAWERS)
    vectors = torch.randn(len(character), 256, generator=torch.Generator().manual_seed(0)).to(device)
    drawer = torch.arange(DRAWERS).repeat(len(characters))
    random = Embedded(vectors, character, drawer, torch.zeros_like(character), characters)
    return _seconds(lambda: vinyals(random, way=20, shot=5, episodes=EPISODES))


def _of_model(
    model: Model, names: Sequence[str], omniglot: Omniglot | None, runs: Sequence[Run], explored: str | None
) -> float:
    seconds, embed = 0.0, model.embed
    if embed is not None and omniglot is not None:
        device = embed(omniglot.pictures[:1]).device
        seconds += drawings_to_embed(names, explored) * seconds_per_drawing(embed, omniglot.pictures)
        seconds += (sum(WORK.get(name, 0) for name in names) + FURTHER * (explored is not None)) * unit_seconds(device)
    if model.again is not None:
        again, drawings = model.again, _drawings(omniglot, runs)[:PAIRS]
        again(drawings[:1], drawings[:1])
        pairs = sum(COMPARED_AGAIN.get(name, 0) for name in names)
        seconds += pairs * _seconds(lambda: again(drawings, drawings.flip(0))) / len(drawings)
    elif runs:
        times = sum(not NEEDED[name] for name in names)
        seconds += times * len(runs) * _seconds_of_run(model, runs[0])
    return seconds


def _seconds_of_run(model: Model, run: Run) -> float:
    """Of one of Lake's runs: timed whole, or where that would take long, on a part of its pairs."""
    test, train = run.test[:SIDE], run.train[:SIDE]
    model.distance(test, train)  # sets things up
    part = len(test) * len(train) / (len(run.test) * len(run.train))
    seconds = _seconds(lambda: model.distance(test, train)) / part
    return seconds if seconds > LONG else _seconds(lambda: model.distance(run.test, run.train))


def _drawings(omniglot: Omniglot | None, runs: Sequence[Run]) -> Tensor:
    return runs[0].test if omniglot is None else omniglot.pictures


def _seconds(once: Callable[[], object]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        once()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started
