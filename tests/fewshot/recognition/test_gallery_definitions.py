"""What a gallery computes from its examples, trials and background, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from made_gallery import WIDTH, filled, pair_calibration, population, unit

from fewshot.evaluation.threshold import Calibration
from fewshot.recognition.gallery import Gallery
from fewshot.recognition.operating_point import choose, expected, known_scores
from fewshot.recognition.unknowns import Samples, estimate
from finetune.errors import InputError

COUNTS = (3, 1, 2, 4)


def mixed(calibration: Calibration | None = None) -> tuple[Gallery, list[np.ndarray]]:
    """A gallery of classes with different numbers of examples, and these examples."""
    examples = [population([7, at], 1, count)[0] for at, count in enumerate(COUNTS)]
    gallery = Gallery(WIDTH, calibration=calibration)
    for at, vectors in enumerate(examples):
        gallery.enrol(f"class {at}", vectors)
    return gallery, examples


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("calibration", [None, pair_calibration(0.5)])
def test_expected_errors_come_from_rivals_own_examples_trials_and_background(calibration: Calibration | None) -> None:
    gallery, examples = mixed(calibration)
    trials, background = population(8, 1, 3)[0], population(9, 5)[:, 0]
    gallery.add_trials("class 2", trials[:1])
    gallery.fill_trials(["class 1", "class 3"], trials[1:])
    gallery.add_background(background)

    means = [vectors.astype(np.float64).mean(0) for vectors in examples]
    classes = np.repeat(np.arange(4), COUNTS)
    rivals = [
        max(cosine(example, means[other]) for other in range(4) if other != of)
        for of, vectors in enumerate(examples)
        for example in vectors
    ]
    own = [
        (cosine(vectors[at], np.delete(vectors, at, 0).astype(np.float64).sum(0)), of)
        for of, vectors in enumerate(examples)
        for at in range(len(vectors))
        if len(vectors) > 1
    ] + [(cosine(trial, means[of]), of) for trial, of in zip(trials, (2, 1, 3), strict=True)]
    nearest = np.array([max(cosine(vector, mean) for mean in means) for vector in background])
    unknown = estimate(calibration, 4, Samples(np.array(rivals), classes, 3), nearest)
    known = known_scores(calibration, Samples(np.array([c for c, _ in own]), np.array([of for _, of in own]), 4))
    assert unknown is not None

    for at in (0.2, 0.5, 0.7, 0.9):
        found, wanted = gallery.threshold_at(at), expected(at, "similarity", unknown, known)
        assert (found.value, found.chosen_by, found.refusals_measured) == (at, "similarity", True)
        assert found.false_accepts == pytest.approx(wanted.false_accepts, abs=1e-6)
        assert found.refusals == pytest.approx(wanted.refusals, abs=1e-6)
    for rate in (None, 0.05):
        chosen, by_hand = gallery.threshold_for(rate), choose(unknown, known, rate)
        assert chosen is not None
        assert by_hand is not None
        assert (chosen.value, chosen.chosen_by) == (pytest.approx(by_hand.value, abs=1e-5), by_hand.chosen_by)
    queries = population(10, 6)[:, 0]
    np.testing.assert_allclose(gallery.likeness(queries).score, 1 - unknown.at(gallery.similarity(queries)), atol=1e-5)


def test_the_rate_of_the_gallery_is_used_unless_another_is_given() -> None:
    gallery = filled(population(0, 20), false_accept_rate=0.3)
    own, other = gallery.threshold_for(), gallery.threshold_for(0.01)
    assert own is not None
    assert other is not None
    assert own == gallery.threshold_for(0.3)
    assert own.chosen_by == other.chosen_by == "rate"
    assert other.value > own.value + 0.05
    assert gallery.threshold == own.value
    gallery.false_accept_rate = None
    free = gallery.threshold_for()
    assert free is not None
    assert free != own


def test_similar_classes_are_those_of_a_plain_loop() -> None:
    gallery, examples = mixed()
    means = [unit(vectors.mean(0)) for vectors in examples]

    def alike(one: int, other: int) -> float:
        both = [[cosine(v, means[b]) for v in examples[a]] for a, b in ((one, other), (other, one))]
        return max(float(np.mean(side)) for side in both)

    table = {(f"class {a}", f"class {b}"): alike(a, b) for a in range(4) for b in range(a + 1, 4)}
    found = gallery.alike(-1)
    assert {(pair.label, pair.other): pytest.approx(pair.similarity, abs=1e-6) for pair in found} == table
    assert [pair.similarity for pair in found] == sorted((pair.similarity for pair in found), reverse=True)
    assert gallery.alike(found[2].similarity) == found[:3]
    assert gallery.alike(1.1) == []
    assert Gallery(WIDTH).alike(-1) == filled(population(0, 1)).alike(-1) == []
    two = population(0, 2)
    assert len(filled(two).alike(-1)) == 1


def test_holders_tells_held_pictures_from_others() -> None:
    gallery, examples = mixed()
    near = unit(examples[2][1] + 0.02 * population(3, 1)[0, 0])
    queries = np.stack([examples[3][2], population(11, 1)[0, 0], examples[0][0], near])
    assert gallery.holders(queries) == ["class 3", None, "class 0", None]
    assert gallery.holders(queries[:0]) == []


def test_opposite_examples_are_similar_to_nothing() -> None:
    gallery, examples = mixed()
    gallery.enrol("opposite", np.stack([examples[0][0], -examples[0][0]]))
    similarity = gallery.similarity(examples[0])
    assert (similarity[:, 4] == 0).all()
    assert np.isfinite(similarity).all()
    found = gallery.threshold_at(0.5)
    assert found.refusals is not None
    assert np.isfinite(found.refusals.value)


def test_trials_go_with_their_class() -> None:
    gallery, _ = mixed()
    trials = population(8, 1, 4)[0]
    gallery.add_trials("class 1", trials[:1])
    gallery.fill_trials(("class 3", "class 1"), trials[1:3])
    gallery.add_trials("class 0", trials[3:])
    gallery.forget("class 1")
    labels, vectors = gallery.trials
    assert labels == ("class 3", "class 0")
    assert np.array_equal(vectors, trials[[1, 3]])
    for given, message in (
        (["class 0"], "1 labels do not match 2 vectors of trials"),
        (["class 0", "class 1"], "'class 1' is not enrolled"),
    ):
        with pytest.raises(InputError, match=message):
            gallery.fill_trials(given, trials[:2])
    assert gallery.trials[0] == labels
    before = gallery.threshold_at(0.5).refusals
    gallery.add_trials("class 0", -gallery.examples[:1])
    after = gallery.threshold_at(0.5).refusals
    assert before is not None
    assert after is not None
    assert after.value > before.value


def test_a_count_must_be_a_whole_number_above_0() -> None:
    for counts in ({"a": True, "b": 1}, {"a": 3, "b": -1}):
        with pytest.raises(InputError, match="2 examples do not match the counts"):
            Gallery(WIDTH).fill(counts, population(0, 2)[:, 0])
    with pytest.raises(InputError, match=r"30 examples do not match the counts \[1, 1, 1, 1, 1, 1, 1, 1, 1, 1\]$"):
        Gallery(WIDTH).fill({str(at): 1 for at in range(20)}, population(0, 30)[:, 0])


def test_lengths_of_1_within_a_thousandth_are_taken() -> None:
    example = population(0, 1)[0]
    for length in (0.9992, 1.0008):
        Gallery(WIDTH).enrol("a", example * np.float32(length))
    for length in (0.9988, 1.0012):
        with pytest.raises(InputError, match="vector 0 has length"):
            Gallery(WIDTH).enrol("a", example * np.float32(length))
    with pytest.raises(InputError, match="vector 0 has length inf"):
        Gallery(WIDTH).enrol("a", np.full((1, WIDTH), 1e38, np.float32))
