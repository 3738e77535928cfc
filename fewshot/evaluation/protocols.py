"""The published evaluation protocols, each by its paper's name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fewshot.evaluation.embedded import Embed, EmbeddedDrawings
from fewshot.evaluation.episodes import Episodes, Metric, Scores, arrange, deal, sample, score_episodes
from fewshot.evaluation.intervals import bootstrap_interval, class_parts, group_parts, parts_interval
from fewshot.evaluation.verification import best_threshold, curve, curve_intervals, draw_pairs, similarity
from fewshot.omniglot.dataset import Character, OneShotRun
from fewshot.omniglot.splits import LAKE, SPLITS, characters_of, leaks
from finetune.errors import InputError

# Test pictures (n, 105, 105) and training pictures (m, 105, 105), uint8, ink 255 on 0, to (n, m): smaller is nearer.
Distance = Callable[[Tensor, Tensor], Tensor]

# Vectors with what they are of, and pairs (n, 2) of rows, to how alike they are, (n,) float64.
PairScore = Callable[[EmbeddedDrawings, Tensor], Tensor]

# So many that which episodes were drawn moves the accuracy less than which classes there are to draw from.
EPISODES = 10_000


@dataclass(frozen=True)
class ProtocolResult:
    """How often the nearest class was the right one, as fractions.

    accuracy: the mean of `parts`, of which each run, character or alphabet contributes one; they are what the interval
    resamples, and what two models are compared by. interval: 95 %, for other runs, characters or alphabets like
    these, as the protocol says; it knows nothing of other seeds of training. trials: questions asked. seed: of all that
    was drawn. tested: what the pictures are. leaking: how many of the characters tested were trained on; None where
    the protocol was not told what was.
    """

    protocol: str
    accuracy: float
    interval: tuple[float, float]
    way: int
    shot: int
    trials: int
    seed: int
    tested: str
    leaking: int | None = None
    parts: tuple[float, ...] = ()


@dataclass(frozen=True)
class VerificationResult:
    """How often two drawings were rightly called the same character or different ones, as fractions.

    accuracy: at `threshold`, chosen where the validation pairs come out best, which they do at
    `validation_accuracy`. auc, eer: area under the test pairs' ROC, and their equal error rate, with their intervals.
    The rest as in `ProtocolResult`.
    """

    protocol: str
    accuracy: float
    interval: tuple[float, float]
    auc: float
    auc_interval: tuple[float, float]
    eer: float
    eer_interval: tuple[float, float]
    threshold: float
    validation_accuracy: float
    trials: int
    seed: int
    tested: str
    leaking: int | None = None
    parts: tuple[float, ...] = ()


def guard(trained_on: Collection[Character], tested_on: Collection[Character], allow: bool = False) -> int:
    """How many characters are in both; InputError, which names the first of them, unless there are none or `allow`."""
    both = leaks(trained_on, tested_on)
    if both and not allow:
        first = ", ".join(map(str, both[:3])) + (" and others" if len(both) > 3 else "")
        raise InputError(
            f"{len(both)} of {len(set(tested_on))} characters to test on were trained on: {first}. Test on others, or "
            "allow it and say so beside the result"
        )
    return len(both)


# --- Lake's runs ------------------------------------------------------------------------------------------------------


def lake(
    distance: Distance,
    runs: Sequence[OneShotRun],
    *,
    seed: int = 0,
    trained_on: Collection[Character] | None = None,
    allow_leaks: bool = False,
) -> ProtocolResult:
    """One-shot classification of Lake et al. (2015): 20 runs, each 20 questions among 20 characters of one alphabet.

    Their papers give the error, 1 - accuracy. Which characters a run shows is not published with it: all of its ten
    alphabets count as tested. InputError where `distance` does not give (n_test, n_train) numbers.
    """
    if not runs:
        raise InputError("no runs to measure; fewshot.omniglot.dataset.lake_runs reads them")
    leaking = _leaking(trained_on, characters_of(LAKE), allow_leaks)
    credits = []
    for run in runs:
        with torch.inference_mode():
            distances = distance(run.test, run.train)
        credits.append(score(distances, run.answers, name=run.name))
    per_run = tuple(float(credit.mean()) for credit in credits)
    trials = sum(len(credit) for credit in credits)
    return ProtocolResult(
        protocol="lake",
        accuracy=float(np.mean(per_run)),
        interval=bootstrap_interval(per_run, trials, seed),
        way=len(runs[0].train),
        shot=1,
        trials=trials,
        seed=seed,
        tested=f"{len(runs)} runs",
        leaking=leaking,
        parts=per_run,
    )


def distance_by(embed: Embed, metric: Metric = "cosine") -> Distance:
    """A distance between pictures from an embedding of them, for `lake`."""

    def distance(test: Tensor, train: Tensor) -> Tensor:
        one, other = embed(test).double(), embed(train).double()
        if metric == "euclidean":
            return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
        unit = torch.nn.functional.normalize
        return 1 - unit(one, dim=1) @ unit(other, dim=1).T

    return distance


def score(distances: Tensor, answers: Tensor, name: str = "distances") -> Tensor:
    """What each question earned, (n_test,) float64: 1 for the right class nearest, 1/m where m classes tie for nearest.

    distances: (n_test, n_train), smaller is nearer; one training picture a class. answers: (n_test,), the right column.
    Ties are shared because a model that gives one distance for all must not win by the order of the columns.
    InputError, which begins with `name`, for another shape and for distances that are not numbers.
    """
    if distances.ndim != 2 or len(distances) != len(answers):
        raise InputError(f"{name}: distances of shape {tuple(distances.shape)} for {len(answers)} questions")
    if distances.isnan().any():
        bad = int(distances.isnan().sum())
        raise InputError(f"{name}: {bad} of {distances.numel()} distances are not numbers; are the weights finite?")
    nearest = distances == distances.min(1, keepdim=True).values
    right = nearest.gather(1, answers.to(nearest.device)[:, None])[:, 0]
    return (right.double() / nearest.sum(1)).cpu()


# --- episodes ---------------------------------------------------------------------------------------------------------
# The generator is the CPU's, wherever the vectors are: a seed stands for the same episodes on every machine.


def vinyals(
    embedded: EmbeddedDrawings,
    *,
    way: int = 20,
    shot: int = 1,
    episodes: int = EPISODES,
    metric: Metric = "cosine",
    seed: int = 0,
    trained_on: Collection[Character] | None = None,
    allow_leaks: bool = False,
) -> ProtocolResult:
    """N-way K-shot classification of Vinyals et al. (2016): classes at random from all alphabets mixed, one query each.

    The published figures are for 5- and 20-way, 1- and 5-shot, on the split `vinyals-test`, most of them with the four
    turns of every character as classes of their own. The interval is for other classes like these.
    """
    leaking = _leaking(trained_on, embedded.characters, allow_leaks)
    generator = torch.Generator().manual_seed(seed)
    drawn = sample(arrange(embedded.label), episodes, way=way, shot=shot, generator=generator)
    scores = score_episodes(embedded.vectors, drawn, metric)
    parts = class_parts(scores, _character(embedded, drawn))
    return _result("vinyals", embedded, drawn, scores, parts, seed, leaking)


def within(
    embedded: EmbeddedDrawings,
    *,
    way: int = 20,
    shot: int = 1,
    episodes: int = EPISODES,
    metric: Metric = "cosine",
    seed: int = 0,
    trained_on: Collection[Character] | None = None,
    allow_leaks: bool = False,
) -> ProtocolResult:
    """N-way K-shot classification inside one alphabet, as in Lake's runs, but with alphabets, characters and drawers
    drawn at random, all alphabets being equally likely, one query a class.

    Usual on the split `evaluation`. The interval is for other alphabets like these.
    """
    leaking = _leaking(trained_on, embedded.characters, allow_leaks)
    pool = arrange(embedded.label, embedded.alphabet)
    drawn = sample(pool, episodes, way=way, shot=shot, generator=torch.Generator().manual_seed(seed))
    scores = score_episodes(embedded.vectors, drawn, metric)
    alphabet = embedded.alphabet[drawn.support[:, 0, 0]]
    return _result("within", embedded, drawn, scores, group_parts(scores, alphabet), seed, leaking)


def all_way(
    embedded: EmbeddedDrawings,
    *,
    shot: int = 1,
    draws: int = 20,
    metric: Metric = "cosine",
    seed: int = 0,
    trained_on: Collection[Character] | None = None,
    allow_leaks: bool = False,
) -> ProtocolResult:
    """Every class at once, `shot` supports of each drawn `draws` times, all its other drawings asked.

    On the split `vinyals-test` it is 423-way (Ramalho & Garnelo 2019), 1692-way with the turned; on `evaluation`
    659-way. The interval is for other classes like these, as many. It is computed as a product of matrices, since an
    index that returns the nearest neighbour does not tell which others are as near.
    """
    if draws < 1:
        raise InputError(f"{draws} draws; at least 1 is wanted")
    leaking = _leaking(trained_on, embedded.characters, allow_leaks)
    pool = arrange(embedded.label)
    drawn = deal(
        pool,
        torch.arange(len(pool.labels)).expand(draws, -1),
        shot=shot,
        queries=int(pool.sizes.min()) - shot,
        generator=torch.Generator().manual_seed(seed),
    )
    scores = score_episodes(embedded.vectors, drawn, metric)
    parts = class_parts(scores, _character(embedded, drawn))
    return _result("all-way", embedded, drawn, scores, parts, seed, leaking)


# --- verification -----------------------------------------------------------------------------------------------------


def koch(
    validation: EmbeddedDrawings,
    test: EmbeddedDrawings,
    *,
    pairs: int = 10_000,
    metric: Metric = "cosine",
    score: PairScore | None = None,
    seed: int = 0,
    trained_on: Collection[Character] | None = None,
    allow_leaks: bool = False,
) -> VerificationResult:
    """Verification of Koch et al. (2015): are two drawings of one character? Half of the pairs are.

    The threshold comes from `pairs` validation pairs alone, and is then tested on as many test pairs; splits like the
    paper's are `koch-like-val` and `koch-like-test`. The interval is for other alphabets like the tested ones.
    score: how alike pairs (n, 2) of rows are, (n,), larger for more alike; `metric` of their vectors where not given.
    InputError where the two share a character.
    """
    leaking = _leaking(trained_on, test.characters, allow_leaks)
    guard(validation.characters, test.characters)
    generator = torch.Generator().manual_seed(seed)
    chosen_on, tested_on = (draw_pairs(part, pairs, generator) for part in (validation, test))
    if score is None:
        score = partial(_similarity, metric=metric)
    validated, scores = score(validation, chosen_on.rows), score(test, tested_on.rows)
    threshold = best_threshold(validated, chosen_on.same)
    right = ((scores >= threshold) == tested_on.same).double()
    shape = curve(scores, tested_on.same)
    # The alphabets have equally many pairs, so that the mean of their means is the mean.
    inside = [tested_on.alphabet == alphabet for alphabet in tested_on.alphabet.unique()]
    per_alphabet = tuple(float(right[pairs_of].mean()) for pairs_of in inside)
    auc_interval, eer_interval = curve_intervals([(scores[rows], tested_on.same[rows]) for rows in inside], seed)
    return VerificationResult(
        protocol="koch",
        accuracy=float(right.mean()),
        interval=parts_interval(per_alphabet, seed),
        auc=shape.auc,
        auc_interval=auc_interval,
        eer=shape.eer,
        eer_interval=eer_interval,
        threshold=threshold,
        validation_accuracy=float(((validated >= threshold) == chosen_on.same).double().mean()),
        trials=len(right),
        seed=seed,
        tested=describe(test),
        leaking=leaking,
        parts=per_alphabet,
    )


def _similarity(embedded: EmbeddedDrawings, rows: Tensor, metric: Metric) -> Tensor:
    return similarity(embedded.vectors, rows, metric)


# --- what they share --------------------------------------------------------------------------------------------------


def describe(embedded: EmbeddedDrawings) -> str:
    """What the vectors are of, like `evaluation: 659 classes, 20 drawers`."""
    characters = frozenset(embedded.characters)
    names = [name for name, split in SPLITS.items() if split.characters == characters]
    turns = "" if len(embedded.turn.unique()) == 1 else f", {len(embedded.turn.unique())} turns"
    drawers = len(embedded.drawer.unique())
    return f"{names[0] if names else 'own'}: {len(embedded.label.unique())} classes, {drawers} drawers{turns}"


def _character(embedded: EmbeddedDrawings, episodes: Episodes) -> Tensor:
    """(episodes, way): the four turns of a character are made of the same drawings."""
    return embedded.character[episodes.support[:, :, 0]]


def _result(
    protocol: str,
    embedded: EmbeddedDrawings,
    episodes: Episodes,
    scores: Scores,
    parts: tuple[float, ...],
    seed: int,
    leaking: int | None,
) -> ProtocolResult:
    return ProtocolResult(
        protocol=protocol,
        accuracy=float(scores.credit.double().mean()),
        interval=parts_interval(parts, seed),
        way=episodes.support.shape[1],
        shot=episodes.support.shape[2],
        trials=scores.credit.numel(),
        seed=seed,
        tested=describe(embedded),
        leaking=leaking,
        parts=parts,
    )


def _leaking(trained_on: Collection[Character] | None, tested_on: Collection[Character], allow: bool) -> int | None:
    return None if trained_on is None else guard(trained_on, tested_on, allow)
