"""An embedding measured by the published protocols on their published splits, every drawing embedded once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypedDict

from fewshot.embedded import ALL_TURNS, UPRIGHT, Embed, Embedded, embed_once, joined
from fewshot.episodes import Metric
from fewshot.omniglot import Character, Omniglot, Run
from fewshot.protocols import (
    ProtocolResult,
    VerificationResult,
    all_way,
    distance_by,
    guard,
    koch,
    lake,
    vinyals,
    within,
)
from fewshot.splits import LAKE, SPLITS, Split, characters_of, select
from finetune.errors import InputError

# Protocol -> the splits that it needs; the last is the one tested on. `vinyals` is with the four turns of every
# character, `vinyals-upright` without.
NEEDED: dict[str, tuple[str, ...]] = {
    "lake": (),
    "within": ("evaluation",),
    "all-way": ("evaluation",),
    "koch": ("koch-like-val", "koch-like-test"),
    "vinyals": ("vinyals-test",),
    "vinyals-upright": ("vinyals-test",),
    "vinyals-all-way": ("vinyals-test",),
}
GRID = ((5, 1), (5, 5), (20, 1), (20, 5))  # way and shot, as in most papers' tables

Result = ProtocolResult | VerificationResult


class _Options(TypedDict):
    seed: int
    trained_on: Collection[Character] | None
    allow_leaks: bool


def measure(
    embed: Embed,
    omniglot: Omniglot,
    runs: Sequence[Run] = (),
    *,
    protocols: Sequence[str] = ("within", "all-way", "koch"),
    metric: Metric = "cosine",
    seed: int = 0,
    trained_on: Collection[Character] | None = None,
    allow_leaks: bool = False,
) -> list[Result]:
    """The results of `protocols`, names in NEEDED, in their order; `within` and `vinyals` give one for each of GRID.

    runs: Lake's, for the protocol `lake` alone. trained_on: the characters that `embed` learned from or was chosen by;
    where one of them is tested on it is an InputError, before anything is embedded, unless `allow_leaks`. Trained on
    `background`, an embedding may be tested by all of them; trained on `vinyals-train`, by the last three alone.
    """
    unknown = [name for name in protocols if name not in NEEDED]
    if unknown:
        raise InputError(f"no protocol {unknown[0]!r}; there are {', '.join(NEEDED)}")
    for name in protocols:
        tested = characters_of(LAKE) if name == "lake" else SPLITS[NEEDED[name][-1]].characters
        guard(trained_on or (), tested, allow_leaks)
    options: _Options = {"seed": seed, "trained_on": trained_on, "allow_leaks": allow_leaks}
    have = _embedded(embed, omniglot, protocols)
    results: list[Result] = []
    for name in protocols:
        if name == "lake":
            results.append(lake(distance_by(embed, metric), runs, **options))
            continue
        turns = ALL_TURNS if name == "vinyals" else UPRIGHT
        parts = [have.only(SPLITS[split], turns) for split in NEEDED[name]]
        if name == "koch":
            results.append(koch(parts[0], parts[1], metric=metric, **options))
        elif name.endswith("all-way"):
            results.append(all_way(parts[0], metric=metric, **options))
        else:
            protocol = within if name == "within" else vinyals
            results += [protocol(parts[0], way=way, shot=shot, metric=metric, **options) for way, shot in GRID]
    return results


def _embedded(embed: Embed, omniglot: Omniglot, protocols: Sequence[str]) -> Embedded:
    """What `protocols` need, upright, and turned what `vinyals` alone needs turned."""
    needed = frozenset[Character]().union(*(SPLITS[split].characters for name in protocols for split in NEEDED[name]))
    parts = [embed_once(select(omniglot, Split(needed)), embed)] if needed else []
    if "vinyals" in protocols:
        parts.append(embed_once(select(omniglot, SPLITS["vinyals-test"]), embed, turns=ALL_TURNS[1:]))
    return joined(parts)
