"""A model measured by the published protocols on their published splits, every drawing embedded once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypedDict

import torch
from torch import Tensor

from fewshot.embedded import ALL_TURNS, UPRIGHT, Embedded, embed_once, joined
from fewshot.models import Model
from fewshot.omniglot.dataset import Character, Omniglot, Run
from fewshot.omniglot.splits import LAKE, MINIMAL_1, SPLITS, Split, characters_of, select
from fewshot.protocols import (
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
from fewshot.reranking import WEIGHT, PairDistance
from fewshot.verification import similarity
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


class _Options(TypedDict):
    seed: int
    trained_on: Collection[Character] | None
    allow_leaks: bool


def measure(
    model: Model,
    omniglot: Omniglot | None,
    runs: Sequence[Run] = (),
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

    def score(embedded: Embedded, rows: Tensor) -> Tensor:
        shown = zip(embedded.character.tolist(), embedded.drawer.tolist(), strict=True)
        picture = torch.tensor([row_of[embedded.characters[character], drawer] for character, drawer in shown])
        one, other = (omniglot.pictures[picture[rows[:, side]]] for side in (0, 1))
        return similarity(embedded.vectors, rows) - WEIGHT * again(one, other)

    return score


def _embedded(model: Model, omniglot: Omniglot | None, protocols: Sequence[str]) -> Embedded:
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
