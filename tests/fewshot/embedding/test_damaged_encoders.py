"""Folders of encoders that are damaged or made to do harm: a line that names the file and the field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import FEW, header_of, other_bytes, other_json, refusal, replaced, with_header
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fewshot import Embedder
from fewshot.embedding.encoder import EncoderSpec, create, round_to_half
from fewshot.embedding.encoder_files import CONFIG_FILE, WEIGHTS_FILE
from fewshot.report.run import facts, read_run
from fewshot.training.config import SiameseConfig
from fewshot.training.train import metrics_of
from finetune.errors import InputError
from finetune.files.reading import read_json, read_tensors
from finetune.files.writing import write_json, write_tensors

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
METRICS = {
    "steps": 3,
    "seconds": 1.5,
    "waiting": 0.1,
    "validation": {"of": "a", "accuracy": 0.5},
    "kept_step": 3,
    "interrupted": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoder")
    spec = EncoderSpec("fewtune_conv4", 16, "whole")
    network = create(spec).eval()
    round_to_half(network)
    about = {"source": "/pictures", "recipe": SiameseConfig(network="fewtune_conv4").to_dict(), "steps": 3}
    Embedder(network, spec, device="cpu").save(folder, **about)
    write_json(folder / "metrics.json", METRICS)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def embeds(run: Path) -> None:
    vectors = Embedder.load(run, device="cpu").embed([PICTURE])
    assert np.isfinite(vectors).all()
    assert facts(read_run(str(run)))


def test_the_encoder_itself_embeds(run: Path) -> None:
    embeds(run)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spec": {"network": "local-dir:/tmp", "side": 16, "framing": "whole"}}, "knows no network 'local-dir:/tmp'"),
        ({"spec": {"network": "hf-hub:a/b", "side": 16, "framing": "whole"}}, "knows no network 'hf-hub:a/b'"),
        ({"spec": {"network": "../x", "side": 16, "framing": "whole"}}, "knows no network"),
        ({"spec": {"network": "fewtune_conv4", "side": 0, "framing": "whole"}}, "spec.side"),
        ({"spec": {"network": "fewtune_conv4", "side": 10**6, "framing": "whole"}}, "spec.side"),
        ({"spec": {"network": "fewtune_conv4", "side": 2, "framing": "whole"}}, "spec.side"),
        ({"spec": {"network": "fewtune_conv4", "side": 16.5, "framing": "whole"}}, "spec.side"),
        ({"spec": {"network": "fewtune_conv4", "side": 16, "framing": "crop"}}, "preprocessing"),
        ({"spec": {"network": "fewtune_conv4", "side": 16, "framing": "upside down"}}, "spec.framing"),
        ({"spec": []}, "spec"),
        ({"trained_on": {"Greek": ["alpha"]}}, "trained_on"),
        ({"trained_on": [1]}, "trained_on"),
        ({"fingerprint": 5}, "fingerprint"),
        ({"verification": "certain"}, "verification"),
        ({"format": True}, "format"),
        ({"recipe": 3}, "recipe"),
    ],
)
def test_a_config_out_of_bounds_is_refused(change: dict[str, Any], named: str, run: Path) -> None:
    (run / CONFIG_FILE).write_text(json.dumps(read_json(run / CONFIG_FILE) | change))
    with pytest.raises(InputError, match=named):
        Embedder.load(run, device="cpu")


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("blocks.0.0.weight", torch.ones(96), "blocks.0.0.weight is 96, the model's is 96x3x3x3"),
        ("blocks.0.0.weight", torch.full((96, 3, 3, 3), torch.nan), "not finite"),
        ("blocks.0.0.weight", torch.ones(96, 3, 3, 3, dtype=torch.int8), "holds int8"),
        ("blocks.0.2.bias", None, "blocks.0.2.bias is missing"),
        ("more", torch.tensor(1.0), "more is not in the model"),
    ],
)
def test_weights_that_do_not_fit_are_refused(name: str, tensor: Tensor | None, why: str, run: Path) -> None:
    tensors = read_tensors(run / WEIGHTS_FILE)
    tensors.pop(name, None)
    write_tensors(run / WEIGHTS_FILE, tensors if tensor is None else tensors | {name: tensor})
    with pytest.raises(InputError, match=rf"model\.safetensors does not fit fewtune_conv4.*{why}"):
        Embedder.load(run, device="cpu")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (CONFIG_FILE, {"engine": {}}),
        (CONFIG_FILE, {"engine": None}),
        (CONFIG_FILE, {"recipe": {"margin": "wide"}}),
        ("history.csv", "step,loss\n1,nan\n"),
        ("history.csv", "step,loss\n,0.5\n"),
    ],
)
def test_a_report_of_a_run_out_of_bounds_is_refused(file: str, content: Any, run: Path) -> None:
    whole = content if isinstance(content, str) else json.dumps(read_json(run / file) | content)
    (run / file).write_text(whole)
    with pytest.raises(InputError, match=file):
        read_run(str(run))


def test_an_option_that_an_older_run_lacks_has_its_default(run: Path) -> None:
    write_json(run / CONFIG_FILE, read_json(run / CONFIG_FILE) | {"recipe": {}})
    assert ("loss", "contrastive, margin 1, 8 nearest negatives for each picture") in facts(read_run(str(run)))


@pytest.mark.parametrize("change", [{"steps": "many"}, {"validation": []}, {"seconds": 1e400}, {"kept_step": -1}])
def test_metrics_out_of_bounds_are_refused(change: dict[str, Any], run: Path) -> None:
    (run / "metrics.json").write_text(json.dumps(METRICS | change))
    with pytest.raises(InputError, match=r"metrics\.json (may be damaged|is not valid JSON)"):
        metrics_of(run)


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_any_damage_to_an_encoder_is_an_input_error_or_embeds(data: st.DataObject, made: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    if not run.exists():
        shutil.copytree(made, run)
    contents = {name: (made / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE, "metrics.json")}
    for name, content in contents.items():
        replaced(run / name, content)
    name, content = data.draw(st.sampled_from(sorted(contents.items())))
    if name == WEIGHTS_FILE:
        whole = other_json(header_of(content)).map(lambda value: with_header(content, value))
    else:
        whole = other_json(json.loads(content)).map(lambda value: json.dumps(value).encode())
    replaced(run / name, data.draw(whole | other_bytes(content)))
    refusal(lambda: embeds(run))
