from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from made_gallery import WIDTH, filled, population, unit

from fewshot.recognition.gallery import Gallery
from finetune.errors import InputError


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


def test_the_similarity_to_one_example_is_the_cosine() -> None:
    examples, queries = population(0, 7)[:, 0], population(1, 9)[:, 0]
    np.testing.assert_allclose(filled(examples[:, None]).similarity(queries), queries @ examples.T, atol=1e-6)


def test_the_similarity_to_several_examples_is_the_cosine_with_their_mean() -> None:
    examples, queries = population(0, 5, 3), population(1, 9)[:, 0]
    np.testing.assert_allclose(filled(examples).similarity(queries), queries @ unit(examples.mean(1)).T, atol=1e-6)


def test_similarities_are_at_most_1() -> None:
    examples = population(0, 300)
    assert filled(examples).similarity(examples[:, 0]).max() <= 1
    assert filled(examples).similarity(examples[:, 0] * np.float32(1.0009)).max() <= 1


def test_similarities_in_blocks_equal_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    examples, queries = population(0, 6, 3), population(1, 50)[:, 0]
    at_once = filled(examples)
    similarity = at_once.similarity(queries)
    monkeypatch.setattr("fewshot.recognition.similarities._AT_ONCE", 40)
    in_parts = filled(examples)
    np.testing.assert_allclose(in_parts.similarity(queries), similarity, atol=1e-6)
    assert in_parts.threshold == pytest.approx(at_once.threshold, abs=1e-5)
    assert in_parts.alike(0.2) == at_once.alike(0.2)


def test_holders_finds_identical_pictures() -> None:
    examples = population(0, 6, 2)
    gallery = filled(examples)
    assert gallery.holders(examples[:, 1]) == list(gallery.labels)
    assert gallery.holders(population(1, 3)[:, 0]) == [None] * 3
    assert Gallery(WIDTH).holders(examples[0]) == [None, None]


def test_arguments_are_copied() -> None:
    examples, queries = population(0, 3), population(1, 3)[:, 0]
    gallery = filled(examples)
    before = gallery.similarity(queries)
    examples[:] = 0
    assert np.array_equal(gallery.similarity(queries), before)


# --- any history ------------------------------------------------------------------------------------------------------

# Few directions, so that the same ones come again, also as another class.
POOL = unit(np.random.default_rng(0).normal(size=(12, 5)) + 0.5)
SOME = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=3)


class History(RuleBasedStateMachine):
    """Random enrolments and removals, compared with a dictionary."""

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


History.TestCase.settings = settings(max_examples=25, stateful_step_count=15)
test_after_any_history_a_gallery_is_as_one_made_at_once = History.TestCase


# --- errors -----------------------------------------------------------------------------------------------------------

ONE = POOL[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gallery: gallery.enrol("", ONE), "a label must be a text that is not empty, not ''"),
        (lambda gallery: gallery.enrol(7, ONE), "a label must be a text that is not empty, not 7"),
        (lambda gallery: gallery.enrol("a", ONE[:, :4]), r"vectors must have shape \(n, 5\), not \(1, 4\)"),
        (lambda gallery: gallery.enrol("a", ONE[0]), r"vectors must have shape \(n, 5\), not \(5,\)"),
        (lambda gallery: gallery.enrol("a", ONE * 2), "vector 0 has length 2; the length must be 1"),
        (lambda gallery: gallery.enrol("a", np.concatenate([ONE, ONE * 0])), "vector 1 has length 0"),
        (lambda gallery: gallery.enrol("a", ONE * np.nan), "vector 0 has length nan"),
        (lambda gallery: gallery.enrol("new", ONE[:0]), "new needs at least one example"),
        (lambda gallery: gallery.add_background(ONE * 2), "vector 0 has length 2"),
        (lambda gallery: gallery.add_background(ONE * np.inf), "vector 0 has length inf"),
        (lambda gallery: gallery.forget("stranger"), "'stranger' is not enrolled"),
        (lambda gallery: gallery.add_trials("stranger", ONE), "'stranger' is not enrolled"),
        (lambda gallery: gallery.add_trials("a", ONE * 2), "vector 0 has length 2"),
        (lambda gallery: gallery.threshold_for(1.5), "must be between 0 and 1, not 1.5"),
        (lambda gallery: gallery.similarity(ONE * np.nan), "vector 0 has length nan"),
        (lambda gallery: gallery.likeness(ONE[:, :4]), "vectors must have shape"),
        (lambda gallery: gallery.holders(ONE * 2), "vector 0 has length 2"),
        (lambda gallery: gallery.fill({"c": 1}, ONE), "only an empty gallery can be filled"),
    ],
)
def test_invalid_changes_are_refused_and_change_nothing(change: Any, message: str) -> None:
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
def test_counts_that_do_not_match_the_examples_are_refused(counts: dict[str, int]) -> None:
    gallery = Gallery(5)
    with pytest.raises(InputError):
        gallery.fill(counts, POOL[:2])
    assert contents(gallery) == contents(Gallery(5))


def test_an_empty_gallery_gives_no_answer() -> None:
    gallery = Gallery(5)
    for question in (lambda: gallery.likeness(ONE), lambda: gallery.threshold, lambda: gallery.threshold_at(0.5)):
        with pytest.raises(InputError, match="nothing is enrolled"):
            question()
    gallery.enrol("a", ONE)
    gallery.forget("a")
    with pytest.raises(InputError, match="nothing is enrolled"):
        gallery.likeness(ONE)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, float("nan")])
def test_rates_outside_0_to_1_are_refused(rate: float) -> None:
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
