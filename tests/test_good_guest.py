"""A library call leaves the process as it was, and prints nothing unless a display is given."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr  # noqa: F401  what libraries change when they are imported is their own affair
import imagehash  # noqa: F401
import numpy as np
import onnxscript  # noqa: F401
import pytest
import sklearn.linear_model  # noqa: F401
import torch
from conftest import MakeFolder
from PIL import Image

import finetune
from fewshot.embedding.embedder import Embedder
from fewshot.training.config import SiameseConfig
from fewshot.training.train import train_folder
from finetune.api.inspect import inspect_folder
from finetune.api.preview import find_rate, probe_folder
from finetune.computing.openvino_module import openvino_module
from finetune.models.device import open_engine, reproducible_numerics

openvino_module()

SMALL: dict[str, Any] = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0, "batch_size": 8}


def environment() -> dict[str, Any]:
    """Everything in the process that a library call could leave changed."""
    loggers = [logging.getLogger(), *map(logging.getLogger, logging.Logger.manager.loggerDict)]
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    return {
        "variables": dict(os.environ),
        "working folder": os.getcwd(),
        "cudnn": (cudnn.enabled, cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32),
        "matmul": (torch.get_float32_matmul_precision(), matmul.allow_tf32),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "defaults": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),
        "numpy errors": np.geterr(),
        "torch": torch.get_rng_state().tolist(),
        "loggers": {log.name: (log.level, log.disabled, list(log.filters), list(log.handlers)) for log in loggers},
        "warnings": list(warnings.filters),
        "garbage": (gc.isenabled(), gc.get_threshold()),
        "pillow": Image.MAX_IMAGE_PIXELS,
        "hooks": (sys.excepthook, sys.unraisablehook, sys.displayhook),
    }


def fit_head(folder: Path, out: Path) -> None:
    finetune.fit(folder, out, strategy="head", **SMALL)


def fit_partial(folder: Path, out: Path) -> None:
    finetune.fit(folder, out, strategy="partial", epochs=2, **SMALL)
    classifier = finetune.load(out)
    assert len(classifier.predict_all(sorted(folder.rglob("*.png")))) == 40


def fit_from_random_weights(folder: Path, out: Path) -> None:
    finetune.fit(folder, None, strategy="scratch", epochs=1, **SMALL)


def preview(folder: Path, out: Path) -> None:
    config = finetune.Config(strategy="partial", **SMALL)
    probe_folder(folder, config=config)
    find_rate(folder, config=config)
    inspect_folder(folder, config=config)


def embed(folder: Path, out: Path) -> None:
    assert len(Embedder.load("omniglot", device="cpu").embed(folder)) == 40


def train_encoder(folder: Path, out: Path) -> None:
    recipe = SiameseConfig(epochs=2, side=16, device="cpu", alphabets=1, ways=2, shots=2)
    train_folder(folder, out, config=recipe, everything=True)


@pytest.mark.slow
@pytest.mark.parametrize("job", [fit_head, fit_partial, fit_from_random_weights, preview, embed, train_encoder])
def test_a_library_call_leaves_the_process_as_it_was_and_is_silent(
    job: Callable[[Path, Path], None], make_folder: MakeFolder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(classes={"blue": 20, "red": 20})
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(1234)
    before, frozen = environment(), gc.get_freeze_count()
    job(folder, tmp_path / "out")
    after = environment()
    assert gc.get_freeze_count() <= frozen  # some of what the suite froze may have gone
    for name, value in before.items():
        # A logger that a library made meanwhile is new, and nobody's setting is lost.
        found = {log: after[name][log] for log in value} if name == "loggers" else after[name]
        assert found == value, name
    assert capfd.readouterr() == ("", "")


def test_settings_of_a_gpu_hold_while_jobs_run_and_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before, gpu = environment(), torch.device("cuda")
    outer, inner = reproducible_numerics(gpu), reproducible_numerics(gpu)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # jobs of two threads end in any order
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    inner.__exit__(None, None, None)
    assert environment() == before
    with reproducible_numerics(torch.device("cpu")):
        assert environment() == before
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with reproducible_numerics(gpu):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_a_logger_of_fabric_keeps_its_level() -> None:
    log = logging.getLogger("lightning_fabric.utilities.rank_zero")
    before = log.level
    open_engine("cpu", "bfloat16")
    assert log.level == before
