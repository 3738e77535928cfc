from __future__ import annotations

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_activations import KEY, filled, keys_of, opened
from torch import nn

from finetune.config import Config
from finetune.data.loader import Pictures
from finetune.data.transforms import evaluation_view, training_view
from finetune.features.cache_keys import FeatureKey, feature_key, weights_fingerprint
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "other"},
        {"weights": "1" * 64},
        {"preprocessing": {"size": 33, "mean": (0.5, 0.5, 0.5)}},
        {"preprocessing": {"size": 32, "mean": (0.5, 0.5, 0.4999999)}},
        {"cut": "blocks.3"},
        {"view": ("CenterCrop(33)",)},
        {"seed": 0},
        {"at_least": 33},
        {"max_pixels": 1001},
        {"test_time": "flip"},
        {"computed": {"device": "cpu", "precision": "bf16-mixed"}},
        {"kept_as": "bfloat16"},
        {"versions": {"torch": "2.11"}},
        {"format": 1},
    ],
    ids=str,
)
def test_a_change_of_any_field_is_a_miss(change: dict[str, Any], tmp_path: Path) -> None:
    filled(tmp_path, [1, 2])
    cache = opened(tmp_path)
    assert cache.known(KEY, keys_of([1, 2, 3])).tolist() == [True, True, False]
    assert not cache.known(replace(KEY, **change), keys_of([1, 2])).any()
    with pytest.raises(KeyError, match=keys_of([3])[0]):
        cache.get(KEY, keys_of([1, 3]))


def test_every_field_is_changed() -> None:
    marks = test_a_change_of_any_field_is_a_miss.pytestmark  # type: ignore[attr-defined]
    changed = {name for change in marks[0].args[1] for name in change}
    assert changed == {field.name for field in fields(FeatureKey)}


def test_a_fingerprint_tells_weights_names_buffers_and_structure_apart() -> None:
    def network(*, act: type[nn.Module] = nn.ReLU, stride: int = 1, seed: int = 0) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 4, 3, stride), nn.BatchNorm2d(4), act())

    plain = network()
    moved, nudged = network(), network()
    moved[1].running_mean += 1  # type: ignore[operator]
    nudged[0].weight.data.view(torch.int32)[0, 0, 0, 0] ^= 1
    named = nn.ModuleDict({"conv": plain[0], "norm": plain[1]})
    others = [moved, nudged, named, network(act=nn.GELU), network(stride=2), network(seed=1), network().double()]
    assert weights_fingerprint(plain) == weights_fingerprint(network().train(False).requires_grad_(False))
    assert len({weights_fingerprint(each) for each in (plain, *others)}) == len(others) + 1


def test_a_key_depends_on_how_pictures_are_read_transformed_and_run(backbone: Backbone) -> None:
    wanted = backbone.preprocessing
    fabric = open_engine("cpu", "float32")
    plain = Pictures([], evaluation_view(wanted), wanted.shortest_side, 1000)
    views = [
        training_view(wanted, Config(**options))
        for options in ({}, {"crop_scale": 0.5}, {"flip": False}, {"trivial_augment": False})
    ]
    seen = [
        plain,
        replace(plain, at_least=1),
        replace(plain, max_pixels=1001),
        replace(plain, view=evaluation_view(wanted, "ten-crop")),
        *(replace(plain, view=view) for view in views),
        replace(plain, view=views[0], seed=1),
    ]
    named = [feature_key(fabric, backbone, pictures, wanted, backbone="net").name for pictures in seen]
    options: list[dict[str, str]] = [
        {"cut": "stem"},
        {"test_time": "flip"},
        {"runtime": "OpenVINO"},
        {"kept_as": "float16"},
    ]
    named += [feature_key(fabric, backbone, plain, wanted, backbone="net", **option).name for option in options]
    named.append(feature_key(open_engine("cpu", "bfloat16"), backbone, plain, wanted, backbone="net").name)
    assert len(set(named)) == len(named)
    again = replace(plain, view=evaluation_view(wanted), seed=5)  # a seed that nothing draws from
    assert feature_key(fabric, backbone, again, wanted, backbone="net").name == named[0]


def test_a_view_with_unknown_parameters_is_refused(backbone: Backbone) -> None:
    wanted, fabric = backbone.preprocessing, open_engine("cpu", "float32")
    view = evaluation_view(wanted)
    for step in (lambda picture: picture, partial(np.asarray, torch.zeros(3))):
        view.steps = (step,)
        with pytest.raises(ValueError, match="unknown"):
            feature_key(fabric, backbone, Pictures([], view, 32, 1000), wanted, backbone="net")
