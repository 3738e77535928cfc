"""Galleries of made vectors, and a calibration of pairs like theirs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewshot.evaluation.threshold import Calibration, calibrate
from fewshot.recognition.gallery import Gallery, Vectors

WIDTH = 64


def unit(values: Any) -> Vectors:
    found = np.asarray(values, np.float64)
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True), np.float32)


def population(seed: Any, classes: int, each: int = 1) -> Vectors:
    """(classes, each, WIDTH): correlated random directions, with noise around them."""
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
