from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from finetune.classifier.classifier import Classifier, load
from finetune.config import Config
from finetune.linear.head import ENOUGH_TO_CHOOSE, STRENGTHS, LinearHead, nearest_mean, solve_heads
from finetune.metrics import accuracy
from finetune.models.backbone import Backbone, Network
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
    return solve_heads((features, labels), (val, val_labels), [features.shape[1]], *weights).best


@pytest.mark.slow
def test_head_separates_separable_classes() -> None:
    for classes in (2, 5):
        head = fit_head(*clouds(100, classes, 0.3, 0), *clouds(50, classes, 0.3, 1))
        features, labels = clouds(200, classes, 0.3, 2)
        assert head.weight.shape == (classes, 20)
        assert accuracy(head(features), labels) == 1.0


def test_noisier_classes_get_a_stronger_penalty() -> None:
    clean = fit_head(*clouds(200, 3, 0.1, 0), *clouds(100, 3, 0.1, 1))
    noisy = fit_head(*clouds(200, 3, 4.0, 0), *clouds(100, 3, 4.0, 1))
    assert noisy.strength < clean.strength
    assert any(noisy.strength == pytest.approx(strength) for strength in STRENGTHS)


@pytest.mark.slow
def test_scale_and_offset_of_features_change_no_prediction() -> None:
    train, val, test = (clouds(90, 3, 1.0, seed) for seed in range(3))
    plain = fit_head(*train, *val)(test[0]).softmax(1)
    moved = fit_head(train[0] * 1000 + 7, train[1], val[0] * 1000 + 7, val[1])(test[0] * 1000 + 7).softmax(1)
    torch.testing.assert_close(plain, moved, atol=0.02, rtol=0)


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
    assert (heads.features.width, heads.best.width) == (16, 48)
    asked, labels = depths(1000, (0, 2.0, 2.0, 2.0), 2)
    right = [float((head(asked).argmax(1) == labels).float().mean()) for head in (heads.features, heads.best)]
    assert right[1] > right[0] + 0.05


def test_depths_that_are_noise_cost_a_head_little() -> None:
    """Side by side as equals they would cost five points here."""
    train, val, (asked, labels) = (depths(n, (0, 0, 0, 2.0), seed) for seed, n in enumerate((60, 200, 4000)))
    heads = solve_heads(train, val, [16] * 4)
    assert accuracy(heads.best(asked), labels) > accuracy(heads.features(asked), labels) - 0.02


# --- few pictures -----------------------------------------------------------------------------------------------------


def test_few_pictures_choose_by_cross_validation_and_many_by_validation() -> None:
    train, few, many = clouds(40, 4, 1.5, 0), clouds(8, 4, 1.5, 1), clouds(ENOUGH_TO_CHOOSE, 4, 1.5, 1)
    assert solve_heads(train, few, [20]).cross_validated
    assert not solve_heads(train, many, [20]).cross_validated


@pytest.mark.slow
def test_cross_validation_chooses_the_strength_with_the_least_held_out_loss() -> None:
    """Of heads on so few pictures, the one chosen is close to the best that hindsight finds, over many draws."""
    lost = []
    for seed in range(12):
        train, val, test = clouds(21, 3, 2.0, seed), clouds(6, 3, 2.0, seed + 50), clouds(300, 3, 2.0, seed + 99)
        chosen = solve_heads(train, val, [20]).best
        x = (train[0] - train[0].mean(0)) / (train[0] - train[0].mean(0)).square().sum(1).mean().sqrt()
        asked = (test[0] - train[0].mean(0)) / (train[0] - train[0].mean(0)).square().sum(1).mean().sqrt()
        scores = [
            LogisticRegression(C=strength, max_iter=300).fit(x, train[1]).score(asked, test[1])
            for strength in STRENGTHS
        ]
        lost.append(max(scores) - accuracy(chosen(test[0]), test[1]))
    assert np.mean(lost) < 0.03


@pytest.mark.slow
def test_the_head_to_deploy_is_refitted_on_validation_pictures_if_allowed() -> None:
    train, val, test = clouds(12, 4, 2.0, 0), clouds(40, 4, 2.0, 1), clouds(400, 4, 2.0, 2)
    heads = solve_heads(train, val, [20], learn_from_val=True)
    assert heads.kept is not heads.best
    assert accuracy(heads.kept(test[0]), test[1]) > accuracy(heads.best(test[0]), test[1])
    # What it is worth on them is told by heads that had not learned from them, and had more than the few of train.
    told = accuracy(heads.val_logits, val[1])
    assert accuracy(heads.best(val[0]), val[1]) < told < accuracy(heads.kept(val[0]), val[1])
    alone = solve_heads(train, val, [20])
    assert alone.kept is alone.best


def test_fewer_rows_than_columns_have_the_same_solution() -> None:
    features, labels = clouds(30, 3, 1.0, 0, width=200)
    asked = clouds(50, 3, 1.0, 1, width=200)[0]
    head = fit_head(features, labels, features, labels)
    mean = features.mean(0)
    scale = (features - mean).square().sum(1).mean().sqrt()
    model = LogisticRegression(C=head.strength, max_iter=300).fit(((features - mean) / scale).numpy(), labels.numpy())
    wanted = torch.from_numpy(model.predict_proba(((asked - mean) / scale).numpy())).float()
    torch.testing.assert_close(head(asked).softmax(1), wanted, atol=1e-2, rtol=0)


@pytest.mark.slow
def test_a_class_of_one_picture_is_always_learned_from() -> None:
    features, labels = clouds(21, 4, 0.3, 0)
    labels = torch.where(torch.arange(21) == 20, torch.tensor(4), labels)
    features[20] += 10
    heads = solve_heads((features, labels), (features[:4], labels[:4]), [20])
    assert heads.cross_validated
    assert heads.best(features[20:]).argmax(1).tolist() == [4]


def test_a_network_whose_head_reads_more_depths_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Backbone("fewtune_conv4").eval()
    stages = PooledStages(backbone)
    head = torch.nn.Linear(sum(stages.widths[-2:]), 3)
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


def test_from_one_picture_of_each_class_the_head_is_the_nearest_class_mean() -> None:
    random = torch.Generator().manual_seed(0)
    pooled, queries = torch.randn(4, 12, generator=random).abs(), torch.randn(50, 12, generator=random).abs()
    none = torch.empty(0, 12), torch.empty(0, dtype=torch.int64)
    heads = solve_heads((pooled, torch.arange(4)), none, (5, 7), learn_from_val=True)
    assert heads.best is heads.kept is heads.features
    assert heads.val_logits.shape == (0, 4)
    expected = nearest_mean(pooled[:, 5:], torch.arange(4), queries[:, 5:])
    assert torch.equal(heads.kept(queries).argmax(1), expected)
    assert math.isnan(heads.error)
