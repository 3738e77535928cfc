from __future__ import annotations

import hashlib
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import version
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
from finetune.features.cache_keys import FeatureKey, feature_key, fingerprint_key, view_of, weights_fingerprint
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


def test_rows_have_the_hash_of_their_picture_and_of_a_random_view_its_position_too() -> None:
    sha256 = hashlib.sha256(b"a picture").hexdigest()
    assert KEY.row_key(sha256, 3) == sha256
    random = replace(KEY, seed=0)
    found = [random.row_key(sha256, 3), random.row_key(sha256, 4), random.row_key("0" * 64, 3)]
    assert len({*found, sha256}) == 4
    assert all(len(bytes.fromhex(row_key)) == 32 for row_key in found)
    assert random.row_key(sha256, 3) == replace(KEY, seed=1).row_key(sha256, 3)


def test_a_key_names_every_field(backbone: Backbone) -> None:
    wanted, fabric = backbone.preprocessing, open_engine("cpu", "float32")
    pictures = Pictures([], evaluation_view(wanted), 77, 1000)
    key = feature_key(fabric, backbone, pictures, wanted, backbone="net", cut="stem", test_time="flip")
    assert (key.backbone, key.cut, key.test_time, key.kept_as, key.seed) == ("net", "stem", "flip", "float32", None)
    assert (key.at_least, key.max_pixels, len(key.view)) == (77, 1000, len(pictures.view.steps))
    assert (key.weights, key.preprocessing) == (weights_fingerprint(backbone), asdict(wanted))
    assert key.computed["runtime"] == "torch"
    assert {"instructions", "matmul"} <= key.computed.keys()
    assert key.versions["torch"] == version("torch")
    assert set(key.versions) >= {"fewtune", "torchvision", "timm", "numpy", "openvino", "pillow", "pillow-heif"}
    plain = feature_key(fabric, backbone, pictures, wanted, backbone="net")
    assert (plain.cut, plain.test_time) == ("features", "plain")
    assert feature_key(fabric, backbone, pictures, wanted, backbone="net", runtime="x").computed["runtime"] == "x"
    several = replace(pictures, views=3)
    assert feature_key(fabric, backbone, several, wanted, backbone="net").view == (*key.view, "3 views")
    with pytest.raises(ValueError, match=r"kept_as must be one of .* not 'int8'"):
        feature_key(fabric, backbone, pictures, wanted, backbone="net", kept_as="int8")


def test_fingerprints_are_shared_by_all_networks_that_decode_alike(backbone: Backbone) -> None:
    wanted, fabric = backbone.preprocessing, open_engine("cpu", "float32")
    pictures = Pictures([], training_view(wanted, Config()), 77, 1000, seed=5)
    key = feature_key(fabric, backbone, pictures, wanted, backbone="net", cut="stem", kept_as="float16")
    shared = fingerprint_key(key)
    other = replace(
        key,
        backbone="other",
        weights="1",
        preprocessing={"size": 1},
        cut="stages",
        view=("x",),
        seed=None,
        test_time="flip",
        computed={"device": "cuda"},
        kept_as="bfloat16",
        versions=dict(key.versions) | {"torch": "0", "torchvision": "0", "timm": "0", "openvino": "0"},
    )
    assert fingerprint_key(other) == shared
    assert (shared.dtype, shared.row_key("ab", 3)) == (torch.uint8, "ab")
    assert shared.versions.keys() == {"fewtune", "numpy", "pillow", "pillow-heif", "imagehash"}
    assert shared.versions["imagehash"]
    changes: list[dict[str, Any]] = [{"at_least": 78}, {"max_pixels": 1001}, {"format": 0}]
    changes += [{"versions": dict(key.versions) | {name: "0"}} for name in ("fewtune", "numpy", "pillow")]
    names = {fingerprint_key(replace(key, **change)).name for change in changes}
    assert len(names | {shared.name}) == len(changes) + 1


class _Scaled:
    def __init__(self, factor: object):
        self.factor = factor


class _Slotted:
    __slots__ = ()


def test_steps_of_a_view_differ_by_each_of_their_parameters() -> None:
    view = evaluation_view(Backbone("fewtune_conv4").preprocessing)

    def text_of(*steps: object) -> tuple[str, ...]:
        view.steps = steps  # type: ignore[assignment]
        found: tuple[str, ...] = view_of(Pictures([], view, 32, 1000))["view"]
        return found

    steps: list[object] = [nn.Dropout(0.1), nn.Dropout(0.2), sha_of, partial(sha_of, 1), partial(sha_of, 2)]
    steps += [partial(sha_of, size=1), partial(sha_of, other=1), partial(partial(sha_of, 1), 2)]
    steps += [_Scaled(1), _Scaled(2), _Scaled("1"), _Scaled(1.5), _Scaled(True), _Scaled(_Scaled(1))]
    described = [text_of(step) for step in steps]
    assert len(set(described)) == len(steps)
    assert described == [text_of(step) for step in steps]
    assert text_of(steps[0], steps[2]) == described[0] + described[2]
    for unknown in (_Slotted(), _Scaled(_Slotted()), _Scaled(None), _Scaled(lambda: 1)):
        with pytest.raises(ValueError, match="unknown"):
            text_of(unknown)


def sha_of(*parameters: object, **named: object) -> str:
    return repr((parameters, named))


def test_a_fingerprint_does_not_depend_on_where_a_module_lies_in_memory() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = object()

        def extra_repr(self) -> str:
            return f"held={self.held}"

    assert weights_fingerprint(Keeps()) == weights_fingerprint(Keeps())
