from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshot.evaluation.embedded import ALL_TURNS, EmbeddedDrawings, embed_once, joined, turned
from fewshot.evaluation.episodes import Scores, arrange, sample, score_episodes
from fewshot.evaluation.intervals import class_parts, group_parts, parts_interval
from fewshot.evaluation.measure import NEEDED, measure
from fewshot.evaluation.models import Model, by_embedding
from fewshot.evaluation.protocols import (
    all_way,
    bootstrap_interval,
    check_leaks,
    distance_by,
    koch,
    lake,
    score,
    vinyals,
    within,
)
from fewshot.evaluation.verification import best_threshold, draw_pairs, roc_summary, similarity
from fewshot.omniglot.dataset import Character, Omniglot, OneShotRun, labelled
from fewshot.omniglot.splits import SPLITS, Split, characters_of
from finetune.errors import InputError
from finetune.metrics import wilson_interval


def numbered(runs: int = 4, ways: int = 5) -> list[OneShotRun]:
    """Runs whose pictures are one pixel, the number of the character; the answers are shuffled."""
    generator = torch.Generator().manual_seed(0)
    train = torch.arange(ways, dtype=torch.uint8).view(ways, 1, 1)
    found = []
    for number in range(runs):
        answers = torch.randperm(ways, generator=generator)
        found.append(OneShotRun(f"run{number + 1:02d}", train, train[answers], answers))
    return found


def apart(test: Tensor, train: Tensor) -> Tensor:
    return (test.flatten().double()[:, None] - train.flatten().double()).abs()


def test_a_perfect_distance_has_an_interval_of_some_width() -> None:
    result = lake(apart, numbered())
    assert result.accuracy == 1
    assert result.parts == (1.0,) * 4
    assert result.trials == 20
    assert result.interval == wilson_interval(20, 20)
    assert result.interval[0] < 1


def test_a_constant_distance_scores_at_chance() -> None:
    for constant in (0.0, math.inf):
        result = lake(lambda test, train, value=constant: torch.full((len(test), len(train)), value), numbered())
        assert result.accuracy == pytest.approx(1 / 5)


def test_ties_share_the_credit() -> None:
    distances = torch.tensor([[1.0, 1.0, 2.0], [1.0, 1.0, 2.0], [3.0, 2.0, 2.0], [0.0, 1.0, 2.0]])
    assert score(distances, torch.tensor([0, 2, 1, 0])).tolist() == [0.5, 0.0, 0.5, 1.0]


@given(st.permutations(range(5)))
def test_the_order_of_the_training_pictures_does_not_matter(order: list[int]) -> None:
    distances = torch.tensor([[1.0, 2.0, 1.0, 0.5, 0.5], [3.0, 3.0, 3.0, 3.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0]])
    answers = torch.tensor([3, 1, 0])
    moved = torch.tensor([order.index(int(answer)) for answer in answers])
    assert score(distances[:, order], moved).tolist() == score(distances, answers).tolist()


def test_nan_distances_are_refused() -> None:
    def broken(test: Tensor, train: Tensor) -> Tensor:
        distances = apart(test, train)
        distances[1, 2] = math.nan
        return distances

    with pytest.raises(InputError, match="run01: 1 of 25 distances are NaN"):
        lake(broken, numbered())


def test_distances_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"run01: .*\(25,\) for 5 questions"):
        lake(lambda test, train: apart(test, train).flatten(), numbered())
    with pytest.raises(InputError, match="runs is empty"):
        lake(apart, [])


def test_the_interval_resamples_whole_runs() -> None:
    per_run = (0.0, 1.0) * 10
    low, high = bootstrap_interval(per_run, 400)
    assert bootstrap_interval(per_run, 400) == (low, high)
    # Runs all right or all wrong tell no more than 20 trials would: 0.5 +- 1.96 sqrt(0.25 / 20).
    assert (low, high) == pytest.approx((0.281, 0.719), abs=0.03)


def test_the_interval_contains_the_accuracy() -> None:
    per_run = (0.9,) * 19 + (0.1,)
    low, high = bootstrap_interval(per_run, 400)
    assert low < sum(per_run) / 20 <= high


# --- episodes ---------------------------------------------------------------------------------------------------------

NAMES = tuple(Character(alphabet, number) for alphabet in "ABCD" for number in range(1, 7))


def embedded(vectors: Tensor, drawers: int = 4, characters: tuple[Character, ...] = NAMES) -> EmbeddedDrawings:
    """Vectors in the order of characters, then of drawers."""
    return EmbeddedDrawings(
        vectors=vectors,
        character=torch.arange(len(characters)).repeat_interleave(drawers),
        drawer=torch.arange(drawers).repeat(len(characters)),
        turn=torch.zeros(len(vectors), dtype=torch.int64),
        characters=characters,
    )


def random(seed: int = 0, noise: float = 1, drawers: int = 4) -> EmbeddedDrawings:
    """A direction for each character, plus noise for every drawing."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(len(NAMES), 8, generator=generator).repeat_interleave(drawers, 0)
    return embedded(centre + noise * torch.randn(len(NAMES) * drawers, 8, generator=generator), drawers)


PERFECT = embedded(torch.eye(24).repeat_interleave(4, 0))
CONSTANT = embedded(torch.ones(96, 5))
EPISODIC = pytest.mark.parametrize("protocol", [vinyals, within, all_way])
WAYS = {vinyals: 5, within: 5, all_way: 24}


def asked(protocol, vectors: EmbeddedDrawings, **options):
    return protocol(vectors, **({} if protocol is all_way else {"way": 5, "episodes": 400}), **options)


@EPISODIC
def test_one_vector_for_each_class_is_perfect_with_an_interval_of_some_width(protocol) -> None:
    result = asked(protocol, PERFECT)
    assert (result.accuracy, result.way, result.shot) == (1, WAYS[protocol], 1)
    # As many independent questions as there are alphabets or classes, not as episodes were drawn.
    independent = 4 if protocol is within else 24
    assert result.interval == wilson_interval(independent, independent)


@EPISODIC
def test_equal_vectors_score_at_chance(protocol) -> None:
    assert asked(protocol, CONSTANT).accuracy == pytest.approx(1 / WAYS[protocol], abs=1e-7)


@EPISODIC
def test_random_vectors_score_at_chance_within_the_interval(protocol) -> None:
    nothing = embedded(torch.randn(96, 8, generator=torch.Generator().manual_seed(3)))
    low, high = asked(protocol, nothing).interval
    assert low < 1 / WAYS[protocol] < high


@EPISODIC
def test_the_interval_contains_the_accuracy_of_the_episodes(protocol) -> None:
    result = asked(protocol, random())
    assert 0 <= result.interval[0] < result.accuracy < result.interval[1] <= 1
    assert result.trials == (24 * 3 * 20 if protocol is all_way else 400 * 5)
    assert result.tested == "own: 24 classes, 4 drawers"
    assert result.leaking is None


@EPISODIC
def test_a_seed_determines_the_distortion(protocol) -> None:
    assert asked(protocol, random(), seed=4) == asked(protocol, random(), seed=4)
    assert asked(protocol, random(), seed=4).accuracy != asked(protocol, random(), seed=5).accuracy


@EPISODIC
def test_the_numbering_of_classes_hardly_matters(protocol) -> None:
    vectors = random(noise=0.7)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    # Whole alphabets, and the characters inside them, change places.
    order = (torch.tensor([2, 0, 3, 1])[:, None] * 6 + order[order < 6]).flatten()
    moved = embedded(vectors.vectors.view(24, 4, -1)[order].flatten(0, 1))
    assert asked(protocol, moved).accuracy == pytest.approx(asked(protocol, vectors).accuracy, abs=0.04)


@EPISODIC
def test_more_shots_are_better(protocol) -> None:
    assert asked(protocol, random(), shot=3).accuracy > asked(protocol, random()).accuracy + 0.03


def test_within_is_harder_if_alphabets_are_alike() -> None:
    vectors = random(noise=0.5)
    style = 10 * torch.eye(4).repeat_interleave(24, 0)
    styled = replace(vectors, vectors=torch.cat([vectors.vectors, style], 1))
    assert within(styled, way=5, episodes=500).accuracy < vinyals(styled, way=5, episodes=500).accuracy - 0.03


def test_turned_characters_are_separate_classes() -> None:
    vectors = random(noise=0.5)
    turns = [replace(random(seed=turn, noise=0.5), turn=torch.full((96,), turn)) for turn in (1, 2, 3)]
    every = joined([vectors, *turns])
    assert len(every.label.unique()) == 96
    result = vinyals(every, way=90, episodes=20)
    assert result.tested == "own: 96 classes, 4 drawers, 4 turns"


def test_turns_of_one_character_are_resampled_together() -> None:
    owner = torch.arange(800).expand(3, -1)
    credit = (owner // 4 % 2).float()[:, :, None]
    nothing = torch.zeros(3, 800)
    apart, together = (parts_interval(class_parts(Scores(credit, nothing), who)) for who in (owner, owner // 4))
    # Four that are alike tell no more than one: a standard error of twice the size.
    assert together[1] - together[0] == pytest.approx(2 * (apart[1] - apart[0]), rel=0.1)


def test_the_class_interval_counts_errors_that_a_class_attracts() -> None:
    """One class of ten takes all queries of the others, so the accuracy depends on it alone."""
    owner = torch.stack([torch.randperm(10, generator=torch.Generator().manual_seed(i))[:2] for i in range(500)])
    thief = owner == 0
    credit = torch.where(thief.flip(1), 0.0, 1.0)[:, :, None]
    accuracy = float(credit.mean())
    low, high = parts_interval(class_parts(Scores(credit, thief.float()), owner))
    # By their own queries alone, all others are as good as equal, and nothing would be uncertain.
    assert accuracy == pytest.approx(0.9, abs=0.02)
    assert low < 0.75
    assert low < accuracy < high


def test_the_class_interval_is_as_wide_as_accuracies_spread() -> None:
    owner = torch.arange(60).repeat_interleave(6)
    accuracies, widths = [], []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(60, 6, generator=generator).repeat_interleave(6, 0)
        vectors = vectors + 0.6 * torch.randn(360, 6, generator=generator)
        drawn = sample(arrange(owner), 500, way=5, shot=1, generator=generator)
        scores = score_episodes(vectors, drawn, "euclidean")
        low, high = parts_interval(class_parts(scores, drawn.classes))
        accuracies.append(float(scores.credit.mean()))
        widths.append(high - low)
    spread = 2 * 1.96 * float(torch.tensor(accuracies).std())
    assert 0.75 * spread < sum(widths) / 40 < 1.4 * spread


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1, width=32)), min_size=1, max_size=30))
def test_group_intervals_contain_the_accuracy(episodes: list[tuple[int, float]]) -> None:
    credit = torch.tensor([value for _, value in episodes]).view(-1, 1, 1)
    group = torch.tensor([number for number, _ in episodes])
    low, high = parts_interval(group_parts(Scores(credit, credit[:, :, 0]), group))
    assert 0 <= low <= high <= 1
    assert low - 0.5 / len(group.unique()) <= float(credit.mean()) <= high + 0.5 / len(group.unique())


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_leaks_are_refused_unless_allowed() -> None:
    vectors = random()
    with pytest.raises(InputError, match="2 of 24 characters to test on were trained on: A/character02, C/character01"):
        vinyals(vectors, way=5, trained_on=[NAMES[12], NAMES[1], Character("Z", 1)])
    allowed = vinyals(vectors, way=5, episodes=10, trained_on=[NAMES[12], NAMES[1]], allow_leaks=True)
    assert allowed.leaking == 2
    assert vinyals(vectors, way=5, episodes=10, trained_on=[Character("Z", 1)]).leaking == 0
    with pytest.raises(InputError, match=r"382 of 382 .* Atlantean/character01, .* and others"):
        lake(apart, numbered(), trained_on=SPLITS["evaluation"].characters)
    assert lake(apart, numbered(), trained_on=SPLITS["background"].characters).leaking == 0
    assert check_leaks([], NAMES) == 0


# --- verification -----------------------------------------------------------------------------------------------------


def other_alphabets(vectors: EmbeddedDrawings) -> EmbeddedDrawings:
    return replace(vectors, characters=tuple(Character("x" + name.alphabet, name.number) for name in NAMES))


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_half_of_the_pairs_are_same_and_all_by_two_drawers_of_one_alphabet(seed: int) -> None:
    vectors = random()
    pairs = draw_pairs(vectors, 80, torch.Generator().manual_seed(seed))
    one, other = pairs.rows.unbind(1)
    assert int(pairs.same.sum()) == 40
    assert torch.equal(vectors.character[one] == vectors.character[other], pairs.same)
    assert torch.equal(vectors.alphabet[one], vectors.alphabet[other])
    assert torch.equal(vectors.alphabet[one], pairs.alphabet)
    assert pairs.alphabet.bincount().tolist() == [20] * 4
    assert not (vectors.drawer[one] == vectors.drawer[other]).any()


@pytest.mark.slow
def test_verification_of_perfect_and_of_equal_vectors() -> None:
    result = koch(other_alphabets(PERFECT), PERFECT, pairs=400)
    assert (result.accuracy, result.auc, result.eer, result.validation_accuracy) == (1, 1, 0, 1)
    assert result.threshold == pytest.approx(0.5)
    assert result.interval == wilson_interval(4, 4)
    chance = koch(other_alphabets(CONSTANT), CONSTANT, pairs=400)
    assert (chance.accuracy, chance.auc, chance.eer) == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_the_threshold_comes_from_validation_alone() -> None:
    test, validation = random(noise=0.5), other_alphabets(random(1, noise=0.5))
    result = koch(validation, test, metric="euclidean", pairs=2000)
    assert result == koch(validation, test, metric="euclidean", pairs=2000)
    longer = replace(test, vectors=3 * test.vectors)
    moved = koch(validation, longer, metric="euclidean", pairs=2000)
    assert (moved.threshold, moved.auc) == (result.threshold, pytest.approx(result.auc))
    assert moved.accuracy < result.accuracy - 0.1
    assert result.trials == 2000
    assert 0.8 < result.accuracy < 1 - result.eer + 0.05


def test_validation_and_test_share_no_character() -> None:
    with pytest.raises(InputError, match="24 of 24 characters"):
        koch(random(1), random(), pairs=400)
    with pytest.raises(InputError, match="7 pairs are too few"):
        koch(other_alphabets(random(1)), random(), pairs=7)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=30))
def test_the_threshold_is_best_and_the_roc_matches_its_definition(pairs: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(value) for value, _ in pairs], dtype=torch.float64)
    same = torch.tensor([kind for _, kind in pairs])
    if same.all() or not same.any():
        with pytest.raises(InputError, match="there must be pairs of the same class"):
            roc_summary(scores, same)
        return
    best = max(int(((scores >= threshold) == same).sum()) for threshold in (-9, *scores.tolist(), 9))
    assert int(((scores >= best_threshold(scores, same)) == same).sum()) == best
    apart = scores[same][:, None] - scores[~same]
    found = roc_summary(scores, same)
    assert found.auc == pytest.approx(float((apart > 0).double().mean() + (apart == 0).double().mean() / 2))
    assert 0 <= found.eer <= 1
    assert roc_summary(-scores, same).eer == pytest.approx(1 - found.eer)


def test_nan_similarities_are_refused() -> None:
    vectors = torch.ones(3, 2)
    vectors[1] = math.nan
    with pytest.raises(InputError, match="1 of 2 pairs have no finite similarity"):
        similarity(vectors, torch.tensor([[0, 1], [0, 2]]))


# --- embedding once ---------------------------------------------------------------------------------------------------


def tiny(characters: frozenset[Character], drawers: range = range(20)) -> Omniglot:
    """Pictures of 4 x 4 pixels, the same by all drawers, at random for every character."""
    shown = [character for character in sorted(characters) for _ in drawers]
    glyphs = torch.randint(0, 256, (len(characters), 4, 4), generator=torch.Generator().manual_seed(0))
    pictures = glyphs.to(torch.uint8).repeat_interleave(len(drawers), 0)
    return labelled(pictures, shown, torch.tensor(list(drawers)).repeat(len(characters)))


def test_turned_pictures_are_new_classes() -> None:
    picture = torch.tensor([[[1, 2], [3, 4]]], dtype=torch.uint8)
    pictures, labels = turned(picture, torch.tensor([5]), classes=10)
    assert labels.tolist() == [5, 15, 25, 35]
    assert pictures.tolist() == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


def test_embedding_keeps_characters_drawers_and_turns() -> None:
    omniglot = tiny(characters_of(["Korean", "Latin"]), range(3))
    every = embed_once(omniglot, lambda pictures: pictures.flatten(1), turns=ALL_TURNS, at_once=50)
    pictures, labels = turned(omniglot.pictures, omniglot.character, len(omniglot.characters))
    assert torch.equal(every.vectors, pictures.flatten(1).float())
    assert torch.equal(every.label, labels)
    part = every.only(Split(characters_of(["Latin"]), range(1, 3)), turns=(2,))
    assert {name.alphabet for name in part.characters} == {"Latin"}
    assert len(part) == 26 * 2
    assert torch.equal(part.vectors[5].view(4, 4), omniglot.pictures[40 * 3 + 2 * 3 + 2].rot90(2).float())
    with pytest.raises(
        InputError, match="659 characters of the split were not embedded; the first is Angelic/character01"
    ):
        every.only(SPLITS["evaluation"])


def test_an_embedding_of_another_shape_or_not_finite_is_refused() -> None:
    omniglot = tiny(characters_of(["Latin"]), range(1))
    with pytest.raises(InputError, match=r"the vectors of 26 pictures must have shape \(26, d\), not \(26, 4, 4\)"):
        embed_once(omniglot, lambda pictures: pictures.float())
    with pytest.raises(InputError, match="26 of 26 pictures have vectors that are not finite"):
        embed_once(omniglot, lambda pictures: pictures.flatten(1) / 0.0)


@pytest.mark.slow
def test_every_protocol_measures_and_every_picture_is_embedded_once() -> None:
    omniglot = tiny(SPLITS["evaluation"].characters | SPLITS["vinyals-test"].characters)
    seen: list[Tensor] = []

    def embed(pictures: Tensor) -> Tensor:
        seen.append(pictures)
        return pictures.flatten(1).float() - 128

    protocols = ("within", "all-way-659", "koch", "vinyals", "all-way-423", "all-way-1692")
    results = measure(by_embedding("pixel", embed), omniglot, protocols=protocols)
    assert sum(map(len, seen)) == len(omniglot) + 3 * 423 * 20
    assert [result.protocol for result in results] == [
        *["within"] * 4, "all-way-659", "koch", *["vinyals"] * 4, "all-way-423", "all-way-1692",
    ]  # fmt: skip
    assert all(result.accuracy == 1 for result in results if result.protocol != "koch")
    assert {result.tested for result in results} == {
        "evaluation: 659 classes, 20 drawers",
        "koch-like-test: 382 classes, 4 drawers",
        "vinyals-test: 1692 classes, 20 drawers, 4 turns",
        "vinyals-test: 423 classes, 20 drawers",
    }
    assert {result.leaking for result in results} == {0}


def test_lake_uses_the_embedding() -> None:
    def embed(pictures: Tensor) -> Tensor:
        return torch.eye(5)[pictures.flatten().long()]

    (result,) = measure(by_embedding("number", embed), None, numbered(), protocols=["lake"])
    assert result.accuracy == 1
    for metric in ("cosine", "euclidean"):
        assert lake(distance_by(embed, metric), numbered()).accuracy == 1
        assert float(distance_by(embed, metric)(torch.tensor([[[1]]]), torch.tensor([[[1]]]))) == pytest.approx(0)


def test_leaks_are_refused_before_anything_is_embedded() -> None:
    def embed(pictures: Tensor) -> Tensor:
        raise AssertionError("embedded")

    def knowing(split: str) -> Model:
        return by_embedding(split, embed, SPLITS[split].characters)

    omniglot = tiny(frozenset(NAMES))
    with pytest.raises(InputError, match=r"within: .* of 659 characters to test on were trained on"):
        measure(knowing("vinyals-train"), omniglot, protocols=["vinyals", "within"])
    with pytest.raises(InputError, match="382 of 382"):
        measure(knowing("evaluation"), omniglot, protocols=["lake"])
    with pytest.raises(InputError, match="no protocol 'santoro'; there are lake, lake-minimal, within"):
        measure(knowing("background"), omniglot, protocols=["santoro"])


def test_lake_minimal_is_for_models_trained_on_five_alphabets() -> None:
    def embed(pictures: Tensor) -> Tensor:
        return torch.eye(5)[pictures.flatten().long()]

    minimal = by_embedding("five", embed, SPLITS["minimal-1"].characters)
    (result,) = measure(minimal, None, numbered(), protocols=["lake-minimal"])
    assert (result.protocol, result.accuracy, result.leaking) == ("lake-minimal", 1, 0)
    for more in (frozenset[Character](), SPLITS["background"].characters):
        with pytest.raises(InputError, match="lake-minimal is for models trained on Balinese, Early_Aramaic"):
            measure(by_embedding("more", embed, more), None, numbered(), protocols=["lake-minimal"])


def test_a_distance_without_an_embedding_is_measured_by_lake_alone() -> None:
    (result,) = measure(Model("apart", apart), None, numbered(), protocols=["lake"])
    assert result.accuracy == 1
    for protocol in set(NEEDED) - {"lake", "lake-minimal"}:
        with pytest.raises(InputError, match="apart is a distance between pictures, not an embedding"):
            measure(Model("apart", apart), tiny(frozenset(NAMES)), protocols=[protocol])
