from __future__ import annotations

import torch

from finetune.head import STRENGTHS, fit_head, nearest_mean
from finetune.metrics import accuracy


def clouds(n: int, classes: int, spread: float, seed: int, width: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, width, generator=random), labels


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
    assert noisy.strength in STRENGTHS


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
    weights = len(labels) / (2 * labels.bincount().float())
    rare = test_labels == 1
    plain = fit_head(features, labels, features, labels)(test_features).argmax(1)
    weighed = fit_head(features, labels, features, labels, weights)(test_features).argmax(1)
    assert (weighed[rare] == 1).float().mean() > (plain[rare] == 1).float().mean() + 0.05


def test_nearest_mean_ignores_length() -> None:
    features = torch.tensor([[1.0, 0.0], [5.0, 0.1], [0.0, 1.0]])
    queries = torch.tensor([[100.0, 1.0], [0.01, 0.5]])
    assert nearest_mean(features, torch.tensor([0, 0, 1]), queries).tolist() == [0, 1]
