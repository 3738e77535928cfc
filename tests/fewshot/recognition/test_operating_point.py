from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_gallery import WIDTH, filled, pair_calibration, population, unit

from fewshot.evaluation.threshold import Calibration, calibrate
from fewshot.recognition.gallery import Gallery

GALLERIES = [
    filled(population(seed, classes, each), false_accept_rate=rate, calibration=calibration)
    for seed, (classes, each) in enumerate([(2, 1), (2, 3), (30, 1), (30, 4)])
    for rate in (0.01, 0.3)
    for calibration in (None, pair_calibration(0.5))
]


@settings(max_examples=60)
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
    """A calibration from pairs of classes that are never enrolled."""
    pictures = population(1234, 300, 2)
    first, second = np.random.default_rng(0).integers(0, 300, (2, 20_000))
    different = (pictures[first, 0] * pictures[second, 1]).sum(1)[first != second]
    same = (pictures[:, 0] * pictures[:, 1]).sum(1)
    return calibrate(np.concatenate([same, different]), np.arange(len(same) + len(different)) < len(same))


@pytest.mark.parametrize("classes", [1, 5, 20, 100])
def test_the_share_of_accepted_unknown_pictures_is_the_given_rate(classes: int, measured: Calibration) -> None:
    assert false_accepts(classes, 0.1, measured) == pytest.approx(0.1, abs=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "each"), [(3, 1), (3, 10), (20, 1), (100, 1), (100, 5)])
def test_without_a_calibration_the_examples_set_the_threshold(classes: int, each: int) -> None:
    assert false_accepts(classes, 0.1, None, each) == pytest.approx(0.1, abs=0.08)


def test_the_estimate_adapts_to_any_scale_of_similarity() -> None:
    """Also for encoders whose cosines are all close to 1."""
    shares = []
    for seed in range(10):
        everyone = unit(population([seed, 3], 320) + 20 * np.eye(WIDTH)[1])
        gallery = filled(everyone[:20], false_accept_rate=0.1)
        assert gallery.threshold is not None
        shares.append((gallery.similarity(everyone[20:, 0]).max(1) >= gallery.threshold).mean())
    assert np.mean(shares) == pytest.approx(0.1, abs=0.07)


@pytest.mark.parametrize("each", [3, 10])
def test_more_examples_do_not_lower_acceptance(each: int) -> None:
    """For enrolled classes, at the same rate."""
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


def test_one_class_alone_has_no_threshold_but_a_nearest_class() -> None:
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
def test_80_background_pictures_outweigh_the_prior(rate: float, calibration: Calibration | None) -> None:
    gallery = filled(population(0, 5), false_accept_rate=rate, calibration=calibration)
    gallery.add_background(population(1, 80)[:, 0])
    assert gallery.threshold is not None
    accepted = gallery.similarity(population(2, 3000)[:, 0]).max(1) >= gallery.threshold
    assert accepted.mean() == pytest.approx(rate, abs=0.07)


def test_every_class_has_the_same_weight() -> None:
    examples = population(0, 5)
    one, other = filled(examples, false_accept_rate=0.2), filled(examples, false_accept_rate=0.2)
    one.enrol("class 1", examples[1].repeat(50, 0))
    other.enrol("class 2", examples[2].repeat(50, 0))
    assert one.threshold == pytest.approx(other.threshold, abs=0.02)


def test_the_calibration_matters_with_one_class_and_hardly_with_hundreds() -> None:
    def apart(classes: int) -> float:
        low, high = (
            filled(population(0, classes), false_accept_rate=0.05, calibration=pair_calibration(mean)).threshold or 0.0
            for mean in (0.1, 0.6)
        )
        return high - low

    assert apart(1) > 0.3
    assert apart(500) < apart(1) / 2


# --- equal errors, and what to expect ---------------------------------------------------------------------------------


def test_without_a_rate_the_two_errors_are_equal() -> None:
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


def test_expected_refusals_match_measured_ones() -> None:
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


def test_refusals_need_two_examples_of_a_class_or_trials() -> None:
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


def test_threshold_at_gives_the_expected_errors() -> None:
    gallery = filled(population(0, 20, 3))
    rate = gallery.threshold_for(0.1)
    assert rate is not None
    given = gallery.threshold_at(rate.value)
    assert (given.value, given.chosen_by) == (rate.value, "similarity")
    assert (given.false_accepts, given.refusals) == (rate.false_accepts, rate.refusals)


def test_similar_classes_are_listed_the_most_similar_first() -> None:
    examples = population(0, 4)
    gallery = filled(examples)
    gallery.enrol("twin", unit(examples[1] + 0.1 * examples[3]))
    gallery.enrol("sister", unit(examples[2] + 0.4 * examples[0]))
    pairs = gallery.alike(0.8)
    assert [(pair.label, pair.other) for pair in pairs] == [("class 1", "twin"), ("class 2", "sister")]
    assert pairs[0].similarity > pairs[1].similarity >= 0.8
