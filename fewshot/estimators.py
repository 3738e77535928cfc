"""The scikit-learn estimators: an encoder as a transformer, the gallery as a classifier."""

from __future__ import annotations

from math import isqrt
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fewshot.embedding.embedder import Embedder
from fewshot.recognition.gallery import Gallery
from finetune.errors import InputError
from finetune.features.acceleration import TOLERANCE

# Default: a class that is 0.05 more similar is e times as probable.
TEMPERATURE = 0.05
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-3, 10.0

_LEFT_OUT_AT_MOST = 500  # examples used to choose the temperature

Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]


class EmbeddingTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Transforms pictures to unit vectors by an encoder that is not trained further.

    Args:
        source, weights, views, tolerance, device: As for `Embedder.load`.
        batch_size, workers: As for `Embedder.embed`.
        picture_shape: Height and width of pictures given as rows of numbers; None for squares, or a single row of
            pixels.

    Attributes:
        embedder_: The encoder. Copies and pickles leave it out and load it from `source` again.
        width_: Length of a vector.
        fingerprint_: Of the encoder.
        n_features_in_: Numbers in a row, if pictures were given as rows of numbers.

    Example:
        >>> from fewshot import EmbeddingTransformer, RecognizerClassifier
        >>> from sklearn.pipeline import make_pipeline
        >>> pipeline = make_pipeline(EmbeddingTransformer("omniglot", device="cpu"), RecognizerClassifier())
        >>> examples = ["signs/class00/00.png", "signs/class01/00.png"]
        >>> pipeline.fit(examples, ["stop", "yield"]).predict(["sign.png"]).tolist()
        ['stop']
    """

    def __init__(
        self,
        source: str | Path = "omniglot",
        *,
        weights: str | Path | None = None,
        views: int = 1,
        tolerance: float = TOLERANCE,
        batch_size: int | None = None,
        workers: int | None = None,
        device: str = "auto",
        picture_shape: tuple[int, int] | None = None,
    ):
        self.source = source
        self.weights = weights
        self.views = views
        self.tolerance = tolerance
        self.batch_size = batch_size
        self.workers = workers
        self.device = device
        self.picture_shape = picture_shape

    def fit(self, X: Any, y: Any = None) -> Self:
        """Load the encoder; nothing is learned and no picture is read.

        Raises:
            InputError: If there is no such encoder.
            ValueError: For an X that `transform` cannot take.
        """
        self._pictures(X, fitting=True)
        embedder = self._open()
        self._embedder = embedder
        self.width_ = embedder.width
        self.fingerprint_ = embedder.fingerprint
        return self

    def transform(self, X: Any) -> Vectors:
        """Embed pictures.

        Args:
            X: A list or 1-d array of paths, contents of files, PIL images or arrays (h, w) or (h, w, 1, 3 or 4); an
                array (n, h, w, 3); or an array (n, h * w) of finite numbers, each row a grey picture, line by line.
                Numbers mean the same as for `read_image`; floats outside [0, 1] are scaled picture by picture.

        Returns:
            Unit vectors, shape (n, d), float32.

        Raises:
            UnreadablePicture: If a picture cannot be read; names its position.
            ValueError: For other shapes.
        """
        check_is_fitted(self)
        pictures = self._pictures(X, fitting=False)
        return self.embedder_.embed(pictures, batch_size=self.batch_size, workers=self.workers)

    @property
    def embedder_(self) -> Embedder:
        """The encoder. InputError if `source` has changed since `fit`."""
        check_is_fitted(self)
        if self._embedder is None:
            embedder = self._open()
            if embedder.fingerprint != self.fingerprint_:
                raise InputError(
                    f"{self.source} has the fingerprint {embedder.fingerprint}; it was fitted with {self.fingerprint_}"
                )
            self._embedder = embedder
        return self._embedder

    @property
    def _n_features_out(self) -> int:
        return int(self.width_)

    def _open(self) -> Embedder:
        return Embedder.load(
            self.source, weights=self.weights, views=self.views, tolerance=self.tolerance, device=self.device
        )

    def _pictures(self, X: Any, *, fitting: bool) -> list[Any]:
        listed = _listed(X)
        if listed is not None:
            if fitting:  # known from an earlier fit on rows of numbers
                for name in {"n_features_in_", "feature_names_in_"} & set(vars(self)):
                    delattr(self, name)
            return listed
        rows = validate_data(self, X, reset=fitting)
        height, width = self.picture_shape or _shape(rows.shape[1])
        if height * width != rows.shape[1]:
            raise ValueError(f"rows of {rows.shape[1]} numbers do not match picture_shape {height} x {width}")
        return [_grey(row).reshape(height, width) for row in rows]

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        return state | {"_embedder": None} if "_embedder" in state else state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]  # vectors are always float32
        return tags


class RecognizerClassifier(ClassifierMixin, BaseEstimator):
    """Classifies vectors by the class with the most similar examples, from one example of each class on.

    Vectors are normalised. A vector of zeros has similarity 1 to other vectors of zeros, and 0 to all others.

    Args:
        false_accept_rate: Share of vectors of no class that may be given one; None if there are no such vectors, so
            that each is given a class. A single class gives no threshold and accepts everything.
        unknown_label: Label of the others; scikit-learn's metrics need the type of the labels.
        temperature: Difference of similarity that makes a class e times as probable. None for the one that makes the
            examples, each left out in turn, most likely, or TEMPERATURE if fewer than two classes have two examples.

    Attributes:
        classes_: Sorted.
        gallery_: The examples.
        threshold_: The smallest similarity that is accepted.
        temperature_: That is used.
        n_features_in_: Length of a vector.

    Example:
        >>> import numpy as np
        >>> from fewshot import RecognizerClassifier
        >>> classifier = RecognizerClassifier().fit(np.eye(2), ["right", "up"])
        >>> classifier.predict([[0.6, 0.8]]).tolist()
        ['up']
    """

    classes_: NDArray[Any]
    gallery_: Gallery
    _enrolled: NDArray[Any]  # classes with examples, in the order of the gallery's labels

    def __init__(
        self, *, false_accept_rate: float | None = None, unknown_label: Any = None, temperature: float | None = None
    ):
        self.false_accept_rate = false_accept_rate
        self.unknown_label = unknown_label
        self.temperature = temperature

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Learn from vectors X (n, d) and labels y (n,), in place of earlier ones.

        Raises:
            ValueError: For numbers that are not finite, other shapes, and labels that are no classes.
            InputError: For a rate outside (0, 1), and a temperature that is not above 0.
        """
        return self._learn(X, y, None, restart=True)

    def partial_fit(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None = None) -> Self:
        """Learn from more examples, also of new classes. Errors as for `fit`.

        classes: Labels that may follow later, so that predict_proba has their columns from the start. Unlike elsewhere
        in scikit-learn it is optional and no limit: a class joins classes_ with its first example, which moves the
        columns after it. A class without examples is never predicted.
        """
        return self._learn(X, y, classes, restart=not hasattr(self, "gallery_"))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Labels (n,) of vectors (n, d): the nearest class, or `unknown_label` below threshold_."""
        similarity = self._similarity(X)
        nearest = self.classes_[similarity.argmax(1)]
        if self.false_accept_rate is None:
            return np.asarray(nearest)
        unknown = np.array([self.unknown_label])
        same_type = unknown.dtype.kind == nearest.dtype.kind
        answers = nearest.astype(np.result_type(unknown, nearest) if same_type else object)
        answers[similarity.max(1) < self.threshold_] = self.unknown_label
        return np.asarray(answers)

    def predict_proba(self, X: ArrayLike) -> Vectors:
        """Probabilities (n, classes) float32 in the order of classes_, given that it is one of them."""
        return softmax(self._similarity(X), self.temperature_).astype(
            np.float32
        )  # further digits would be rounding errors

    def decision_function(self, X: ArrayLike) -> Vectors:
        """Similarities (n, classes) float32, from -1 to 1; for two classes, (n,): second minus first.

        A class without examples has -1.
        """
        similarity = np.maximum(self._similarity(X), -1).astype(np.float32)
        return similarity[:, 1] - similarity[:, 0] if len(self.classes_) == 2 else similarity

    def _learn(self, X: ArrayLike, y: ArrayLike, classes: ArrayLike | None, *, restart: bool) -> Self:
        if self.temperature is not None and not 0 < self.temperature < np.inf:
            raise InputError(f"temperature must be above 0, not {self.temperature}")
        vectors, labels = validate_data(self, X, y, reset=restart, dtype=np.float64)
        # Doubled: scikit-learn warns of many classes with one example each, which is the usual case here.
        check_classification_targets(np.concatenate([labels, labels]))
        given = np.unique(labels) if classes is None else _joined(np.unique(labels), np.unique(classes))
        known = given if restart else _joined(self.classes_, given)
        if restart:
            rate = 0.05 if self.false_accept_rate is None else self.false_accept_rate
            gallery, enrolled = Gallery(self.n_features_in_ + 1, false_accept_rate=rate), np.empty(0, known.dtype)
        else:
            gallery, enrolled = self.gallery_, self._enrolled
        self.gallery_ = gallery
        self._enrolled = _enrol(gallery, enrolled, _directions(vectors), labels)
        self.classes_ = known
        found = None if self.false_accept_rate is None else gallery.threshold
        self.threshold_ = -np.inf if found is None else found
        self.temperature_ = float(self.temperature or _likeliest_temperature(gallery))
        return self

    def _similarity(self, X: ArrayLike) -> Floats:
        """Similarities (n, classes) in the order of classes_; minus infinity for a class without examples."""
        check_is_fitted(self)
        vectors = _directions(validate_data(self, X, reset=False, dtype=np.float64))
        similarity = np.full((len(vectors), len(self.classes_)), -np.inf)
        similarity[:, np.searchsorted(self.classes_, self._enrolled)] = self.gallery_.similarity(vectors)
        return similarity


# --- pictures ---------------------------------------------------------------------------------------------------------


def _listed(X: Any) -> list[Any] | None:
    """X as a list of pictures; None if it is not one, such as rows of numbers."""
    if isinstance(X, (np.ndarray, torch.Tensor)) and X.ndim == 4:
        return list(X)
    if not isinstance(X, (list, tuple)) and getattr(X, "ndim", None) != 1:
        return None
    listed = list(X)
    pictures = any(
        isinstance(each, (str, Path, bytes, Image.Image)) or getattr(each, "ndim", 0) >= 2 for each in listed
    )
    return listed if pictures else None


def _shape(pixels: int) -> tuple[int, int]:
    side = isqrt(pixels)
    return (side, side) if side * side == pixels else (1, pixels)


def _grey(row: NDArray[Any]) -> NDArray[Any]:
    """A row in a type that `read_image` takes."""
    if row.dtype.kind not in "iu":
        return row
    return row.astype(np.uint16 if row.min() >= 0 and row.max() < 1 << 16 else np.float64)


# --- vectors ----------------------------------------------------------------------------------------------------------


def _directions(X: Floats) -> Vectors:
    """Unit vectors (n, d + 1); the last number is 1 for a vector of zeros, else 0."""
    largest = np.abs(X).max(1, keepdims=True)
    scaled = np.divide(
        X, largest, out=np.zeros_like(X), where=largest > 0
    )  # the squares of large numbers would overflow
    scaled = np.concatenate([scaled, largest == 0], 1)
    return np.asarray(scaled / np.linalg.norm(scaled, axis=1, keepdims=True), np.float32)


def _joined(some: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """The union of labels, sorted."""
    numbers = [labels.dtype.kind in "biuf" for labels in (some, others)]
    if len(some) and len(others) and numbers[0] != numbers[1]:
        raise ValueError(f"labels must be all numbers or all texts, not both: {some[0]!r} and {others[0]!r}")
    return np.union1d(some, others)


def _enrol(gallery: Gallery, enrolled: NDArray[Any], vectors: Vectors, y: NDArray[Any]) -> NDArray[Any]:
    """Enrol examples. Returns the classes of the gallery, whose labels are positions among these."""
    labels, of = np.unique(y, return_inverse=True)
    all_enrolled = np.concatenate([enrolled, labels[~np.isin(labels, enrolled)]])
    places = np.array([int((all_enrolled == label).argmax()) for label in labels])
    if not len(enrolled):
        counts = np.bincount(of).tolist()
        gallery.fill({str(place): count for place, count in enumerate(counts)}, vectors[np.argsort(of, kind="stable")])
        return all_enrolled
    for number, place in enumerate(places):
        gallery.enrol(str(place), vectors[of == number])
    return all_enrolled


def _likeliest_temperature(gallery: Gallery) -> float:
    """The temperature that makes the examples most likely, each compared with all others."""
    if sum(count > 1 for count in gallery.counts.values()) < 2:
        return TEMPERATURE
    similarity, own = _left_out(gallery)
    # Smoothed targets (Platt 1999, "Probabilistic outputs for support vector machines", 2.2): without them, separated
    # classes would have a temperature of 0.
    target = np.full(similarity.shape, 1 / (len(own) + 2) / (similarity.shape[1] - 1))
    target[np.arange(len(own)), own] = (len(own) + 1) / (len(own) + 2)
    wanted = (target * similarity).sum()
    low, high = np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE)
    for _ in range(20):  # the likelihood has a single maximum
        middle = (low + high) / 2
        expected = (softmax(similarity, np.exp(middle)) * similarity).sum()
        low, high = (low, middle) if expected < wanted else (middle, high)
    return float(np.exp((low + high) / 2))


def _left_out(gallery: Gallery) -> tuple[Floats, NDArray[np.int64]]:
    """Similarities (n, classes) of left-out examples to all classes, and the position (n,) of the class of each.

    Examples that are alone in their class are not used.
    """
    counts = np.array(list(gallery.counts.values()))
    starts, of = counts.cumsum() - counts, np.repeat(np.arange(len(counts)), counts)
    several = (counts[of] > 1).nonzero()[0]
    rows = several[:: max(1, -(-len(several) // _LEFT_OUT_AT_MOST))]
    examples, own = gallery.examples, of[rows]
    sums = np.add.reduceat(examples.astype(np.float64), starts, axis=0)
    similarity = gallery.similarity(examples[rows]).astype(np.float64)
    rest = sums[own] - examples[rows]
    rest /= np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12)
    similarity[np.arange(len(rows)), own] = (rest * examples[rows]).sum(1)
    return similarity, own


def softmax(similarity: ArrayLike, temperature: float) -> NDArray[np.float64]:
    """Probabilities (n, classes) of similarities (n, classes); a lower temperature makes them sharper."""
    return np.asarray(torch.softmax(torch.as_tensor(np.asarray(similarity, np.float64)) / temperature, 1).numpy())
