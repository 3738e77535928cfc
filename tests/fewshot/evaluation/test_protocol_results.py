"""What each protocol records, and that each of its options has an effect."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewshot.evaluation.embedded import EmbeddedDrawings
from fewshot.evaluation.intervals import bootstrap_interval, parts_interval
from fewshot.evaluation.protocols import (
    ProtocolResult,
    all_way,
    check_leaks,
    distance_by,
    koch,
    lake,
    score,
    vinyals,
    within,
)
from fewshot.evaluation.verification import draw_pairs, roc_summary_intervals, similarity
from fewshot.omniglot.dataset import Character, OneShotRun
from fewshot.omniglot.splits import LAKE, characters_of
from finetune.errors import InputError


def drawings(
    seed: int = 0, *, alphabets: str = "ABCD", characters: int = 6, drawers: int = 4, noise: float = 0.7
) -> EmbeddedDrawings:
    """A direction for each character, plus noise; the lengths of the vectors differ, so the metrics do too."""
    generator = torch.Generator().manual_seed(seed)
    names = tuple(Character(alphabet, number + 1) for alphabet in alphabets for number in range(characters))
    vectors = torch.randn(len(names), 8, generator=generator).repeat_interleave(drawers, 0)
    vectors = vectors + noise * torch.randn(len(vectors), 8, generator=generator)
    return EmbeddedDrawings(
        vectors=vectors * (0.2 + 3 * torch.rand(len(vectors), 1, generator=generator)),
        character=torch.arange(len(names)).repeat_interleave(drawers),
        drawer=torch.arange(drawers).repeat(len(names)),
        turn=torch.zeros(len(vectors), dtype=torch.int64),
        characters=names,
    )


FEW: dict[Any, dict[str, int]] = {
    vinyals: {"way": 3, "episodes": 200},
    within: {"way": 3, "episodes": 200},
    all_way: {"draws": 5},
}
EPISODIC = pytest.mark.parametrize(
    ("protocol", "name", "way", "trials", "parts"),
    [
        (vinyals, "vinyals", 3, 600, 24),
        (within, "within", 3, 600, 4),
        (all_way, "all-way", 24, 240, 24),  # the other two drawings of each class, five times
    ],
)


@EPISODIC
def test_a_result_records_what_was_asked(protocol: Any, name: str, way: int, trials: int, parts: int) -> None:
    vectors = drawings()
    known = vectors.characters[:2]
    found = protocol(vectors, shot=2, seed=7, trained_on=known, allow_leaks=True, **FEW[protocol])
    assert found == ProtocolResult(
        protocol=name,
        accuracy=pytest.approx(sum(found.parts) / parts, abs=1e-9),
        interval=parts_interval(found.parts, 7),
        way=way,
        shot=2,
        trials=trials,
        seed=7,
        tested="own: 24 classes, 4 drawers",
        leaking=2,
        parts=found.parts,
    )
    assert len(found.parts) == parts
    assert found.interval[0] < found.accuracy < found.interval[1]
    with pytest.raises(InputError, match="2 of 24 characters to test on were trained on"):
        protocol(vectors, trained_on=known, **FEW[protocol])


@EPISODIC
def test_the_metric_is_used_and_defaults_are_the_published_ones(
    protocol: Any, name: str, way: int, trials: int, parts: int
) -> None:
    vectors = drawings()
    units = replace(vectors, vectors=torch.nn.functional.normalize(vectors.vectors, dim=1))
    by_angle, by_distance = (protocol(vectors, metric=metric, **FEW[protocol]) for metric in ("cosine", "euclidean"))
    assert by_angle.accuracy == protocol(units, metric="euclidean", **FEW[protocol]).accuracy
    assert by_distance.accuracy < by_angle.accuracy
    assert by_angle == protocol(vectors, **FEW[protocol])
    assert by_angle == protocol(vectors, shot=1, seed=0, trained_on=None, allow_leaks=False, **FEW[protocol])


def test_episodes_are_20_way_by_default() -> None:
    vectors = drawings(alphabets="AB", characters=21, drawers=2)
    for protocol in (vinyals, within):
        assert protocol(vectors, episodes=10).way == 20


def test_all_way_asks_about_every_drawing_that_is_no_support() -> None:
    vectors = drawings(drawers=5)
    assert all_way(vectors, draws=1, shot=2).trials == 24 * 3
    assert all_way(vectors).trials == 20 * 24 * 4
    for draws in (0, -1):
        with pytest.raises(InputError, match=f"draws must be >= 1, not {draws}"):
            all_way(vectors, draws=draws)
    with pytest.raises(InputError, match="shot and queries must be >= 1, not 5 and 0"):
        all_way(vectors, shot=5)


def test_the_first_three_leaks_are_named() -> None:
    names = [Character("A", number) for number in range(1, 9)]
    for many, ending in ((3, r"A/character03\. Test"), (4, r"A/character03 and others\. Test")):
        with pytest.raises(InputError, match=f"^{many} of 8 characters .*: A/character01, A/character02, {ending}"):
            check_leaks(names[:many], names)
    assert check_leaks(names[:4], names, allow=True) == 4


# --- Lake's runs ------------------------------------------------------------------------------------------------------


def runs(count: int, ways: int = 5) -> list[OneShotRun]:
    """Runs whose pictures are one pixel, the number of the character."""
    train = torch.arange(ways, dtype=torch.uint8).view(ways, 1, 1)
    return [OneShotRun(f"run{number:02d}", train, train, torch.arange(ways)) for number in range(count)]


def test_a_result_of_lake_records_what_was_asked() -> None:
    asked = runs(20)
    distances = torch.randint(4, (len(asked), 5, 5), generator=torch.Generator().manual_seed(0))
    given = iter(distances)
    known = sorted(characters_of(LAKE))[:2]
    found = lake(lambda test, train: next(given), asked, seed=3, trained_on=known, allow_leaks=True)
    nearest = distances == distances.min(2, keepdim=True).values
    right = (nearest.diagonal(dim1=1, dim2=2).double() / nearest.sum(2)).mean(1)
    assert bootstrap_interval(right.tolist(), 100, 3) != bootstrap_interval(right.tolist(), 100, 0)
    assert found == ProtocolResult(
        protocol="lake",
        accuracy=pytest.approx(float(right.mean())),
        interval=bootstrap_interval(right.tolist(), 100, 3),
        way=5,
        shot=1,
        trials=100,
        seed=3,
        tested="20 runs",
        leaking=2,
        parts=tuple(right.tolist()),
    )
    again = iter(distances)
    assert lake(lambda test, train: next(again), asked).seed == 0
    with pytest.raises(InputError, match=r"2 of .* characters to test on were trained on"):
        lake(lambda test, train: distances[0], asked, trained_on=known)


def test_a_distance_sees_test_before_train_and_records_no_gradients() -> None:
    weight = torch.ones((), requires_grad=True)

    def distance(test: Tensor, train: Tensor) -> Tensor:
        assert (len(test), len(train)) == (2, 5)
        distances = weight * (test.flatten().double()[:, None] - train.flatten().double()).abs()
        assert not distances.requires_grad
        return distances

    train = torch.arange(5, dtype=torch.uint8).view(5, 1, 1)
    part = OneShotRun("part", train=train, test=train[:2], answers=torch.arange(2))
    result = lake(distance, [part])
    assert (result.accuracy, result.way, result.trials) == (1, 5, 2)


def test_distances_of_embeddings_are_those_of_their_definition() -> None:
    test, train = torch.rand(2, 40, 2, 3, generator=torch.Generator().manual_seed(0)).double() + 1e4
    calls = []

    def embed(pictures: Tensor) -> Tensor:
        calls.append(len(pictures))
        return pictures.flatten(1)

    one, other = test[:7].flatten(1), train.flatten(1)
    euclidean = distance_by(embed, "euclidean")(test[:7], train)
    torch.testing.assert_close(euclidean, (one[:, None] - other).square().sum(2).sqrt(), rtol=1e-12, atol=0)
    one, other = one - 1e4, other - 1e4
    cosine = distance_by(embed)(test[:7] - 1e4, train - 1e4)
    lengths = one.norm(dim=1)[:, None] * other.norm(dim=1)
    torch.testing.assert_close(cosine, 1 - (one @ other.T) / lengths)
    assert calls == [7, 40, 7, 40]


def test_distances_that_do_not_match_the_questions_are_refused() -> None:
    for shape in ((3,), (3, 2), (4, 2, 2)):
        with pytest.raises(InputError, match=r"^distances: distances of shape \(.*\) for 4 questions"):
            score(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"^distances: 2 of 6 distances are NaN"):
        score(torch.tensor([[0, torch.nan], [torch.nan, 1], [0, 1]]), torch.zeros(3, dtype=torch.int64))


# --- verification -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_result_of_verification_records_what_was_asked() -> None:
    validation, test = drawings(1, alphabets="VWX", noise=0.4), drawings(0, noise=0.4)
    known = test.characters[:2]
    options: dict[str, Any] = {"pairs": 240, "seed": 5, "trained_on": known, "allow_leaks": True}
    found = koch(validation, test, metric="euclidean", **options)

    generator = torch.Generator().manual_seed(5)
    chosen_on, tested_on = draw_pairs(validation, 240, generator), draw_pairs(test, 240, generator)
    for drawn, of, accuracy in (
        (chosen_on, validation, found.validation_accuracy),
        (tested_on, test, found.accuracy),
    ):
        answers = similarity(of.vectors, drawn.rows, "euclidean") >= found.threshold
        assert accuracy == pytest.approx(float((answers == drawn.same).double().mean()))
    assert found.accuracy != found.validation_accuracy
    assert (found.protocol, found.trials, found.seed, found.leaking) == ("koch", 240, 5, 2)
    assert found.tested == "own: 24 classes, 4 drawers"
    scores = similarity(test.vectors, tested_on.rows, "euclidean")
    inside = [tested_on.alphabet == alphabet for alphabet in range(4)]
    right = ((scores >= found.threshold) == tested_on.same).double()
    assert found.parts == pytest.approx([float(right[rows].mean()) for rows in inside])
    assert found.accuracy == pytest.approx(sum(found.parts) / 4)
    assert found.interval == parts_interval(found.parts, 5)
    intervals = roc_summary_intervals([(scores[rows], tested_on.same[rows]) for rows in inside], 5)
    assert (found.auc_interval, found.eer_interval) == intervals
    assert found.auc_interval[0] < found.auc < found.auc_interval[1]
    assert found.eer_interval[0] < found.eer < found.eer_interval[1]

    def by_distance(embedded: EmbeddedDrawings, rows: Tensor) -> Tensor:
        return similarity(embedded.vectors, rows, "euclidean")

    assert koch(validation, test, score=by_distance, **options) == found
    by_angle = koch(validation, test, **options)
    assert by_angle == koch(validation, test, metric="cosine", **options)
    assert by_angle.threshold > 0 > found.threshold
    other = koch(validation, test, metric="euclidean", **options | {"seed": 6})
    assert other.accuracy != found.accuracy
    with pytest.raises(InputError, match="2 of 24 characters to test on were trained on"):
        koch(validation, test, trained_on=known, pairs=240)


@pytest.mark.slow
def test_pairs_are_drawn_with_seed_0_by_default() -> None:
    validation, test = drawings(1, alphabets="VWX"), drawings()
    found = koch(validation, test, pairs=240)
    assert found == koch(validation, test, pairs=240, seed=0, allow_leaks=False)
    assert found.leaking is None
