from __future__ import annotations

import copy
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from called import Answer, caller
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from torch import Tensor

import finetune
from finetune.api.preview import probe_folder
from finetune.cli.main import main
from finetune.config import Config
from finetune.errors import InputError
from finetune.linear.choice import choose
from finetune.linear.probe import _ridge, held_out_errors, probe_curve
from finetune.models.backbone import Backbone, Network
from finetune.models.pooled import PooledStages

FAMILIES = {"fewtune_conv4": 35, "resnet10t": 64, "tf_efficientnet_lite0": 64, "vit_tiny_patch16_224": 224}


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    return caller(main, "finetune", monkeypatch, capfd)


def depth(labels: Tensor, width: int, apart: float, seed: int = 0) -> Tensor:
    """(n, width) in which the classes lie so far apart."""
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(int(labels.max()) + 1, width, generator=random)
    return torch.randn(len(labels), width, generator=random) + apart * centres[labels]


# --- every depth in one pass ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.items())
def test_the_last_depth_is_the_backbone_s_features_and_each_stage_has_one(name: str, size: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone(name, image_size=size).eval()
    stages = PooledStages(backbone)
    pictures = torch.randn(2, 3, size, size)
    with torch.no_grad():
        parts = stages.split(stages(pictures))
        torch.testing.assert_close(parts[-1], backbone(pictures))
    assert stages.depths[:-1] == tuple(stage.name for stage in backbone.stages[:-1])
    assert stages.depths[-1] == "features"
    assert [part.shape for part in parts] == [(2, width) for width in stages.widths]


@pytest.mark.slow
def test_a_depth_is_the_mean_over_places_of_what_the_next_stage_receives() -> None:
    backbone = Backbone("tf_efficientnet_lite0", image_size=64).eval()
    stages, pictures = PooledStages(backbone), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        parts = stages.split(stages(pictures))
        for position in range(1, len(backbone.stages)):
            received = backbone.cut(position)[0](pictures)
            torch.testing.assert_close(parts[position - 1], received.mean((2, 3)), atol=1e-5, rtol=1e-4)


def test_hooks_exist_only_during_a_forward_pass() -> None:
    backbone = Backbone("fewtune_conv4").eval()
    stages = PooledStages(backbone)
    hooks = [module._forward_pre_hooks for module in backbone.modules()]
    assert not any(hooks)
    during: list[int] = []
    backbone.model.blocks[1].register_forward_hook(lambda *_: during.append(sum(map(len, hooks))))
    stages(torch.zeros(1, 3, 35, 35))
    assert during == [3]
    assert not any(hooks)
    with pytest.raises(RuntimeError):
        stages(torch.zeros(1, 5, 35, 35))
    assert not any(hooks)


def test_a_network_on_every_depth_can_be_copied() -> None:
    backbone = Backbone("fewtune_conv4").eval()
    stages, pictures = PooledStages(backbone), torch.randn(2, 3, 35, 35)
    network = Network(backbone, torch.nn.Linear(sum(stages.widths), 2), stages.hooks)
    assert torch.equal(copy.deepcopy(network)(pictures), network(pictures))
    assert all(name.startswith(("backbone.model.", "head.")) for name in network.state_dict())


def test_several_threads_use_one_network_at_the_same_time() -> None:
    backbone = Backbone("fewtune_conv4").eval()
    stages = PooledStages(backbone)
    batches = [torch.randn(3, 3, 35, 35) for _ in range(24)]

    def look(batch: Tensor) -> Tensor:
        with torch.no_grad():
            return stages(batch)  # type: ignore[no-any-return]

    wanted = [look(batch) for batch in batches]
    with ThreadPoolExecutor(6) as pool:
        for found, expected in zip(pool.map(look, batches), wanted, strict=True):
            torch.testing.assert_close(found, expected)


# --- the curve --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=12)
@given(st.integers(0, 10_000), st.integers(12, 24), st.sampled_from([3, 8, 60]))
def test_a_probe_judges_every_picture_by_the_others(seed: int, n: int, width: int) -> None:
    """In closed form what scikit-learn finds by leaving out one picture after the other."""
    labels = torch.arange(n) % 3
    part = depth(labels, width, 0.7, seed)
    probe = probe_curve([part], ["features"], labels).last
    scaled = part.double() - part.double().mean(0)
    scaled /= scaled.square().sum(1).mean().sqrt()
    energy = float(scaled.square().sum()) / min(scaled.shape)
    targets = torch.nn.functional.one_hot(labels).double()
    ridge = Ridge(alpha=probe.strength * energy)
    answers = torch.from_numpy(cross_val_predict(ridge, scaled.numpy(), targets.numpy(), cv=LeaveOneOut()))
    # Each class weighs the same, however many pictures it has.
    right = (answers - targets.mean(0)).argmax(1) == labels
    assert probe.accuracy == pytest.approx(float(right.double().mean()), abs=1e-9)
    guessed = (targets - targets.mean(0)).square().sum()
    assert probe.error == pytest.approx(float((targets - answers).square().sum() / guessed), rel=1e-6)


def test_pictures_separable_at_an_earlier_depth_are_called_different() -> None:
    labels = torch.arange(300) % 5
    parts = [depth(labels, 16, 0.0), depth(labels, 64, 0.6, 1), depth(labels, 200, 0.05, 2)]
    curve = probe_curve(parts, ["stem", "middle", "features"], labels)
    assert curve.best.depth == "middle"
    assert curve.different
    assert curve.probes[1].over_last_interval[0] > 0
    assert curve.last.over_last == 0
    reason = choose("auto", 60, curve).reason
    assert "differ from the backbone's own" in reason
    assert f"{curve.last.accuracy:.1%}" in reason


def test_pictures_separable_at_the_last_depth_are_called_alike() -> None:
    labels = torch.arange(300) % 5
    parts = [depth(labels, 16, 0.1), depth(labels, 64, 0.2, 1), depth(labels, 200, 0.5, 2)]
    curve = probe_curve(parts, ["stem", "middle", "features"], labels)
    assert curve.best.depth == "features"
    assert not curve.different
    assert "like the backbone's own" in choose("auto", 60, curve).reason


def test_depths_differ_in_error_where_all_accuracies_are_one() -> None:
    """By how far the answers lie from the classes: accuracy has no room left."""
    labels = torch.arange(300) % 3
    parts = [depth(labels, 16, 0.0), depth(labels, 64, 2.0, 1), depth(labels, 64, 1.2, 2)]
    curve = probe_curve(parts, ["stem", "middle", "features"], labels)
    assert curve.last.accuracy == 1
    assert curve.probes[1].clearly_better
    assert curve.best.depth == "middle"
    assert "less squared error" in choose("auto", 60, curve).reason


def test_auto_follows_the_curve() -> None:
    labels = torch.arange(300) % 5
    names = ["stem", "low", "middle", "high", "features"]
    parts = [depth(labels, 64, apart, seed) for seed, apart in enumerate((0.0, 0.1, 0.9, 0.5, 0.1))]
    differ = probe_curve(parts, names, labels)
    assert choose("auto", 60, differ).strategy.name == "partial"
    assert choose("auto", 60, differ).strategy.lowest == "high"  # above "middle"
    assert "from high up" in choose("auto", 60, differ).reason
    assert choose("auto", 500, differ).strategy.name == "train"
    parts = [depth(labels, 64, apart, seed) for seed, apart in enumerate((0.0, 0.1, 0.1, 0.1, 0.6))]
    alike = probe_curve(parts, names, labels)
    assert choose("auto", 60, alike).strategy.lowest is None
    assert choose("auto", 500, alike).strategy.name == "full"


def test_a_probes_predictions_are_those_of_ridge_regression() -> None:
    labels, others = torch.arange(60) % 3, torch.arange(40) % 3
    features, asked = depth(labels, 20, 0.8, 3), depth(others, 20, 0.8, 3)
    strength = probe_curve([features], ["features"], labels).last.strength
    scaled = (features - features.mean(0)).double()
    scale = scaled.square().sum(1).mean().sqrt()
    energy = float((scaled / scale).square().sum()) / 20
    model = RidgeClassifier(alpha=strength * energy).fit((features / scale).numpy(), labels.numpy())
    one_hot = torch.nn.functional.one_hot(labels).double()
    found = _ridge(features.double(), one_hot, asked.double(), strength).argmax(1)
    assert found.tolist() == model.predict((asked / scale).numpy()).tolist()


def test_noise_beside_noise_is_not_called_better() -> None:
    """Choosing numbers by the pictures that judge them would make it so."""
    labels = torch.arange(100) % 4
    for seed in range(5):
        parts = [depth(labels, 400, 0.0, 10 * seed + number) for number in range(4)]
        curve = probe_curve(parts, ["a", "b", "c", "features"], labels)
        assert curve.together.accuracy < 0.5


def test_too_few_pictures_are_refused() -> None:
    with pytest.raises(InputError, match="two pictures of each"):
        probe_curve([torch.randn(3, 4)], ["features"], torch.tensor([0, 0, 1]))
    with pytest.raises(InputError, match="two classes"):
        probe_curve([torch.randn(3, 4)], ["features"], torch.tensor([0, 0, 0]))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_probe_curve_of_a_folder_uses_its_training_pictures(
    call: Callable[..., Answer], make_folder: Callable[..., Path]
) -> None:
    folder = make_folder(classes={"cat": 20, "dog": 20})
    words = ("probe", folder, "--backbone", "fewtune_conv4")
    found = json.loads(call(*words, "--json").out)
    assert found["classes"] == 2
    assert 20 <= found["pictures"] < 40  # some are set aside
    assert [probe["depth"] for probe in found["probes"]][-1] == "features"
    assert found["probes"][-1]["accuracy"] == 1
    answer = call(*words)
    assert answer.code == 0, answer.err
    assert "together" in answer.out
    assert np.isclose(found["together"]["accuracy"], 1, atol=0.1)


def test_one_picture_of_a_class_is_too_few_to_probe(
    call: Callable[..., Answer], make_folder: Callable[..., Path]
) -> None:
    answer = call("probe", make_folder(classes={"cat": 1, "dog": 3}), "--backbone", "fewtune_conv4")
    assert answer.code == 2
    assert "two of each" in answer.err


@pytest.mark.slow
def test_a_run_reports_its_probe_curve_and_the_depths_of_its_head(make_folder: Callable[..., Path]) -> None:
    folder = make_folder(classes={"cat": 10, "dog": 10})
    chosen = finetune.fit(folder, backbone="fewtune_conv4", device="cpu").metrics
    curve = chosen["probe_curve"]
    assert chosen["strategy"] == "head"
    assert f"{curve['probes'][-1]['accuracy']:.1%}" in chosen["reason"]
    depths = [probe["depth"] for probe in curve["probes"]]
    assert chosen["head_reads"] == depths[-len(chosen["head_reads"]) :]
    trained = finetune.fit(folder, backbone="fewtune_conv4", device="cpu", strategy="scratch", epochs=1).metrics
    assert trained["head_reads"] == ["features"]
    assert finetune.fit(folder, backbone="fewtune_conv4", device="cpu", strategy="head").metrics["probe_curve"] is None


def test_of_many_pictures_every_class_has_its_share_in_the_curve(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.api.prepare.MOST", 12)
    folder = make_folder(classes={"cat": 40, "dog": 10, "eel": 4})
    curve = probe_folder(folder, config=Config(backbone="fewtune_conv4", device="cpu"))
    assert curve.classes == 3
    assert 12 <= curve.pictures <= 15


def test_held_out_errors_count_the_last_depth_and_the_last_three() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    informative = torch.nn.functional.one_hot(labels).float() + 0.3 * torch.randn(60, 3, generator=generator)
    noise = torch.randn(60, 8, generator=generator)
    early, right = held_out_errors([informative, noise], labels)
    late, _ = held_out_errors([noise, informative], labels)
    neither, _ = held_out_errors([noise, noise.roll(1, 0)], labels)
    unread, _ = held_out_errors([informative, noise, noise, noise], labels)  # heads read three depths
    assert late.mean() < early.mean() < neither.mean()
    assert unread.mean() > 0.9
    assert right.double().mean() > 0.8
    assert early.shape == right.shape == (60,)
