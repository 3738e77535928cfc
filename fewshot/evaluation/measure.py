"""A model measured by the published protocols on their published splits, every drawing embedded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

from fewshot.evaluation.embedded import ALL_TURNS, UPRIGHT, Embed, EmbeddedDrawings, embed_once, joined
from fewshot.evaluation.models import WEIGHT, Model, PairDistance
from fewshot.evaluation.protocols import (
    PairScore,
    ProtocolResult,
    VerificationResult,
    all_way,
    guard,
    koch,
    lake,
    vinyals,
    within,
)
from fewshot.evaluation.verification import similarity
from fewshot.omniglot.dataset import DRAWERS, Character, Omniglot, OneShotRun
from fewshot.omniglot.splits import LAKE, MINIMAL_1, SPLITS, Split, characters_of, select
from finetune.errors import InputError

# Protocol -> the splits that it needs; the last is the one tested on. `vinyals` and `all-way-1692` are with the four
# turns of every character, the others upright. `lake-minimal` is `lake` after training on one of the minimal sets.
NEEDED: dict[str, tuple[str, ...]] = {
    "lake": (),
    "lake-minimal": (),
    "within": ("evaluation",),
    "koch": ("koch-like-val", "koch-like-test"),
    "vinyals": ("vinyals-test",),
    "vinyals-upright": ("vinyals-test",),
    "all-way-423": ("vinyals-test",),
    "all-way-659": ("evaluation",),
    "all-way-1692": ("vinyals-test",),
}
TURNED = ("vinyals", "all-way-1692")
# Those that a slow comparison of pictures can be part of.
OF_FEW_COMPARISONS = ("lake", "lake-minimal", "koch")
GRID = ((5, 1), (5, 5), (20, 1), (20, 5))  # way and shot, as in most papers' tables

Result = ProtocolResult | VerificationResult


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


class _Options(TypedDict):
    seed: int
    trained_on: Collection[Character] | None
    allow_leaks: bool


def measure(
    model: Model,
    omniglot: Omniglot | None,
    runs: Sequence[OneShotRun] = (),
    *,
    protocols: Sequence[str],
    seed: int = 0,
    allow_leaks: bool = False,
) -> list[Result]:
    """The results of `protocols`, names in NEEDED, in their order; `within` and `vinyals` give one for each of GRID.

    omniglot: both sets, for all protocols but `lake` and `lake-minimal`, which need Lake's `runs`. Where a character to
    be tested on was trained on it is an InputError, before anything is embedded, unless `allow_leaks`; so it is where
    the model is none that the protocol is for.
    """
    for name in protocols:
        reason = refused(model, name, allow_leaks)
        if reason:
            raise InputError(reason)
    options: _Options = {"seed": seed, "trained_on": model.trained_on, "allow_leaks": allow_leaks}
    have = _embedded(model, omniglot, [name for name in protocols if NEEDED[name]])
    results: list[Result] = []
    for name in protocols:
        if not NEEDED[name]:
            results.append(replace(lake(model.distance, runs, **options), protocol=name))
            continue
        parts = [have.only(SPLITS[split], ALL_TURNS if name in TURNED else UPRIGHT) for split in NEEDED[name]]
        if name == "koch":
            score = _compared_again(model.again, omniglot) if model.again is not None and omniglot is not None else None
            results.append(koch(parts[0], parts[1], score=score, **options))
        elif name.startswith("all-way"):
            results.append(replace(all_way(parts[0], **options), protocol=name))
        else:
            protocol = within if name == "within" else vinyals
            results += [replace(protocol(parts[0], way=way, shot=shot, **options), protocol=name) for way, shot in GRID]
    return results


def refused(model: Model, protocol: str, allow_leaks: bool = False) -> str | None:
    """Why `model` cannot be measured by `protocol`, in one line; None where it can."""
    if protocol not in NEEDED:
        return f"no protocol {protocol!r}; there are {', '.join(NEEDED)}"
    if NEEDED[protocol] and model.embed is None:
        return f"{model.name} is a distance between pictures, no embedding; it can be measured by lake alone"
    if model.again is not None and protocol not in OF_FEW_COMPARISONS:
        return (
            f"{model.name}: {protocol} asks for too many comparisons; {', '.join(OF_FEW_COMPARISONS)} can be measured"
        )
    tested = SPLITS[NEEDED[protocol][-1]].characters if NEEDED[protocol] else characters_of(LAKE)
    try:
        guard(model.trained_on, tested, allow_leaks)
    except InputError as error:
        return f"{protocol}: {error}"
    if protocol == "lake-minimal" and not (model.trained_on and model.trained_on <= SPLITS["minimal-1"].characters):
        return f"lake-minimal is for what was trained on {', '.join(MINIMAL_1)} alone, which {model.name} was not"
    return None


def _compared_again(again: PairDistance, omniglot: Omniglot) -> PairScore:
    """The cosine of the vectors, less what a comparison of the pictures says, as much as it counts when re-ranking."""
    shown = zip(omniglot.character.tolist(), omniglot.drawer.tolist(), strict=True)
    row_of = {(omniglot.characters[character], drawer): row for row, (character, drawer) in enumerate(shown)}

    def score(embedded: EmbeddedDrawings, rows: Tensor) -> Tensor:
        shown = zip(embedded.character.tolist(), embedded.drawer.tolist(), strict=True)
        picture = torch.tensor([row_of[embedded.characters[character], drawer] for character, drawer in shown])
        one, other = (omniglot.pictures[picture[rows[:, side]]] for side in (0, 1))
        return similarity(embedded.vectors, rows) - WEIGHT * again(one, other)

    return score


def _embedded(model: Model, omniglot: Omniglot | None, protocols: Sequence[str]) -> EmbeddedDrawings:
    """What `protocols` need, upright, and what they need turned."""
    if not protocols:
        return joined([])
    if omniglot is None or model.embed is None:
        raise InputError(f"{protocols[0]} needs Omniglot's drawings and an embedding of them")
    upright = [name for name in protocols if name not in TURNED]
    needed = frozenset[Character]().union(*(SPLITS[split].characters for name in protocols for split in NEEDED[name]))
    parts = [embed_once(select(omniglot, Split(needed)), model.embed)]
    if len(upright) < len(protocols):
        parts.append(embed_once(select(omniglot, SPLITS["vinyals-test"]), model.embed, turns=ALL_TURNS[1:]))
    return joined(parts)


def seconds_to_measure(
    models: Sequence[Model],
    names: Sequence[str],
    omniglot: Omniglot | None,
    runs: Sequence[OneShotRun],
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
    random = EmbeddedDrawings(vectors, character, drawer, torch.zeros_like(character), characters)
    return _seconds(lambda: vinyals(random, way=20, shot=5, episodes=EPISODES))


def _of_model(
    model: Model, names: Sequence[str], omniglot: Omniglot | None, runs: Sequence[OneShotRun], explored: str | None
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


def _seconds_of_run(model: Model, run: OneShotRun) -> float:
    """Of one of Lake's runs: timed whole, or where that would take long, on a part of its pairs."""
    test, train = run.test[:SIDE], run.train[:SIDE]
    model.distance(test, train)  # sets things up
    part = len(test) * len(train) / (len(run.test) * len(run.train))
    seconds = _seconds(lambda: model.distance(test, train)) / part
    return seconds if seconds > LONG else _seconds(lambda: model.distance(run.test, run.train))


def _drawings(omniglot: Omniglot | None, runs: Sequence[OneShotRun]) -> Tensor:
    return runs[0].test if omniglot is None else omniglot.pictures


def _seconds(once: Callable[[], object]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        once()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - started
