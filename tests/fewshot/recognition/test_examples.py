from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from made_gallery import WIDTH, unit

from fewshot.recognition.examples import Examples
from fewshot.recognition.gallery import Gallery


def random(n: int, seed: int) -> Any:
    return unit(np.random.default_rng(seed).normal(size=(n, WIDTH)))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(["add", "add", "new", "read", "forget"]), st.integers(0, 9)), max_size=40))
def test_any_order_of_changes_gives_the_vectors_sorted_by_class(changes: list[tuple[str, int]]) -> None:
    examples, model = Examples(WIDTH), list[list[Any]]()
    for number, (change, of) in enumerate(changes):
        if change == "new" or (change == "add" and not model):
            model.append([])
            change, of = "add", len(model) - 1
        if change == "add":
            vectors = random(1 + number % 3, number)
            examples.add(of % len(model), vectors)
            model[of % len(model)] += list(vectors)
        elif change == "forget" and model:
            examples.forget(of % len(model))
            del model[of % len(model)]
        elif change == "read":
            assert len(examples.vectors) == len(examples)
    assert examples.counts == [len(vectors) for vectors in model]
    assert examples.classes.tolist() == [of for of, vectors in enumerate(model) for _ in vectors]
    assert examples.vectors.tolist() == [vector.tolist() for vectors in model for vector in vectors]


def test_arrays_that_were_given_out_do_not_change() -> None:
    gallery = Gallery(WIDTH)
    for number in range(5):
        gallery.enrol(f"class {number}", random(1, number))
    before = gallery.examples
    kept = before.copy()
    for number in range(20):
        gallery.enrol(f"class {number % 3}", random(1, 100 + number))
        assert len(gallery.examples) == 6 + number
    gallery.forget("class 0")
    assert np.array_equal(before, kept)


def test_of_equal_examples_the_first_class_holds_the_picture() -> None:
    gallery, (one, other, third) = Gallery(WIDTH), random(3, 0)
    gallery.enrol("a", [one])
    gallery.enrol("b", [other])
    gallery.enrol("a", [other])
    assert gallery.holders([other, one, third]) == ["a", "a", None]


def test_one_more_example_copies_no_others() -> None:
    """Of 4,000 enrolments, memory is copied when it doubles, not each time."""
    examples, addresses = Examples(WIDTH), set[int]()
    vectors = random(4000, 0)
    for number in range(4000):
        examples.add(number if number < 2000 else number - 2000, vectors[number : number + 1])
        addresses.add(examples._stored.__array_interface__["data"][0])
    assert len(addresses) <= 13
    assert np.array_equal(examples.vectors[::2], vectors[:2000])
    assert np.array_equal(examples.vectors[1::2], vectors[2000:])
