"""Run folders that are damaged or made to do harm: `load` refuses them in a line that names the file and the field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from damage import FEW, header_of, other_bytes, other_json, refusal, replaced, with_header
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finetune import Config, InputError, load
from finetune.classifier.classifier import Classifier
from finetune.classifier.run_config import CONFIG_FILE
from finetune.classifier.stored import WEIGHTS_FILE
from finetune.data.transforms import Preprocessing
from finetune.files.reading import as_type, read_json, read_tensors
from finetune.files.writing import write_tensors
from finetune.models.backbone import Backbone, Network
from finetune.models.depth_head import DepthHead
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = Backbone("fewtune_conv4").eval()
    stages = PooledStages(backbone)
    network = Network(backbone, DepthHead(stages.widths[-2:], 3), stages.hooks)
    config, fabric = Config(backbone="fewtune_conv4", device="cpu"), open_engine("cpu", "float32")
    folder = tmp_path_factory.mktemp("made")
    record = {"strategy": "full", "kept": "head", "folder": "/pictures"}
    Classifier(network, ["a", "b", "c"], backbone.preprocessing, config, fabric).save(folder, record)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def with_config(run: Path, *place: str, value: Any) -> None:
    config = read_json(run / CONFIG_FILE)
    at = config
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    (run / CONFIG_FILE).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("size", -1),
        ("size", 1_000_000),
        ("size", 10**30),
        ("size", 35.5),
        ("size", "35"),
        ("crop_pct", 0),
        ("crop_pct", 1e-9),
        ("crop_pct", 2.0),
        ("crop_pct", float("nan")),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", [0.5, 0.5, 1e300]),
        ("std", [0.5, 0.5, 0.0]),
        ("std", [0.5, 0.5, -0.5]),
        ("std", [1e-300, 0.5, 0.5]),
        ("std", [0.5, 0.5, 0.5, 0.5]),
        ("std", 0.5),
        ("interpolation", "telepathic"),
        ("interpolation", ["bicubic"]),
    ],
)
def test_a_preprocessing_out_of_bounds_is_refused(field: str, value: Any, run: Path) -> None:
    with_config(run, "preprocessing", field, value=value)
    named = "NaN" if "nan" in str(value) else rf"preprocessing\.{field}"
    with pytest.raises(InputError, match=rf"run/config\.json .*{named}"):
        load(run, device="cpu")


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("strategy",), "sideways", "strategy: 'sideways' is none of head, "),
        (("kept",), "\x1b[31m", r"kept: '\\x1b"),
        (("highest_stage",), "blocks.99", "has no stage 'blocks.99'"),
        (("highest_stage",), 3, "highest_stage"),
        (("temperature",), 1e-300, "temperature"),
        (("temperature",), 0, "temperature"),
        (("classes",), ["a", "b", "a"], "classes: a name is there twice"),
        (("classes",), [], "classes"),
        (("classes",), ["a", "b", 3], "classes"),
        (("config", "backbone"), "../../etc/passwd", "no model '../../etc/passwd'"),
        (("config", "backbone"), "local-dir:/tmp", "no model 'local-dir:/tmp'"),
        (("config", "backbone"), "resnet18.local-dir:/tmp", "no weights"),
        (("config", "backbone"), "hf-hub:a/b", "no model"),
        (("config", "image_size"), 10**9, "--image-size must be at most 4096"),
        (("config", "max_pixels"), "many", "--max-pixels"),
        (("format",), 99, "has format 99"),
    ],
)
def test_a_field_out_of_bounds_is_refused(place: tuple[str, ...], value: Any, named: str, run: Path) -> None:
    with_config(run, *place, value=value)
    with pytest.raises(InputError, match=rf"run/config\.json .*{named}") as caught:
        load(run, device="cpu")
    assert str(caught.value).isprintable()


def test_a_size_that_the_network_does_not_take_is_refused(run: Path) -> None:
    with_config(run, "preprocessing", "size", value=8)
    with pytest.raises(InputError, match=r"preprocessing\.size: fewtune_conv4 takes no pictures of 8 pixels"):
        load(run, device="cpu")


def test_every_published_preprocessing_is_within_the_bounds() -> None:
    for name in timm.list_pretrained():
        published = timm.get_pretrained_cfg(name)
        assert published is not None
        side = max(published.input_size)
        values = [side, published.crop_pct, published.interpolation, published.mean, published.std]
        as_type(dict(zip(Preprocessing.__annotations__, values, strict=True)), Preprocessing, name)


def test_another_size_that_the_network_takes_is_used(run: Path) -> None:
    with_config(run, "preprocessing", "size", value=48)
    assert load(run, device="cpu").predict(PICTURE).label in "abc"


def test_config_nested_deep_is_refused(run: Path) -> None:
    (run / CONFIG_FILE).write_text('{"format":1,"config":' + "[" * 100_000)
    with pytest.raises(InputError, match=r"config\.json is not valid JSON \(it is nested deeper"):
        load(run, device="cpu")


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("head.weight", torch.tensor(1.0), "head.weight is a number"),
        ("head.weight", torch.ones(384), "head.weight is 384"),
        ("head.weight", torch.ones(2, 384), "head.weight is 2x384, the model's is 3x384"),
        ("head.weight", torch.full((3, 384), torch.nan), "head.weight has values that are not finite"),
        ("head.weight", torch.ones(3, 384, dtype=torch.int64), "head.weight holds int64"),
        ("head.bias", torch.ones(3, dtype=torch.complex64), "head.bias holds complex64"),
        ("head.unit_weight", torch.ones(480), "head.unit_weight is 480, and there are 3 classes"),
        ("head.unit_weight", torch.ones(4, 480), "head.unit_weight is 4x480, and there are 3 classes"),
        ("head.unit_weight", torch.ones(3, 0), "head.unit_weight is 3x0, and"),
        ("head.unit_weight", torch.ones(0, 10**12), "head.unit_weight is 0x1000000000000, and"),
        ("head.unit_weight", torch.ones(3, 481), "head.unit_weight reads 481 values"),
        ("head.bias", None, "head.bias is missing"),
        ("backbone.blocks.0.0.weight", None, r"blocks\.0\.0\.weight is missing"),
        ("backbone.blocks.0.2.running_var", torch.full((96,), torch.inf), "not finite"),
        ("more", torch.ones(1), "more is not in the model"),
    ],
)
def test_weights_that_do_not_belong_to_the_run_are_refused(
    name: str, tensor: Tensor | None, why: str, run: Path
) -> None:
    tensors = read_tensors(run / WEIGHTS_FILE)
    tensors.pop(name, None)
    write_tensors(run / WEIGHTS_FILE, tensors if tensor is None else tensors | {name: tensor})
    with pytest.raises(InputError, match=rf"run/model\.safetensors does not fit .*config\.json: .*{why}"):
        load(run, device="cpu")


@pytest.mark.parametrize("shape", [(), (7,), (3, 0), (3, 10**6), (2, 384)])
def test_the_head_of_an_earlier_version_is_checked_too(shape: tuple[int, ...], run: Path) -> None:
    tensors = read_tensors(run / WEIGHTS_FILE) | {"head.weight": torch.ones(shape)}
    del tensors["head.unit_weight"]
    write_tensors(run / WEIGHTS_FILE, tensors)
    with pytest.raises(InputError, match=r"does not fit .*config\.json: head\.weight"):
        load(run, device="cpu")


def test_weights_that_give_no_numbers_are_an_input_error(run: Path) -> None:
    tensors = read_tensors(run / WEIGHTS_FILE)
    write_tensors(run / WEIGHTS_FILE, tensors | {"backbone.blocks.3.2.running_var": torch.full((96,), -1.0)})
    with pytest.raises(InputError, match="run gives probabilities that are no numbers; its weights may be damaged"):
        load(run, device="cpu").predict(PICTURE)


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_a_config_is_an_input_error_or_predicts(data: st.DataObject, made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    content, config = (made / CONFIG_FILE).read_bytes(), read_json(made / CONFIG_FILE)
    changed = data.draw(other_json(config).map(lambda value: json.dumps(value).encode()) | other_bytes(content))
    (run / CONFIG_FILE).write_bytes(changed)
    if not (run / WEIGHTS_FILE).exists():
        shutil.copy(made / WEIGHTS_FILE, run)
    refusal(lambda: predicts(run))


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_weights_is_an_input_error_or_predicts(data: st.DataObject, made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    content = (made / WEIGHTS_FILE).read_bytes()
    header = header_of(content)
    whole = other_json(header).map(lambda value: with_header(content, value))
    replaced(run / WEIGHTS_FILE, data.draw(whole | other_bytes(content)))
    shutil.copy(made / CONFIG_FILE, run)
    refusal(lambda: predicts(run))


def predicts(run: Path) -> None:
    prediction = load(run, device="cpu").predict(PICTURE)
    assert 0 <= prediction.probability <= 1
    assert prediction.label in "abc"
