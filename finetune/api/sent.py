"""The classifier of a job, as rank 0 sends it to the other processes."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from finetune.classifier.classifier import Classifier
from finetune.classifier.run_metrics import RunMetrics
from finetune.models.backbone import Network
from finetune.models.device import open_engine

_Sent = tuple[Network, dict[str, Any], RunMetrics | None, Path | None]


def to_send(classifier: Classifier) -> _Sent:
    """The parts of a classifier, on the CPU."""
    given = {
        "classes": classifier.classes,
        "preprocessing": classifier.preprocessing,
        "config": classifier.config,
        "temperature": classifier.temperature,
    }
    return deepcopy(classifier.network).cpu(), given, classifier.run_metrics, classifier.folder


def received(sent: _Sent, device: str) -> Classifier:
    """The classifier of these parts, on a device."""
    network, given, metrics, folder = sent
    classifier = Classifier(network, fabric=open_engine(device, given["config"].precision), **given)
    classifier.run_metrics, classifier.folder = metrics, folder
    return classifier
