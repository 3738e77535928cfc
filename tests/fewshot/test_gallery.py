from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fewshot.calibration import Calibration, calibrate
from fewshot.estimators import softmax
from fewshot.gallery import Gallery, Vectors
from finetune.errors import InputError

WIDTH = 64


def unit(values: Any) -> Vectors:
    found = np.asarray(values, np.float64)
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True), np.float32)


def population(seed: Any, classes: int, each: int = 1) -> Vectors:
    """(classes, each, WIDTH): random directions that have a little in common, and noise around them."""
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(classes, 1, WIDTH))) + np.eye(WIDTH)[0]
    return unit(centres + 0.6 * unit(random.normal(size=(classes, each, WIDTH))))


def filled(examples: Vectors, **options: Any) -> Gallery:
    """A gallery of (classes, each, width)."""
    gallery = Gallery(examples.shape[2], **options)
    gallery.fill({f"class {at}": examples.shape[1] for at in range(len(examples))}, examples.reshape(-1, WIDTH))
    return gallery


def pair_calibration(mean: float, deviation: float = 0.1) -> Calibration:
    """Of pairs whose cosines are normally distributed."""
    random = np.random.default_rng(0)
    scores = np.concatenate([random.normal(0.9, 0.03, 500), random.normal(mean, deviation, 5000)]).clip(-1, 1)
    return calibrate(scores, np.arange(5500) < 500)


def contents(gallery: Gallery) -> tuple[Any, ...]:
    threshold = gallery.threshold_for() if gallery.labels else None
    trials, vectors = gallery.trials
    return (
        gallery.counts,
        gallery.examples.tolist(),
        gallery.background.tolist(),
        trials,
        vectors.tolist(),
        repr(threshold),
    )


# --- how similar ------------------------------------------------------------------------------------------------------


def test_one_example_s_similarity_is_the_cosine() -> None:
    examples, queries = population(0, 7)[:, 0], population(1, 9)[:, 0]
    np.testing.assert_allclose(filled(examples[:, None]).similarity(queries), queries @ examples.T, atol=1e-6)


def test_of_several_examples_it_is_the_cosine_with_their_mean() -> None:
    examples, queries = population(0, 5, 3), population(1, 9)[:, 0]
    np.testing.assert_allclose(filled(examples).similarity(queries), queries @ unit(examples.mean(1)).T, atol=1e-6)


def test_nothing_is_more_similar_than_1() -> None:
    examples = population(0, 300)
    assert filled(examples).similarity(examples[:, 0]).max() <= 1
    assert filled(examples).similarity(examples[:, 0] * np.float32(1.0009)).max() <= 1


def test_more_at_once_than_the_memory_holds_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    examples, queries = population(0, 6, 3), population(1, 50)[:, 0]
    at_once = filled(examples)
    similarity = at_once.similarity(queries)
    monkeypatch.setattr("fewshot.gallery._AT_ONCE", 40)
    in_parts = filled(examples)
    np.testing.assert_allclose(in_parts.similarity(queries), similarity, atol=1e-6)
    assert in_parts.threshold == pytest.approx(at_once.threshold, abs=1e-5)
    assert in_parts.alike(0.2) == at_once.alike(0.2)


def test_the_very_same_picture_has_a_holder() -> None:
    examples = population(0, 6, 2)
    gallery = filled(examples)
    assert gallery.holders(examples[:, 1]) == list(gallery.labels)
    assert gallery.holders(population(1, 3)[:, 0]) == [None] * 3
    assert Gallery(WIDTH).holders(examples[0]) == [None, None]


def test_what_is_given_stays_the_caller_s() -> None:
    examples, queries = population(0, 3), population(1, 3)[:, 0]
    gallery = filled(examples)
    before = gallery.similarity(queries)
    examples[:] = 0
    assert np.array_equal(gallery.similarity(queries), before)


# --- what it means ----------------------------------------------------------------------------------------------------

GALLERIES = [
    filled(population(seed, classes, each), false_accept_rate=rate, calibration=calibration)
    for seed, (classes, each) in enumerate([(2, 1), (2, 3), (30, 1), (30, 4)])
    for rate in (0.01, 0.3)
    for calibration in (None, pair_calibration(0.5))
]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(GALLERIES), st.integers(0, 1000))
def test_scores_rise_with_similarity_and_agree_with_the_threshold(gallery: Gallery, seed: int) -> None:
    queries = np.concatenate([population([9, seed], 20)[:, 0], gallery.examples[:5], -gallery.examples[:5]])
    likeness, threshold = gallery.likeness(queries), gallery.threshold
    assert threshold is not None
    assert gallery.false_accept_rate is not None
    similarity, score = likeness.similarity.astype(np.float64).ravel(), likeness.score.ravel()
    assert score.min() >= 0
    assert score.max() <= 1
    assert (np.diff(score[np.argsort(similarity)]) >= -1e-12).all()
    sure = (np.abs(similarity - threshold) > 1e-6) & (np.abs(score - (1 - gallery.false_accept_rate)) > 1e-9)
    reached = similarity >= threshold
    assert np.array_equal(reached[sure], (score >= 1 - gallery.false_accept_rate)[sure])


def test_softmax_is_sharper_the_lower_the_temperature() -> None:
    similarity = [[0.9, 0.5, 0.1], [0.2, 0.2, 0.2]]
    cold, warm = softmax(similarity, 0.01), softmax(similarity, 1.0)
    np.testing.assert_allclose(np.concatenate([cold, warm]).sum(1), 1)
    np.testing.assert_allclose(cold[1], 1 / 3)
    assert cold[0, 0] > 0.999 > 0.7 > warm[0, 0] > warm[0, 1] > warm[0, 2]


def false_accepts(classes: int, rate: float, calibration: Calibration | None, each: int = 1) -> float:
    """Share of pictures of other classes that are taken for an enrolled one, over many galleries."""
    shares = []
    for seed in range(25):
        everyone = population([seed, classes], classes + 300, each)
        gallery = filled(everyone[:classes], false_accept_rate=rate, calibration=calibration)
        nearest = gallery.similarity(everyone[classes:, 0]).max(1).astype(np.float64)
        assert gallery.threshold is not None
        shares.append((nearest >= gallery.threshold).mean())
    return float(np.mean(shares))


@pytest.fixture(scope="module")
def measured() -> Calibration:
    """What is known of an encoder: pairs of classes that are never enrolled."""
    pictures = population(1234, 300, 2)
    first, second = np.random.default_rng(0).integers(0, 300, (2, 20_000))
    different = (pictures[first, 0] * pictures[second, 1]).sum(1)[first != second]
    same = (pictures[:, 0] * pictures[:, 1]).sum(1)
    return calibrate(np.concatenate([same, different]), np.arange(len(same) + len(different)) < len(same))


@pytest.mark.parametrize("classes", [1, 5, 20, 100])
def test_as_many_unknown_are_accepted_as_was_asked(classes: int, measured: Calibration) -> None:
    assert false_accepts(classes, 0.1, measured) == pytest.approx(0.1, abs=0.05)


@pytest.mark.parametrize(("classes", "each"), [(3, 1), (3, 10), (20, 1), (100, 1), (100, 5)])
def test_where_the_encoder_carries_nothing_the_examples_tell(classes: int, each: int) -> None:
    assert false_accepts(classes, 0.1, None, each) == pytest.approx(0.1, abs=0.08)


def test_scores_of_any_scale_are_measured() -> None:
    """Encoders whose cosines all lie near 1 are no exception."""
    shares = []
    for seed in range(10):
        everyone = unit(population([seed, 3], 320) + 20 * np.eye(WIDTH)[1])
        gallery = filled(everyone[:20], false_accept_rate=0.1)
        assert gallery.threshold is not None
        shares.append((gallery.similarity(everyone[20:, 0]).max(1) >= gallery.threshold).mean())
    assert np.mean(shares) == pytest.approx(0.1, abs=0.07)


@pytest.mark.parametrize("each", [3, 10])
def test_more_examples_never_make_it_accept_less(each: int) -> None:
    """Of what is enrolled, at the same rate."""
    accepted = []
    for examples in (1, each):
        shares = []
        for seed in range(10):
            classes = population([seed, 5], 6, 40)
            gallery = filled(classes[:, :examples], false_accept_rate=0.1)
            nearest = gallery.similarity(classes[:, 20:].reshape(-1, WIDTH)).max(1)
            assert gallery.threshold is not None
            shares.append((nearest >= gallery.threshold).mean())
        accepted.append(np.mean(shares))
    assert accepted[1] >= accepted[0]
    assert accepted[1] > 0.5


def test_one_class_alone_gives_no_threshold_and_still_the_nearest() -> None:
    gallery = filled(population(0, 1))
    likeness = gallery.likeness(population(1, 2)[:, 0])
    assert gallery.threshold is None
    assert gallery.threshold_for(0.3) is None
    assert likeness.similarity.shape == (2, 1)
    assert np.isnan(likeness.score).all()


def test_one_class_and_background_give_a_threshold() -> None:
    gallery = filled(population(0, 1), false_accept_rate=0.1)
    gallery.add_background(population(1, 80)[:, 0])
    assert gallery.threshold is not None
    accepted = gallery.similarity(population(2, 3000)[:, 0]).max(1) >= gallery.threshold
    assert accepted.mean() == pytest.approx(0.1, abs=0.06)


@pytest.mark.parametrize("calibration", [None, pair_calibration(0.5)])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.2])
def test_80_background_pictures_outweigh_what_was_thought_before(rate: float, calibration: Calibration | None) -> None:
    gallery = filled(population(0, 5), false_accept_rate=rate, calibration=calibration)
    gallery.add_background(population(1, 80)[:, 0])
    assert gallery.threshold is not None
    accepted = gallery.similarity(population(2, 3000)[:, 0]).max(1) >= gallery.threshold
    assert accepted.mean() == pytest.approx(rate, abs=0.07)


def test_a_class_of_many_examples_says_as_much_as_another() -> None:
    examples = population(0, 5)
    one, other = filled(examples, false_accept_rate=0.2), filled(examples, false_accept_rate=0.2)
    one.enrol("class 1", examples[1].repeat(50, 0))
    other.enrol("class 2", examples[2].repeat(50, 0))
    assert one.threshold == pytest.approx(other.threshold, abs=0.02)


def test_what_is_known_before_matters_with_one_class_and_hardly_with_hundreds() -> None:
    def apart(classes: int) -> float:
        low, high = (
            filled(population(0, classes), false_accept_rate=0.05, calibration=pair_calibration(mean)).threshold or 0.0
            for mean in (0.1, 0.6)
        )
        return high - low

    assert apart(1) > 0.3
    assert apart(500) < apart(1) / 2


# --- equal errors, and what to expect ---------------------------------------------------------------------------------


def test_without_a_rate_as_many_unknown_are_accepted_as_known_are_refused() -> None:
    refused, accepted = [], []
    for seed in range(20):
        classes = population([seed, 6], 60, 20)
        gallery = filled(classes[:20, :10])
        threshold = gallery.threshold_for()
        assert threshold is not None
        assert threshold.chosen_by == "equal error"
        own = gallery.similarity(classes[:20, 10:].reshape(-1, WIDTH))[np.arange(200), np.arange(20).repeat(10)]
        refused.append((own < threshold.value).mean())
        accepted.append((gallery.similarity(classes[20:, 0]).max(1) >= threshold.value).mean())
    assert np.mean(refused) == pytest.approx(np.mean(accepted), abs=0.05)
    assert np.mean(accepted) <= 0.2


def test_the_refusals_that_are_expected_are_those_that_come() -> None:
    inside = []
    for seed in range(20):
        classes = population([seed, 7], 8, 40)
        gallery = filled(classes[:, :10], false_accept_rate=0.05)
        threshold = gallery.threshold_for()
        assert threshold is not None
        assert threshold.refusals is not None
        own = gallery.similarity(classes[:, 10:].reshape(-1, WIDTH))[np.arange(240), np.arange(8).repeat(30)]
        inside.append(threshold.refusals.low <= (own < threshold.value).mean() <= threshold.refusals.high)
    assert np.mean(inside) >= 0.8


def test_where_no_class_has_two_examples_refusals_are_not_known_but_for_trials() -> None:
    classes = population(0, 3, 20)
    gallery = filled(classes[:, :1])
    before = gallery.threshold_for()
    assert before is not None
    assert before.refusals is None
    assert before.false_accepts is not None
    assert before.false_accepts.value == pytest.approx(0.2, abs=1e-6)
    for number in range(3):
        gallery.add_trials(f"class {number}", classes[number, 1:])
    after = gallery.threshold_for()
    assert after is not None
    assert after.refusals is not None
    own = gallery.similarity(classes[:, 1:].reshape(-1, WIDTH))[np.arange(57), np.arange(3).repeat(19)]
    assert after.refusals.value == pytest.approx((own < after.value).mean(), abs=0.1)


def test_a_given_similarity_is_told_what_it_leads_to() -> None:
    gallery = filled(population(0, 20, 3))
    rate = gallery.threshold_for(0.1)
    assert rate is not None
    given = gallery.threshold_at(rate.value)
    assert (given.value, given.chosen_by) == (rate.value, "similarity")
    assert (given.false_accepts, given.refusals) == (rate.false_accepts, rate.refusals)


def test_classes_that_are_too_alike_are_named_the_most_alike_first() -> None:
    examples = population(0, 4)
    gallery = filled(examples)
    gallery.enrol("twin", unit(examples[1] + 0.1 * examples[3]))
    gallery.enrol("sister", unit(examples[2] + 0.4 * examples[0]))
    pairs = gallery.alike(0.8)
    assert [(pair.label, pair.other) for pair in pairs] == [("class 1", "twin"), ("class 2", "sister")]
    assert pairs[0].similarity > pairs[1].similarity >= 0.8


# --- whatever happened before -----------------------------------------------------------------------------------------

# Few directions, so that the same ones come again, also as another class.
POOL = unit(np.random.default_rng(0).normal(size=(12, 5)) + 0.5)
SOME = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=3)


class History(RuleBasedStateMachine):
    """Enrolled and forgotten at random, beside what a dictionary remembers of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gallery = Gallery(5, false_accept_rate=0.1)
        self.kept: dict[str, list[int]] = {}
        self.background: list[int] = []

    @rule(label=st.sampled_from("abcdef"), some=SOME)
    def enrol(self, label: str, some: list[int]) -> None:
        self.gallery.enrol(label, POOL[some])
        self.kept.setdefault(label, []).extend(some)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        label = data.draw(st.sampled_from(sorted(self.kept)))
        self.gallery.forget(label)
        del self.kept[label]

    @rule(some=SOME)
    def add_background(self, some: list[int]) -> None:
        self.gallery.add_background(POOL[some])
        self.background += some

    @invariant()
    def is_as_one_made_at_once(self) -> None:
        fresh = Gallery(5, false_accept_rate=0.1)
        fresh.fill(
            {label: len(some) for label, some in self.kept.items()},
            POOL[[i for some in self.kept.values() for i in some]] if self.kept else np.empty((0, 5)),
        )
        if self.background:
            fresh.add_background(POOL[self.background])
        assert self.gallery.labels == fresh.labels == tuple(self.kept)
        assert self.gallery.counts == fresh.counts
        assert np.array_equal(self.gallery.examples, fresh.examples)
        assert np.array_equal(self.gallery.background, fresh.background)
        queries = unit(np.random.default_rng(1).normal(size=(20, 5)))
        np.testing.assert_allclose(self.gallery.similarity(queries), fresh.similarity(queries), atol=1e-5)
        if self.kept:
            ours_from, theirs_from = self.gallery.threshold, fresh.threshold
            assert (ours_from is None) == (theirs_from is None) == (len(self.kept) == 1 and not self.background)
            if ours_from is not None:
                assert ours_from == pytest.approx(theirs_from, abs=1e-5)
            ours, theirs = self.gallery.likeness(queries).score, fresh.likeness(queries).score
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


History.TestCase.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
test_after_any_history_a_gallery_is_as_one_made_at_once = History.TestCase


# --- what is refused --------------------------------------------------------------------------------------------------

ONE = POOL[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gallery: gallery.enrol("", ONE), "a label is a text of at least one character, not ''"),
        (lambda gallery: gallery.enrol(7, ONE), "a label is a text of at least one character, not 7"),
        (lambda gallery: gallery.enrol("a", ONE[:, :4]), r"vectors of shape \(1, 4\); \(n, 5\) is needed"),
        (lambda gallery: gallery.enrol("a", ONE[0]), r"vectors of shape \(5,\)"),
        (lambda gallery: gallery.enrol("a", ONE * 2), "vector 0 is of length 2; unit vectors are needed"),
        (lambda gallery: gallery.enrol("a", np.concatenate([ONE, ONE * 0])), "vector 1 is of length 0"),
        (lambda gallery: gallery.enrol("a", ONE * np.nan), "vector 0 is of length nan"),
        (lambda gallery: gallery.enrol("new", ONE[:0]), "new: at least one example is needed"),
        (lambda gallery: gallery.add_background(ONE * 2), "vector 0 is of length 2"),
        (lambda gallery: gallery.add_background(ONE * np.inf), "vector 0 is of length inf"),
        (lambda gallery: gallery.forget("stranger"), "'stranger' is not enrolled"),
        (lambda gallery: gallery.add_trials("stranger", ONE), "'stranger' is not enrolled"),
        (lambda gallery: gallery.add_trials("a", ONE * 2), "vector 0 is of length 2"),
        (lambda gallery: gallery.threshold_for(1.5), "must be between 0 and 1, not 1.5"),
        (lambda gallery: gallery.similarity(ONE * np.nan), "vector 0 is of length nan"),
        (lambda gallery: gallery.likeness(ONE[:, :4]), "vectors of shape"),
        (lambda gallery: gallery.holders(ONE * 2), "vector 0 is of length 2"),
        (lambda gallery: gallery.fill({"c": 1}, ONE), "a gallery is filled once, while it is empty"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(change: Any, message: str) -> None:
    gallery = Gallery(5)
    gallery.fill({"a": 2, "b": 1}, POOL[:3])
    gallery.add_background(POOL[3:5])
    before = contents(gallery)
    with pytest.raises(InputError, match=message) as caught:
        change(gallery)
    assert "\n" not in str(caught.value)
    assert contents(gallery) == before


@pytest.mark.parametrize(
    "counts", [{"a": 1}, {"a": 3}, {"a": 2, "b": 0}, {"": 2}, {"a": 1.5, "b": 0.5}, {"a": 2.0}, {}]
)
def test_counts_that_do_not_go_with_the_examples_are_refused(counts: dict[str, int]) -> None:
    gallery = Gallery(5)
    with pytest.raises(InputError):
        gallery.fill(counts, POOL[:2])
    assert contents(gallery) == contents(Gallery(5))


def test_with_nothing_enrolled_there_is_no_answer() -> None:
    gallery = Gallery(5)
    for question in (lambda: gallery.likeness(ONE), lambda: gallery.threshold, lambda: gallery.threshold_at(0.5)):
        with pytest.raises(InputError, match="nothing is enrolled yet"):
            question()
    gallery.enrol("a", ONE)
    gallery.forget("a")
    with pytest.raises(InputError, match="nothing is enrolled yet"):
        gallery.likeness(ONE)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, float("nan")])
def test_rates_that_are_no_shares_are_refused(rate: float) -> None:
    with pytest.raises(InputError, match="must be between 0 and 1"):
        Gallery(5, false_accept_rate=rate)


# --- fast enough ------------------------------------------------------------------------------------------------------


def test_a_class_is_enrolled_and_forgotten_among_1000_in_milliseconds() -> None:
    gallery = Gallery(256)
    examples = unit(np.random.default_rng(0).normal(size=(1100, 256)))
    gallery.fill({str(number): 1 for number in range(1000)}, examples[:1000])
    took = []
    for number, example in enumerate(examples[1000:1020]):
        start = time.perf_counter()
        gallery.enrol("new", example[None])
        gallery.forget("new" if number % 2 else str(number))
        if not number % 2:
            gallery.forget("new")
        took.append(time.perf_counter() - start)
    assert np.median(took) < 0.05
