"""The published evaluation protocols, each by its paper's name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fewshot.evaluation.embedded import Embed, EmbeddedDrawings
from fewshot.evaluation.episodes import Episodes, Metric, Scores, arrange, episodes_of_classes, sample, score_episodes
from fewshot.evaluation.intervals import bootstrap_interval, class_parts, group_parts, parts_interval
from fewshot.evaluation.verification import best_threshold, draw_pairs, roc_summary, roc_summary_intervals, similarity
from fewshot.omniglot.dataset import Character, OneShotRun
from fewshot.omniglot.splits import LAKE, SPLITS, characters_of, leaks
from finetune.errors import InputError

# A distance is a function and has no state, so it is passed as one. Drawings are uint8, ink 255 on 0.
# Test drawings (n, 105, 105) and training drawings (m, 105, 105) -> distances (n, m).
Distance = Callable[[Tensor, Tensor], Tensor]
# Drawings (n, 105, 105) and their partners -> distances (n,).
PairDistance = Callable[[Tensor, Tensor], Tensor]
# Embedded drawings and pairs of their rows (n, 2) -> similarities (n,) float64.
PairSimilarity = Callable[[EmbeddedDrawings, Tensor], Tensor]

# Enough that the choice of episodes changes the accuracy less than the choice of classes does.
EPISODES = 10_000


@dataclass(frozen=True)
class ProtocolResult:
    """Accuracy of classification by the nearest class.

    Attributes:
        protocol: Its name.
        accuracy: Mean of `parts`, between 0 and 1.
        interval: 95 % interval for other runs, characters or alphabets, not for other training seeds.
        way, shot: Classes of a question, and examples of each.
        trials: Number of questions.
        seed: Of all random numbers.
        tested: The drawings, in words.
        leaking: Number of tested characters that were trained on; None if the training characters are not known.
        parts: Contribution of each run, character or alphabet; the interval and paired comparisons resample these.
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
    """Accuracy of verification: do two drawings show the same character?

    Attributes:
        accuracy: On the test pairs, at `threshold`.
        auc, eer: Area under the ROC curve of the test pairs, and their equal error rate.
        auc_interval, eer_interval: 95 % intervals of these.
        threshold: The best one on the validation pairs.
        validation_accuracy: On the validation pairs, at `threshold`.

    The other attributes are those of `ProtocolResult`.
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


def check_leaks(trained_on: Collection[Character], tested_on: Collection[Character], allow: bool = False) -> int:
    """Number of characters in both. InputError, with the first ones, if there are any and `allow` is False."""
    both = leaks(trained_on, tested_on)
    if both and not allow:
        first = ", ".join(map(str, both[:3])) + (" and others" if len(both) > 3 else "")
        raise InputError(
            f"{len(both)} of {len(set(tested_on))} characters to test on were trained on: {first}. Test on other "
            "characters, or allow leaks and say so beside the result"
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
    """One-shot classification: 20 runs, each with 20 questions among 20 characters of one alphabet.

    The characters of a run are not published, so all of its ten alphabets count as tested.

    Args:
        distance: Of the model.
        runs: As `lake_runs` reads them.
        seed: Of the interval.
        trained_on: Characters that the model was trained on.
        allow_leaks: Also test on these.

    Raises:
        InputError: For leaks, and if `distance` does not give shape (n_test, n_train).

    Source: Lake, Salakhutdinov & Tenenbaum (2015); their papers give the error, 1 - accuracy.
    """
    if not runs:
        raise InputError("runs is empty; fewshot.omniglot.dataset.lake_runs reads them")
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
    """The distance between the embeddings of drawings."""

    def distance(test: Tensor, train: Tensor) -> Tensor:
        one, other = embed(test).double(), embed(train).double()
        if metric == "euclidean":
            return torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist")
        unit = torch.nn.functional.normalize
        return 1 - unit(one, dim=1) @ unit(other, dim=1).T

    return distance


def score(distances: Tensor, answers: Tensor, name: str = "distances") -> Tensor:
    """Score questions by the nearest training picture.

    Ties share the credit, so that a model with equal distances does not win by the order of the columns.

    Args:
        distances: Shape (n_test, n_train), one training picture a class.
        answers: Shape (n_test,), the correct column.
        name: Of the distances, for the error message.

    Returns:
        Shape (n_test,), float64: 1 if the correct class alone is nearest, 1/m if m classes tie, else 0.

    Raises:
        InputError: For other shapes and NaN.
    """
    if distances.ndim != 2 or len(distances) != len(answers):
        raise InputError(f"{name}: distances of shape {tuple(distances.shape)} for {len(answers)} questions")
    if distances.isnan().any():
        bad = int(distances.isnan().sum())
        raise InputError(f"{name}: {bad} of {distances.numel()} distances are NaN; check that the weights are finite")
    nearest = distances == distances.min(1, keepdim=True).values
    right = nearest.gather(1, answers.to(nearest.device)[:, None])[:, 0]
    return (right.double() / nearest.sum(1)).cpu()


# --- episodes ---------------------------------------------------------------------------------------------------------
# Episodes are sampled on the device of the vectors. The generator is always on the CPU, so that a seed gives the same
# episodes on every device.


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
    """N-way K-shot classification among classes of all alphabets, one query each.

    Published accuracies are for 5- and 20-way, 1- and 5-shot, on the split `vinyals-test`, most of them with the four
    turns of every character as separate classes. The interval is for other classes.

    Source: Vinyals et al. (2016), "Matching networks for one shot learning".
    """
    leaking = _leaking(trained_on, embedded.characters, allow_leaks)
    generator = torch.Generator().manual_seed(seed)
    pool = arrange(embedded.label).to(embedded.vectors.device)
    drawn = sample(pool, episodes, way=way, shot=shot, generator=generator)
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
    """N-way K-shot classification within one alphabet, one query a class, usually on the split `evaluation`.

    Like Lake's runs, but with random alphabets (all equally likely), characters and drawers. The interval is for other
    alphabets.
    """
    leaking = _leaking(trained_on, embedded.characters, allow_leaks)
    pool = arrange(embedded.label, embedded.alphabet).to(embedded.vectors.device)
    drawn = sample(pool, episodes, way=way, shot=shot, generator=torch.Generator().manual_seed(seed))
    scores = score_episodes(embedded.vectors, drawn, metric)
    alphabet = embedded.alphabet[drawn.support[:, 0, 0].cpu()]
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
    """Classification among all classes, `shot` supports of each, drawn `draws` times; the others are queries.

    On the split `vinyals-test` it is 423-way, or 1692-way with turns; on `evaluation` 659-way. The interval is for
    other classes. It is computed by matrix products, since an index does not report ties.

    Source: Ramalho & Garnelo (2019), "Adaptive posterior learning".
    """
    if draws < 1:
        raise InputError(f"draws must be >= 1, not {draws}")
    leaking = _leaking(trained_on, embedded.characters, allow_leaks)
    pool = arrange(embedded.label).to(embedded.vectors.device)
    drawn = episodes_of_classes(
        pool,
        torch.arange(len(pool.labels), device=pool.rows.device).expand(draws, -1),
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
    score: PairSimilarity | None = None,
    seed: int = 0,
    trained_on: Collection[Character] | None = None,
    allow_leaks: bool = False,
) -> VerificationResult:
    """Verification: do two drawings show one character? Half of the pairs do.

    The threshold is chosen on `pairs` validation pairs and tested on as many test pairs. The splits `koch-like-val` and
    `koch-like-test` are like the paper's. The interval is for other alphabets.

    Args:
        validation, test: Embedded drawings, without common characters.
        pairs: Number of pairs of each.
        metric: Of the vectors.
        score: Similarity of pairs; by `metric` when None.
        seed: Of all random numbers.
        trained_on: Characters that the model was trained on.
        allow_leaks: Also test on these.

    Raises:
        InputError: For leaks, and if `validation` and `test` share a character.

    Source: Koch, Zemel & Salakhutdinov (2015), "Siamese neural networks for one-shot image recognition".
    """
    leaking = _leaking(trained_on, test.characters, allow_leaks)
    check_leaks(validation.characters, test.characters)
    generator = torch.Generator().manual_seed(seed)
    chosen_on, tested_on = (draw_pairs(part, pairs, generator) for part in (validation, test))
    if score is None:
        score = partial(_similarity, metric=metric)
    validated, scores = score(validation, chosen_on.rows), score(test, tested_on.rows)
    threshold = best_threshold(validated, chosen_on.same)
    right = ((scores >= threshold) == tested_on.same).double()
    summary = roc_summary(scores, tested_on.same)
    # All alphabets have the same number of pairs, so the mean of their means is the overall mean.
    inside = [tested_on.alphabet == alphabet for alphabet in tested_on.alphabet.unique()]
    per_alphabet = tuple(float(right[pairs_of].mean()) for pairs_of in inside)
    auc_interval, eer_interval = roc_summary_intervals([(scores[rows], tested_on.same[rows]) for rows in inside], seed)
    return VerificationResult(
        protocol="koch",
        accuracy=float(right.mean()),
        interval=parts_interval(per_alphabet, seed),
        auc=summary.auc,
        auc_interval=auc_interval,
        eer=summary.eer,
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


# --- results ----------------------------------------------------------------------------------------------------------


def describe(embedded: EmbeddedDrawings) -> str:
    """The drawings in words, such as "evaluation: 659 classes, 20 drawers"."""
    characters = frozenset(embedded.characters)
    names = [name for name, split in SPLITS.items() if split.characters == characters]
    turns = "" if len(embedded.turn.unique()) == 1 else f", {len(embedded.turn.unique())} turns"
    drawers = len(embedded.drawer.unique())
    return f"{names[0] if names else 'own'}: {len(embedded.label.unique())} classes, {drawers} drawers{turns}"


def _character(embedded: EmbeddedDrawings, episodes: Episodes) -> Tensor:
    """(episodes, way): the character of each class; its four turns are made of the same drawings."""
    return embedded.character[episodes.support[:, :, 0].cpu()]


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
    return None if trained_on is None else check_leaks(trained_on, tested_on, allow)
