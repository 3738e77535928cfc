from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.classifier.classifier import Classifier
from finetune.classifier.loading import load
from finetune.classifier.run_folder import WEIGHTS_FILE
from finetune.config import Config
from finetune.errors import InputError
from finetune.files.reading import read_tensors
from finetune.files.writing import write_tensors
from finetune.linear.head import LinearHead, nearest_mean, solve_heads
from finetune.metrics import accuracy
from finetune.models.backbone import Backbone, Network
from finetune.models.depth_head import DepthHead
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages


def clouds(n: int, classes: int, spread: float, seed: int, width: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, width, generator=random), labels


def fit_head(
    features: torch.Tensor, labels: torch.Tensor, val: torch.Tensor, val_labels: torch.Tensor, *weights: torch.Tensor
) -> LinearHead:
    return solve_heads((features, labels), (val, val_labels), [features.shape[1]], *weights).kept


def test_head_separates_separable_classes() -> None:
    for classes in (2, 5):
        head = fit_head(*clouds(100, classes, 0.3, 0), *clouds(50, classes, 0.3, 1))
        features, labels = clouds(200, classes, 0.3, 2)
        assert head.weight.shape == (classes, 20)
        assert head.unit_weight is not None
        assert head.unit_weight.shape == (classes, 20)
        assert accuracy(head(features), labels) == 1.0


def test_the_scale_of_features_changes_no_prediction() -> None:
    train, val, test = (clouds(90, 3, 1.0, seed) for seed in range(3))
    plain = fit_head(*train, *val)(test[0]).softmax(1)
    scaled = fit_head(train[0] * 1000, train[1], val[0] * 1000, val[1])(test[0] * 1000).softmax(1)
    torch.testing.assert_close(plain, scaled, atol=1e-4, rtol=0)


def test_layer_computes_what_the_head_computes() -> None:
    features, labels = clouds(60, 4, 0.5, 0)
    head = fit_head(features, labels, features, labels)
    torch.testing.assert_close(head.as_layer()(features), head(features))


def test_class_weights_raise_recall_of_the_rare_class() -> None:
    features, labels = clouds(400, 2, 3.0, 0)
    keep = (labels == 0) | (torch.arange(400) % 20 == 1)
    features, labels = features[keep], labels[keep]
    test_features, test_labels = clouds(1000, 2, 3.0, 1)
    val = clouds(200, 2, 3.0, 2)
    weights = len(labels) / (2 * labels.bincount().float())
    rare = test_labels == 1
    plain = fit_head(features, labels, *val)(test_features).argmax(1)
    weighed = fit_head(features, labels, *val, weights)(test_features).argmax(1)
    assert (weighed[rare] == 1).float().mean() > (plain[rare] == 1).float().mean() + 0.05


def test_nearest_mean_ignores_length() -> None:
    features = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0]])
    queries = torch.tensor([[100.0, 1.0], [0.01, 0.5]])
    assert nearest_mean(features, torch.tensor([0, 0, 1]), queries).tolist() == [0, 1]


# --- more depths than the last ----------------------------------------------------------------------------------------


def depths(n: int, apart: tuple[float, ...], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled activations (n, 16 each) in which two classes lie so far apart at each depth, and labels (n,)."""
    random, labels = torch.Generator().manual_seed(seed), torch.arange(n) % 2
    parts = [torch.randn(n, 16, generator=random) * 10.0**number for number in range(len(apart))]
    for number, distance in enumerate(apart):
        parts[number][:, 0] += labels * distance * 10.0**number
    return torch.cat(parts, 1), labels


def test_a_head_reads_more_depths_where_they_separate_classes_better() -> None:
    train, val = depths(400, (0, 2.0, 2.0, 2.0), 0), depths(400, (0, 2.0, 2.0, 2.0), 1)
    heads = solve_heads(train, val, [16] * 4)
    assert heads.features.width == 16
    assert heads.kept.width >= 48
    asked, labels = depths(1000, (0, 2.0, 2.0, 2.0), 2)
    right = [accuracy(head(asked), labels) for head in (heads.features, heads.kept)]
    assert right[1] > right[0] + 0.05


@pytest.mark.parametrize("number", [6, 60])
def test_depths_that_are_noise_cost_a_head_little(number: int) -> None:
    """Side by side as equals they would cost five points here."""
    lost = []
    for seed in range(5):
        draws = ((number, seed), (200, seed + 50), (2000, 99))
        train, val, (asked, labels) = (depths(n, (0, 0, 0, 2.0), seed) for n, seed in draws)
        heads = solve_heads(train, val, [16] * 4)
        lost.append(accuracy(heads.features(asked), labels) - accuracy(heads.kept(asked), labels))
    assert np.mean(lost) < 0.03


# --- few pictures -----------------------------------------------------------------------------------------------------


def test_one_picture_a_class_is_enough() -> None:
    features, labels = clouds(4, 4, 0.3, 0)
    heads = solve_heads((features, labels), (features[:0], labels[:0]), [20], learn_from_val=True)
    asked, truth = clouds(200, 4, 0.3, 1)
    assert accuracy(heads.kept(asked), truth) > 0.95
    assert heads.val_logits.shape == (0, 4)
    assert torch.isfinite(heads.kept(asked)).all()
    assert (heads.kept(asked).softmax(1).amax(1) < 0.999).all()


def test_a_head_of_few_pictures_is_no_worse_than_the_nearest_class_mean() -> None:
    gained = []
    for seed in range(12):
        train, (asked, truth) = clouds(8, 4, 2.0, seed, width=60), clouds(400, 4, 2.0, seed + 99, width=60)
        none = train[0][:0], train[1][:0]
        head = solve_heads(train, none, [20, 20, 20], learn_from_val=True).kept
        means = nearest_mean(train[0][:, -20:], train[1], asked[:, -20:])
        gained.append(accuracy(head(asked), truth) - float((means == truth).float().mean()))
    assert np.mean(gained) > -0.01


def test_the_head_to_deploy_learns_from_validation_pictures_if_allowed() -> None:
    train, val, test = clouds(12, 4, 2.0, 0), clouds(40, 4, 2.0, 1), clouds(400, 4, 2.0, 2)
    heads, alone = solve_heads(train, val, [20], learn_from_val=True), solve_heads(train, val, [20])
    assert (heads.learned_from_val, alone.learned_from_val) == (True, False)
    assert accuracy(heads.kept(test[0]), test[1]) > accuracy(alone.kept(test[0]), test[1])
    torch.testing.assert_close(alone.val_logits, alone.kept(val[0]))
    # What it is worth on them is told by heads that had not learned from them, and had more than the few of train.
    told = accuracy(heads.val_logits, val[1])
    assert accuracy(alone.kept(val[0]), val[1]) < told < accuracy(heads.kept(val[0]), val[1])


def test_a_class_of_one_picture_is_learned_from() -> None:
    features, labels = clouds(21, 4, 0.3, 0)
    labels = torch.where(torch.arange(21) == 20, torch.tensor(4), labels)
    features[20] += 10
    heads = solve_heads((features, labels), (features[:4], labels[:4]), [20])
    assert heads.kept(features[20:]).argmax(1).tolist() == [4]


@pytest.mark.parametrize("unit", [False, True])
def test_a_network_whose_head_reads_more_depths_is_saved_and_loaded(tmp_path: Path, unit: bool) -> None:
    torch.manual_seed(0)
    backbone = Backbone("fewtune_conv4").eval()
    stages = PooledStages(backbone)
    widths = stages.widths[-2:]
    # Runs of earlier versions hold one matrix for the activations themselves.
    head: torch.nn.Linear | DepthHead = DepthHead(widths, 3) if unit else torch.nn.Linear(sum(widths), 3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    config, fabric = Config(backbone="fewtune_conv4", device="cpu"), open_engine("cpu", "float32")
    network = Network(backbone, head, stages.hooks)
    pictures = torch.randn(2, 3, 35, 35)
    with torch.no_grad():
        torch.testing.assert_close(network(pictures), head(stages(pictures)[:, -head.in_features :]))
    classifier = Classifier(network, ["a", "b", "c"], backbone.preprocessing, config, fabric)
    classifier.save(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    loaded = load(tmp_path, device="cpu", precision="float32")
    assert loaded.predict(picture).top == classifier.predict(picture).top


@pytest.mark.parametrize("shape", [(3,), (3, 7), (3, 100_000)])
def test_weights_of_another_head_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    backbone = Backbone("fewtune_conv4").eval()
    stages = PooledStages(backbone)
    config, fabric = Config(backbone="fewtune_conv4", device="cpu"), open_engine("cpu", "float32")
    network = Network(backbone, DepthHead(stages.widths[-2:], 3), stages.hooks)
    Classifier(network, ["a", "b", "c"], backbone.preprocessing, config, fabric).save(tmp_path)
    tensors = read_tensors(tmp_path / WEIGHTS_FILE) | {"head.unit_weight": torch.zeros(shape)}
    write_tensors(tmp_path / WEIGHTS_FILE, tensors)
    with pytest.raises(InputError, match="does not fit"):
        load(tmp_path, device="cpu")
