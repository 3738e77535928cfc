"""Measures a model by the published protocols on their splits, and estimates how long that takes."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

from fewshot.evaluation.embedded import ALL_TURNS, UPRIGHT, Embed, EmbeddedDrawings, embed_once, joined
from fewshot.evaluation.models import WEIGHT, Model
from fewshot.evaluation.protocols import (
    PairDistance,
    PairSimilarity,
    ProtocolResult,
    VerificationResult,
    all_way,
    check_leaks,
    koch,
    lake,
    vinyals,
    within,
)
from fewshot.evaluation.verification import similarity
from fewshot.omniglot.dataset import DRAWERS, Character, Omniglot, OneShotRun
from fewshot.omniglot.splits import LAKE, MINIMAL_1, SPLITS, Split, characters_of, select
from finetune.errors import InputError

# Protocol -> the splits that it needs; the last is tested on. `lake` and `lake-minimal` need Lake's runs instead;
# `lake-minimal` is for models trained on a minimal set.
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
# Protocols with the four turns of every character.
TURNED = ("vinyals", "all-way-1692")
# Protocols that compare few enough pairs for reranking.
OF_FEW_COMPARISONS = ("lake", "lake-minimal", "koch")
GRID = ((5, 1), (5, 5), (20, 1), (20, 5))  # way and shot, as in the tables of most papers

# Expected time of the arithmetic of each protocol and of the report's other figures, in units of `unit_seconds`.
# Measured as processor time on random vectors of width 256, relative to the unit in the same process.
WORK: dict[str, float] = {
    "within": 16, "koch": 6, "vinyals": 34, "vinyals-upright": 34,
    "all-way-423": 10, "all-way-659": 46, "all-way-1692": 86,
}  # fmt: skip
FURTHER = 120
# The unit of time: episodes of 20-way 5-shot. Drawings embedded for timing, and before that for warming up.
EPISODES, DRAWINGS, FIRST = 150, 256, 32
# Drawings on each side for timing a slow distance, and pairs for timing a reranker.
SIDE, PAIRS = 4, 16
# A run that is expected to take longer, in seconds, is not timed as a whole.
LONG = 20.0
# Pairs that reranking compares: five for each question of Lake's runs; the pairs of koch.
RERANKED = {"lake": 2_000, "lake-minimal": 2_000, "koch": 20_000}

Result = ProtocolResult | VerificationResult


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
    """Measure a model by protocols.

    Args:
        model: The model.
        omniglot: Both sets of Omniglot; not needed for `lake` and `lake-minimal`.
        runs: Lake's runs; needed for `lake` and `lake-minimal` alone.
        protocols: Names in NEEDED.
        seed: Of all random numbers.
        allow_leaks: Also test on characters that the model was trained on.

    Returns:
        Results in the order of `protocols`; `within` and `vinyals` give one for each way and shot in GRID.

    Raises:
        InputError: Before anything is embedded, if a protocol does not suit the model or tests on characters that it
            was trained on.
    """
    for name in protocols:
        reason = refusal(model, name, allow_leaks)
        if reason:
            raise InputError(reason)
    options: _Options = {"seed": seed, "trained_on": model.trained_on, "allow_leaks": allow_leaks}
    embedded = _embedded(model, omniglot, [name for name in protocols if NEEDED[name]])
    results: list[Result] = []
    for name in protocols:
        if not NEEDED[name]:
            results.append(replace(lake(model.distance, runs, **options), protocol=name))
            continue
        parts = [embedded.only(SPLITS[split], ALL_TURNS if name in TURNED else UPRIGHT) for split in NEEDED[name]]
        if name == "koch":
            score = None
            if model.reranker is not None and omniglot is not None:
                score = _reranked_similarity(model.reranker, omniglot)
            results.append(koch(parts[0], parts[1], score=score, **options))
        elif name.startswith("all-way"):
            results.append(replace(all_way(parts[0], **options), protocol=name))
        else:
            protocol = within if name == "within" else vinyals
            results += [replace(protocol(parts[0], way=way, shot=shot, **options), protocol=name) for way, shot in GRID]
    return results


def refusal(model: Model, protocol: str, allow_leaks: bool = False) -> str | None:
    """Why `model` cannot be measured by `protocol`, in one line; None if it can."""
    if protocol not in NEEDED:
        return f"no protocol {protocol!r}; there are {', '.join(NEEDED)}"
    if NEEDED[protocol] and model.embed is None:
        return f"{model.name} is a distance between pictures, not an embedding; lake alone can measure it"
    if model.reranker is not None and protocol not in OF_FEW_COMPARISONS:
        return f"{model.name}: {protocol} needs too many comparisons; use {', '.join(OF_FEW_COMPARISONS)}"
    tested = SPLITS[NEEDED[protocol][-1]].characters if NEEDED[protocol] else characters_of(LAKE)
    try:
        check_leaks(model.trained_on, tested, allow_leaks)
    except InputError as error:
        return f"{protocol}: {error}"
    if protocol == "lake-minimal" and not (model.trained_on and model.trained_on <= SPLITS["minimal-1"].characters):
        return f"lake-minimal is for models trained on {', '.join(MINIMAL_1)} alone; {model.name} was not"
    return None


def _reranked_similarity(reranker: PairDistance, omniglot: Omniglot) -> PairSimilarity:
    """The cosine of the vectors less the reranker's distance of the drawings, weighted as in reranking."""
    shown = zip(omniglot.character.tolist(), omniglot.drawer.tolist(), strict=True)
    row_of = {(omniglot.characters[character], drawer): row for row, (character, drawer) in enumerate(shown)}

    def score(embedded: EmbeddedDrawings, rows: Tensor) -> Tensor:
        shown = zip(embedded.character.tolist(), embedded.drawer.tolist(), strict=True)
        picture = torch.tensor([row_of[embedded.characters[character], drawer] for character, drawer in shown])
        one, other = (omniglot.pictures[picture[rows[:, side]]] for side in (0, 1))
        return similarity(embedded.vectors, rows) - WEIGHT * reranker(one, other)

    return score


def _embedded(model: Model, omniglot: Omniglot | None, protocols: Sequence[str]) -> EmbeddedDrawings:
    """All drawings that `protocols` need, each embedded once, upright and turned."""
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


# --- expected time ----------------------------------------------------------------------------------------------------


def seconds_to_measure(
    models: Sequence[Model],
    names: Sequence[str],
    omniglot: Omniglot | None,
    runs: Sequence[OneShotRun],
    *,
    explored: str | None = None,
) -> float:
    """Expected seconds for measuring `models` by the protocols `names`. The estimate itself takes seconds.

    explored: Split of the report's curves, hardest classes and nearest neighbours; None without a report.
    """
    return sum(_seconds_for(model, names, omniglot, runs, explored) for model in models)


def drawings_to_embed(names: Sequence[str], explored: str | None = None) -> int:
    """Number of drawings, turned ones included, that the protocols `names` and the split `explored` embed."""
    splits = {split for name in names for split in NEEDED[name]} | ({explored} if explored else set())
    needed = frozenset[Character]().union(*(SPLITS[split].characters for split in splits))
    turned = any(name in TURNED for name in names)
    turns = len(ALL_TURNS) - 1
    return DRAWERS * (len(needed) + (turns * len(SPLITS["vinyals-test"].characters) if turned else 0))


def seconds_per_drawing(embed: Embed, drawings: Tensor) -> float:
    """Seconds for embedding one of many drawings (n, 105, 105), timed on some of them."""
    embed(drawings[:FIRST])
    some = drawings[:DRAWINGS]
    started = _now()
    with torch.inference_mode():
        embed(some)
    return (_now() - started) / len(some)


def unit_seconds(device: torch.device) -> float:
    """Seconds for the unit of arithmetic: EPISODES episodes of 20-way 5-shot on random vectors."""
    characters = tuple(Character("", number) for number in range(423))
    character = torch.arange(len(characters)).repeat_interleave(DRAWERS)
    vectors = torch.randn(len(character), 256, generator=torch.Generator().manual_seed(0)).to(device)
    drawer = torch.arange(DRAWERS).repeat(len(characters))
    random = EmbeddedDrawings(vectors, character, drawer, torch.zeros_like(character), characters)
    started = _now()
    vinyals(random, way=20, shot=5, episodes=EPISODES)
    return _now() - started


def _seconds_for(
    model: Model, names: Sequence[str], omniglot: Omniglot | None, runs: Sequence[OneShotRun], explored: str | None
) -> float:
    seconds, embed = 0.0, model.embed
    if embed is not None and omniglot is not None:
        device = embed(omniglot.pictures[:1]).device
        seconds += drawings_to_embed(names, explored) * seconds_per_drawing(embed, omniglot.pictures)
        seconds += (sum(WORK.get(name, 0) for name in names) + FURTHER * (explored is not None)) * unit_seconds(device)
    if model.reranker is not None:
        drawings = (runs[0].test if omniglot is None else omniglot.pictures)[:PAIRS]
        model.reranker(drawings[:1], drawings[:1])  # warms up
        started = _now()
        model.reranker(drawings, drawings.flip(0))
        seconds += sum(RERANKED.get(name, 0) for name in names) * (_now() - started) / len(drawings)
    elif runs:
        times = sum(not NEEDED[name] for name in names)
        seconds += times * len(runs) * _seconds_of_run(model, runs[0])
    return seconds


def _seconds_of_run(model: Model, run: OneShotRun) -> float:
    """Seconds for one of Lake's runs: timed as a whole, or on a part of its pairs if that would take long."""
    test, train = run.test[:SIDE], run.train[:SIDE]
    model.distance(test, train)  # warms up
    started = _now()
    model.distance(test, train)
    seconds = (_now() - started) * len(run.test) * len(run.train) / (len(test) * len(train))
    if seconds > LONG:
        return seconds
    started = _now()
    model.distance(run.test, run.train)
    return _now() - started


def _now() -> float:
    """The clock, once a GPU has finished its work."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
