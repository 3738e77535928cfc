"""The baselines that a run is measured beside: their keys in metrics.json, and what people read."""

from __future__ import annotations

BASELINES = {
    "majority_class": "majority class",
    "nearest_class_mean": "nearest class mean",
    "head": "linear head, frozen features",
}
