from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawings import character
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec, create, round_to_half
from fewshot.estimators import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    TEMPERATURE,
    EmbeddingTransformer,
    RecognizerClassifier,
    _left_out,
    softmax,
)
from fewshot.recognition.gallery import Gallery
from finetune.errors import InputError, UnreadablePicture


def encoder_in(folder: Path, seed: int = 0) -> Path:
    """A small encoder that has learned nothing."""
    torch.manual_seed(seed)
    spec = EncoderSpec("fewtune_conv4", 16, "whole")
    network = create(spec)
    round_to_half(network)
    Embedder(network, spec, device="cpu").save(folder, recipe={})
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_in(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def shipped() -> EmbeddingTransformer:
    return EmbeddingTransformer(device="cpu").fit(paper(1))


def paper(count: int, drawer: int = 0, first: int = 0) -> list[NDArray[np.uint8]]:
    """Dark ink on white, each another character."""
    return [255 - character(number, drawer) for number in range(first, first + count)]


def by_hands(characters: int, drawers: range) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Drawings of several characters by several drawers, and their labels."""
    pictures = [picture for drawer in drawers for picture in paper(characters, drawer)]
    return pictures, [f"character {number}" for _ in drawers for number in range(characters)]


def blobs(seed: int = 0, classes: int = 4, each: int = 12, noise: float = 0.3) -> tuple[NDArray[Any], NDArray[Any]]:
    """(n, 8) noise around random directions."""
    centres = np.random.default_rng(7).normal(size=(classes, 1, 8))
    vectors = centres + noise * np.random.default_rng(seed).normal(size=(classes, each, 8)) * 2
    return vectors.reshape(-1, 8), np.repeat(np.arange(classes), each)


# --- what scikit-learn asks of every estimator ------------------------------------------------------------------------


@pytest.mark.slow
@parametrize_with_checks([RecognizerClassifier(), RecognizerClassifier(temperature=0.1)])
def test_the_classifier_passes_scikit_learn_s_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.slow
def test_the_transformer_passes_scikit_learn_s_checks(small: Path) -> None:
    results = check_estimator(EmbeddingTransformer(small, workers=1, device="cpu"), on_skip=None)
    assert len(results) > 40
    assert {result["status"] for result in results} <= {"passed", "skipped"}


# --- pictures to vectors ----------------------------------------------------------------------------------------------


def test_pictures_can_be_files_arrays_or_images(small: Path, tmp_path: Path) -> None:
    pictures = paper(3)
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    transformer = EmbeddingTransformer(small, device="cpu")
    vectors = transformer.fit_transform(pictures)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    objects = np.empty(3, object)
    objects[:] = [Image.fromarray(picture) for picture in pictures]
    colours = np.stack(pictures)[..., None].repeat(3, 3)
    rows = np.stack(pictures).reshape(3, -1)
    same = [files, tuple(map(str, files)), np.array(list(map(str, files))), objects, colours, rows, rows.tolist()]
    for given in [*same, rows.astype(np.int64), rows / 255]:
        np.testing.assert_allclose(transformer.fit(given).transform(given), vectors, atol=1e-5)


def test_transform_gives_the_vectors_of_the_embedder(small: Path) -> None:
    embedder = Embedder.load(small, views=2, device="cpu")
    transformer = EmbeddingTransformer(small, views=2, batch_size=2, workers=1, device="cpu").fit(paper(2))
    np.testing.assert_allclose(transformer.transform(paper(5)), embedder.embed(paper(5)), atol=1e-5)
    assert transformer.embedder_.views == 2


def test_rows_of_numbers_are_pictures_of_the_given_shape(small: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 4, 9), dtype=np.uint8)
    transformer = EmbeddingTransformer(small, device="cpu")
    expected = transformer.fit_transform(list(pictures))
    shaped = EmbeddingTransformer(small, device="cpu", picture_shape=(4, 9))
    np.testing.assert_allclose(shaped.fit_transform(pictures.reshape(3, 36)), expected, atol=1e-5)
    square = transformer.fit_transform(list(pictures.reshape(3, 6, 6)))
    np.testing.assert_allclose(transformer.fit_transform(pictures.reshape(3, 36)), square, atol=1e-5)
    line = transformer.fit_transform([row[None] for row in pictures.reshape(3, 36)[:, :35]])
    np.testing.assert_allclose(transformer.fit_transform(pictures.reshape(3, 36)[:, :35]), line, atol=1e-5)
    with pytest.raises(ValueError, match="rows of 36 numbers do not match picture_shape 5 x 9"):
        EmbeddingTransformer(small, picture_shape=(5, 9)).fit(pictures.reshape(3, 36))


def test_only_rows_of_numbers_have_a_number_of_features(small: Path) -> None:
    transformer = EmbeddingTransformer(small, device="cpu").fit(np.zeros((2, 25)))
    assert transformer.n_features_in_ == 25
    with pytest.raises(ValueError, match="X has 36 features, but EmbeddingTransformer is expecting 25"):
        transformer.transform(np.zeros((2, 36)))
    assert not hasattr(transformer.fit(paper(2)), "n_features_in_")
    assert list(transformer.get_feature_names_out())[:2] == ["embeddingtransformer0", "embeddingtransformer1"]
    assert len(transformer.get_feature_names_out()) == transformer.transform(paper(1)).shape[1]


@pytest.mark.parametrize("given", ["a.png", [], np.zeros((2, 5, 5)), [None, None], np.zeros((2, 4)) * np.nan])
def test_other_inputs_than_pictures_are_refused(given: Any, small: Path) -> None:
    with pytest.raises((ValueError, TypeError)):
        EmbeddingTransformer(small, device="cpu").fit(given)


def test_a_picture_that_cannot_be_read_is_named(small: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    transformer = EmbeddingTransformer(small, device="cpu").fit([tmp_path / "text.png"])
    with pytest.raises(UnreadablePicture, match=r"picture 0 \(.*text\.png\): not a picture"):
        transformer.transform([tmp_path / "text.png"])


def test_fit_refuses_an_unknown_encoder(tmp_path: Path) -> None:
    transformer = EmbeddingTransformer(tmp_path / "missing")
    with pytest.raises(NotFittedError):
        transformer.transform(paper(1))
    with pytest.raises(InputError, match="is no encoder"):
        transformer.fit(paper(1))


def test_a_pickle_holds_no_network_and_gives_the_same_vectors(shipped: EmbeddingTransformer) -> None:
    pickled = pickle.dumps(shipped)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert np.array_equal(again.transform(paper(4)), shipped.transform(paper(4)))
    assert again.embedder_ is again.embedder_
    assert len(pickle.loads(pickle.dumps(EmbeddingTransformer())).get_params()) == 8


def test_a_pickle_refuses_a_changed_encoder(tmp_path: Path) -> None:
    pickled = pickle.dumps(EmbeddingTransformer(encoder_in(tmp_path), device="cpu").fit(paper(1)))
    encoder_in(tmp_path, seed=1)
    with pytest.raises(InputError, match=r"has the fingerprint [0-9a-f]{12}; it was fitted with [0-9a-f]{12}"):
        pickle.loads(pickled).transform(paper(1))


def test_a_clone_keeps_the_arguments_alone(small: Path) -> None:
    fitted = EmbeddingTransformer(small, views=2, device="cpu", picture_shape=(5, 5)).fit(np.zeros((1, 25)))
    cloned = clone(fitted)
    assert cloned.get_params() == fitted.get_params()
    assert cloned.source is not None
    assert not hasattr(cloned, "embedder_")
    assert not hasattr(cloned, "width_")


# --- vectors to classes -----------------------------------------------------------------------------------------------


def test_partial_fit_equals_fit() -> None:
    vectors, labels = blobs()
    at_once = RecognizerClassifier(false_accept_rate=0.1, unknown_label=-1).fit(vectors, labels)
    one_by_one = clone(at_once)
    for label in (2, 0, 3, 1):
        one_by_one.partial_fit(vectors[labels == label], labels[labels == label])
    queries = blobs(1)[0]
    assert np.array_equal(one_by_one.classes_, at_once.classes_)
    assert np.array_equal(one_by_one.predict(queries), at_once.predict(queries))
    assert one_by_one.threshold_ == pytest.approx(at_once.threshold_, abs=1e-5)
    assert one_by_one.temperature_ == pytest.approx(at_once.temperature_, rel=0.01)
    np.testing.assert_allclose(one_by_one.predict_proba(queries), at_once.predict_proba(queries), atol=1e-3)
    np.testing.assert_allclose(one_by_one.decision_function(queries), at_once.decision_function(queries), atol=1e-5)


def test_new_classes_are_inserted_in_sorted_order() -> None:
    vectors, _ = blobs()
    classifier = RecognizerClassifier().partial_fit(vectors[:2], ["pear", "fig"])
    assert list(classifier.classes_) == ["fig", "pear"]
    classifier.partial_fit(vectors[2:4], ["cloudberry", "fig"])
    assert list(classifier.classes_) == ["cloudberry", "fig", "pear"]
    assert list(classifier.predict(vectors[:4])) == ["pear", "fig", "cloudberry", "fig"]
    with pytest.raises(ValueError, match="labels must be all numbers or all texts"):
        classifier.partial_fit(vectors[:1], [3])
    assert list(classifier.fit(vectors[:2], [1.0, 2.0]).classes_) == [1, 2]


def test_a_class_without_examples_has_a_column_and_is_never_predicted() -> None:
    vectors, labels = blobs(classes=2)
    classifier = RecognizerClassifier().partial_fit(vectors, labels + 1, classes=[0, 1, 2, 3])
    assert list(classifier.classes_) == [0, 1, 2, 3]
    shares, similarities = classifier.predict_proba(-vectors), classifier.decision_function(-vectors)
    assert np.array_equal(shares[:, [0, 3]], np.zeros((len(vectors), 2)))
    assert np.array_equal(similarities[:, [0, 3]], -np.ones((len(vectors), 2)))
    assert set(classifier.predict(-vectors)) <= {1, 2}


@pytest.mark.parametrize("kind", [int, float, bool, str, object])
def test_labels_may_be_of_any_type(kind: Any) -> None:
    vectors, labels = blobs(classes=2)
    labels = labels.astype(str).astype(object) if kind is object else labels.astype(kind)
    classifier = RecognizerClassifier().fit(vectors, labels)
    assert classifier.predict(vectors).dtype == labels.dtype
    assert classifier.score(vectors, labels) > 0.95


def test_probabilities_sum_to_1_and_match_the_prediction() -> None:
    queries = blobs(1, noise=1)[0]
    for temperature in (None, 0.01, 0.1, 5.0):
        classifier = RecognizerClassifier(temperature=temperature).fit(*blobs(noise=1))
        shares = classifier.predict_proba(queries)
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
        assert np.array_equal(classifier.classes_[shares.argmax(1)], classifier.predict(queries))
        assert np.array_equal(shares.argmax(1), classifier.decision_function(queries).argmax(1))


def test_the_decision_for_two_classes_is_a_difference() -> None:
    vectors, labels = blobs(classes=2, noise=1)
    classifier = RecognizerClassifier().fit(vectors, labels)
    decision = classifier.decision_function(blobs(1, classes=2, noise=1)[0])
    assert decision.shape == (24,)
    assert np.array_equal((decision > 0).astype(int), classifier.predict(blobs(1, classes=2, noise=1)[0]))


def test_probabilities_are_sharper_for_separated_classes() -> None:
    easy, hard, hopeless = (RecognizerClassifier().fit(*blobs(noise=noise, each=30)) for noise in (0.1, 0.8, 100))
    assert LOWEST_TEMPERATURE < easy.temperature_ < hard.temperature_ < hopeless.temperature_ <= HIGHEST_TEMPERATURE
    np.testing.assert_allclose(hopeless.predict_proba(blobs(1)[0]), 0.25, atol=0.2)


@pytest.mark.parametrize("noise", [0.5, 1.0])
def test_the_chosen_temperature_is_nearly_best_on_new_examples(noise: float) -> None:
    queries, truth = blobs(1, noise=noise, each=200)
    losses = {
        temperature: log_loss(
            truth, RecognizerClassifier(temperature=temperature).fit(*blobs(noise=noise)).predict_proba(queries)
        )
        for temperature in (None, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    }
    assert losses[None] < min(loss for loss in losses.values()) + 0.05
    shares = RecognizerClassifier().fit(*blobs(noise=noise)).predict_proba(queries)
    right = RecognizerClassifier().fit(*blobs(noise=noise)).predict(queries) == truth
    sure = shares.max(1) > np.median(shares.max(1))
    assert right[sure].mean() > right[~sure].mean()
    assert shares.max(1).mean() == pytest.approx(right.mean(), abs=0.12)


def test_with_too_few_examples_the_temperature_is_the_default() -> None:
    vectors, _ = blobs()
    for labels in ([0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 0]):
        assert RecognizerClassifier().fit(vectors[:4], labels).temperature_ == TEMPERATURE
    assert RecognizerClassifier().fit(vectors[:4], [0, 0, 1, 1]).temperature_ != TEMPERATURE


def test_a_left_out_example_is_compared_with_all_others() -> None:
    """By the definition: a gallery without the one example."""
    vectors, labels = blobs(each=3)
    classifier = RecognizerClassifier().fit(vectors, labels)
    unit = classifier.gallery_.examples
    similarity, own = _left_out(classifier.gallery_)
    assert np.array_equal(own, labels)
    for at in range(len(unit)):
        kept = np.arange(len(unit)) != at
        gallery = Gallery(unit.shape[1])
        for label in range(4):
            gallery.enrol(str(label), unit[kept & (labels == label)])
        assert similarity[at, own[at]] == pytest.approx(gallery.similarity(unit[[at]])[0, own[at]], abs=1e-5)


def test_unknown_vectors_are_rejected() -> None:
    vectors, labels = blobs(noise=0.1)
    strangers = np.random.default_rng(3).normal(size=(100, 8))
    closed = RecognizerClassifier().fit(vectors, labels)
    rejecting = RecognizerClassifier(false_accept_rate=0.05, unknown_label=-1).fit(vectors, labels)
    assert -1 not in closed.predict(strangers)
    assert (rejecting.predict(strangers) == -1).mean() > 0.8
    assert rejecting.predict(strangers).dtype == labels.dtype
    assert rejecting.score(vectors, labels) > 0.8
    assert -1 not in rejecting.classes_
    stricter = RecognizerClassifier(false_accept_rate=0.001, unknown_label=-1).fit(vectors, labels)
    assert stricter.threshold_ > rejecting.threshold_


def test_the_unknown_label_can_be_anything() -> None:
    vectors, labels = blobs(noise=0.1)
    for named, unknown in ((labels, None), (labels.astype(str), "none of them"), (labels, "?")):
        classifier = RecognizerClassifier(false_accept_rate=0.05, unknown_label=unknown).fit(vectors, named)
        answers = classifier.predict(np.concatenate([vectors, -vectors.mean(0, keepdims=True)]))
        assert answers[-1] == unknown
        assert (answers[:-1] == named).mean() > 0.8


def test_the_length_of_vectors_is_ignored() -> None:
    vectors, labels = blobs()
    scale = np.exp(np.random.default_rng(0).uniform(-300, 300, (len(vectors), 1)))
    one, other = RecognizerClassifier().fit(vectors, labels), RecognizerClassifier().fit(vectors * scale, labels)
    np.testing.assert_allclose(other.predict_proba(vectors), one.predict_proba(vectors * scale), atol=1e-4)


def test_vectors_of_zeros_are_similar_to_each_other_alone() -> None:
    vectors, labels = blobs()
    zero = np.zeros((1, 8))
    classifier = RecognizerClassifier(false_accept_rate=0.05, unknown_label=-1).fit(vectors, labels)
    assert np.array_equal(classifier.decision_function(zero), np.zeros((1, 4)))
    np.testing.assert_allclose(classifier.predict_proba(zero), 0.25)
    assert classifier.predict(zero) == [-1]
    classifier.partial_fit(zero, [9])
    assert classifier.predict(zero) == [9]
    assert np.isfinite(classifier.predict_proba(vectors)).all()


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": -1.0}, {"temperature": np.nan}])
def test_invalid_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="temperature must be above 0"):
        RecognizerClassifier(**options).fit(*blobs())


def test_a_rate_outside_0_to_1_is_refused() -> None:
    with pytest.raises(InputError, match="must be between 0 and 1"):
        RecognizerClassifier(false_accept_rate=1.5).fit(*blobs())


def test_a_pickled_classifier_gives_the_same_answers() -> None:
    classifier = RecognizerClassifier(false_accept_rate=0.1, unknown_label=-1).fit(*blobs())
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again.predict_proba(blobs(1)[0]), classifier.predict_proba(blobs(1)[0]))
    assert np.array_equal(again.predict(blobs(1)[0]), classifier.predict(blobs(1)[0]))
    again.partial_fit(np.ones((1, 8)), [17])
    assert 17 not in classifier.classes_
    assert 17 not in classifier.predict(np.ones((1, 8)))


# --- both -------------------------------------------------------------------------------------------------------------


def test_a_pipeline_recognises_drawings_from_one_example_of_each() -> None:
    pipeline = make_pipeline(EmbeddingTransformer(device="cpu"), RecognizerClassifier())
    pipeline.fit(*by_hands(12, range(1)))
    assert pipeline.score(*by_hands(12, range(1, 3))) > 0.9
    again = pickle.loads(pickle.dumps(pipeline))
    pictures, _ = by_hands(12, range(1, 2))
    assert np.array_equal(again.predict_proba(pictures), pipeline.predict_proba(pictures))


@pytest.mark.slow
def test_a_grid_search_works() -> None:
    steps = [("embed", EmbeddingTransformer(device="cpu")), ("recognize", RecognizerClassifier())]
    grid = {"embed__views": [1, 2], "recognize__temperature": [0.01, 1.0]}
    search = GridSearchCV(Pipeline(steps), grid, cv=2, scoring="neg_log_loss").fit(*by_hands(6, range(4)))
    assert search.best_params_["recognize__temperature"] == 0.01
    assert search.score(*by_hands(6, range(4, 5))) > -0.5


def test_vectors_work_with_other_classifiers(shipped: EmbeddingTransformer) -> None:
    pictures, labels = by_hands(4, range(6))
    scores = cross_val_score(make_pipeline(shipped, LogisticRegression(C=10)), pictures, labels, cv=2)
    assert scores.mean() > 0.9


def test_a_column_of_paths_is_accepted(small: Path, tmp_path: Path) -> None:
    for number, picture in enumerate(paper(3)):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    table = np.array([[str(tmp_path / f"{number}.png"), number] for number in range(3)], object)
    columns = ColumnTransformer([("picture", EmbeddingTransformer(small, device="cpu"), 0)])
    expected = EmbeddingTransformer(small, device="cpu").fit_transform(paper(3))
    np.testing.assert_allclose(columns.fit_transform(table), expected, atol=1e-5)


@pytest.mark.slow
def test_scikit_learn_s_digits_are_recognised_from_a_few_rows() -> None:
    rows, labels = load_digits(return_X_y=True)
    pipeline = make_pipeline(EmbeddingTransformer(device="cpu"), RecognizerClassifier()).fit(rows[:50], labels[:50])
    assert pipeline.score(rows[50:250], labels[50:250]) > 0.7


def test_many_classes_with_one_example_each_are_the_usual_case() -> None:
    vectors = np.eye(40)
    learned = RecognizerClassifier().fit(vectors, [f"class {number}" for number in range(40)])
    assert learned.predict(vectors[7:8])[0] == "class 7"


def test_softmax_is_sharper_at_a_lower_temperature() -> None:
    similarity = [[0.9, 0.5, 0.1], [0.2, 0.2, 0.2]]
    cold, warm = softmax(similarity, 0.01), softmax(similarity, 1.0)
    np.testing.assert_allclose(np.concatenate([cold, warm]).sum(1), 1)
    np.testing.assert_allclose(cold[1], 1 / 3)
    assert cold[0, 0] > 0.999 > 0.7 > warm[0, 0] > warm[0, 1] > warm[0, 2]


def test_a_classifier_saved_by_an_earlier_version_is_read() -> None:
    classifier = RecognizerClassifier().fit(np.eye(3), ["a", "b", "c"])
    now = pickle.dumps(classifier, protocol=2)  # which names modules in plain text
    before = now.replace(b"cfewshot.recognition.gallery\n", b"cfewshot.gallery\n")
    assert before != now
    assert pickle.loads(before).predict(np.eye(3)).tolist() == ["a", "b", "c"]
