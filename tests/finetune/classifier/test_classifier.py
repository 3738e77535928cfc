"""A classifier as an object: what it prints, and that it can be sent to another process."""

from __future__ import annotations

import copy
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MakeFolder
from torch import nn

import finetune
from finetune import Config
from finetune.classifier.classifier import Classifier
from finetune.classifier.run_metrics import RunMetrics
from finetune.metrics import ClassMetrics
from finetune.models.backbone import Backbone, Network
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages


@pytest.fixture
def classifier() -> Classifier:
    """One that reads two depths of a cut backbone, in memory."""
    torch.manual_seed(0)
    backbone = Backbone("fewtune_conv4")
    backbone.drop_above("blocks.2")
    stages = PooledStages(backbone)
    network = Network(backbone, nn.Linear(sum(stages.widths[-2:]), 4), stages.hooks)
    config = Config(backbone="fewtune_conv4", device="cpu", workers=0)
    fabric = open_engine("cpu", "float32")
    return Classifier(network, ["a", "b", "c", "d"], backbone.preprocessing, config, fabric, 1.5)


def test_a_pickled_classifier_predicts_the_same(classifier: Classifier) -> None:
    each = dict.fromkeys("abcd", ClassMetrics(precision=None, recall=None, f1=None, support=1))
    figures = {"accuracy": 0.5, "interval": (0.1, 0.9), "balanced_accuracy": 0.5, "loss": 1.0, "n": 4}
    classifier.run_metrics = RunMetrics(**figures, per_class=each, split="test", strategy="head")
    picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    for same in (pickle.loads(pickle.dumps(classifier)), copy.deepcopy(classifier)):
        assert same.predict(picture) == classifier.predict(picture)
        assert (repr(same), same.metrics) == (repr(classifier), classifier.metrics)


def test_a_pickle_of_an_earlier_version_is_read(classifier: Classifier) -> None:
    now = pickle.dumps(classifier, protocol=2)  # which names modules in plain text
    before = now.replace(b"cfinetune.classifier.classifier\n_unpickled\n", b"cfinetune.classifier\n_unpickled\n")
    assert before != now
    assert pickle.loads(before).classes == classifier.classes


def test_a_pickle_holds_bytes_of_files_and_no_torch_object(classifier: Classifier) -> None:
    content = pickle.dumps(classifier, protocol=2)
    named = [argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "GLOBAL"]
    assert "finetune.classifier.classifier _unpickled" in named
    assert not [name for name in named if name.startswith(("torch", "lightning"))]


def test_repr_of_a_classifier_in_memory_says_classes_and_backbone(classifier: Classifier) -> None:
    assert repr(classifier) == "<Classifier: 4 classes (a, b, c, …); backbone fewtune_conv4 up to blocks.2>"


@pytest.mark.slow
def test_repr_of_a_run_says_strategy_accuracy_and_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder, run = make_folder(classes={"blue": 20, "red": 20}), tmp_path / "run"
    fitted = finetune.fit(folder, run, backbone="fewtune_conv4", strategy="head", device="cpu", workers=0)
    found = fitted.metrics
    assert repr(fitted) == (
        f"<Classifier: 2 classes (blue, red); backbone fewtune_conv4; strategy head; "
        f"accuracy {found['accuracy']:.1%} on {found['n']} test pictures; folder {run}>"
    )
    assert repr(finetune.load(run, device="cpu")) == repr(fitted)
