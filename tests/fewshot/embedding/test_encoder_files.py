"""Encoders from timm, with weights from a file, and from runs of `finetune fit`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import MakeFolder
from drawings import character, drawings
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

import finetune
from fewshot.embedding.embedder import Embedder
from finetune import InputError
from finetune.data.folder import list_unlabelled
from finetune.features.forward import run_frozen

pytestmark = pytest.mark.slow

SMALL = {"backbone": "fewtune_conv4", "device": "cpu", "workers": 0, "trivial_augment": False, "batch_size": 8}


def pictures(count: int = 5, side: int = 50) -> list[NDArray[np.uint8]]:
    """Different pictures of coarse coloured squares."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return list(coarse.repeat(side // 5, 1).repeat(side // 5, 2))


def weights_of(name: str, path: Path, seed: int = 0) -> Path:
    """A file of random weights."""
    torch.manual_seed(seed)
    save_file(timm.create_model(name, num_classes=0).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def conv4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights_of("fewtune_conv4", tmp_path_factory.mktemp("weights") / "conv4.safetensors")


@pytest.fixture
def fitted(make_folder: MakeFolder, tmp_path: Path) -> tuple[Path, Path]:
    """A run of `finetune fit` and its training folder."""
    folder = make_folder(classes={"blue": 12, "green": 12, "red": 12})
    finetune.fit(folder, tmp_path / "run", strategy="scratch", epochs=1, **SMALL)
    return tmp_path / "run", folder


def refused(source: str | Path, message: str, **options: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Embedder.load(source, device="cpu", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fewtune_conv4", "resnet10t"])
def test_vectors_of_a_timm_model_are_its_normalised_features(name: str, tmp_path: Path) -> None:
    weights = weights_of(name, tmp_path / "weights.safetensors")
    embedder = Embedder.load(name, weights=weights, device="cpu")
    model = timm.create_model(name, num_classes=0).eval()
    model.load_state_dict(timm.models.load_state_dict(str(weights)))
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    with torch.inference_mode():
        seen = torch.stack([transform(picture) for picture in map(Image.fromarray, pictures())])
        wanted = F.normalize(model(seen), dim=1).numpy()
    vectors = embedder.embed(pictures())
    assert vectors.dtype == np.float32
    assert vectors.shape == wanted.shape == (5, embedder.width)
    assert (vectors * wanted).sum(1).min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_source_and_weights_are_absolute_paths(
    conv4: Path, fitted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(conv4.parent)
    embedder = Embedder.load("fewtune_conv4", weights=conv4.name, device="cpu")
    assert (embedder.source, embedder.weights) == ("fewtune_conv4", str(conv4))
    monkeypatch.chdir(fitted[0].parent)
    of_run = Embedder.load("run", device="cpu")
    assert (of_run.source, of_run.weights) == (str(fitted[0]), None)
    shipped = Embedder.load("omniglot", device="cpu")
    assert (shipped.source, shipped.weights) == ("omniglot", None)


def test_the_fingerprint_is_of_weights_and_preprocessing_alone(conv4: Path, tmp_path: Path) -> None:
    embedder = Embedder.load("fewtune_conv4", weights=conv4, device="cpu")
    copied = Path(shutil.copy(conv4, tmp_path / "copied.safetensors"))
    assert Embedder.load("fewtune_conv4", weights=copied, device="cpu").fingerprint == embedder.fingerprint
    others = weights_of("fewtune_conv4", tmp_path / "others.safetensors", seed=1)
    assert Embedder.load("fewtune_conv4", weights=others, device="cpu").fingerprint != embedder.fingerprint
    assert embedder.spec.preprocessing is not None
    for change in ({"size": 36}, {"crop_pct": 0.5}, {"mean": (0.0, 0.0, 0.0)}, {"interpolation": "bilinear"}):
        preprocessing = replace(embedder.spec.preprocessing, **change)
        seen_otherwise = Embedder(embedder.network, replace(embedder.spec, preprocessing=preprocessing), device="cpu")
        assert seen_otherwise.fingerprint != embedder.fingerprint, change


def test_drawings_are_embedded_by_a_timm_model_as_ink_on_paper(conv4: Path) -> None:
    embedder = Embedder.load("fewtune_conv4", weights=conv4, device="cpu")
    vectors = embedder.embed_drawings(drawings(4))
    assert vectors.shape == (4, embedder.width)
    np.testing.assert_array_equal(vectors.numpy(), embedder.embed([255 - character(number) for number in range(4)]))


def test_weights_of_another_network_are_refused(conv4: Path, tmp_path: Path) -> None:
    refused("resnet10t", "conv4.safetensors .* does not fit resnet10t", weights=conv4)
    refused("fewtune_conv4", "absent.safetensors .* is not a file", weights=tmp_path / "absent.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    refused("fewtune_conv4", "junk.safetensors", weights=tmp_path / "junk.safetensors")


def test_views_are_refused_for_timm_models(conv4: Path, fitted: tuple[Path, Path]) -> None:
    refused("fewtune_conv4", "--views are for encoders that fewshot trained", weights=conv4, views=2)
    refused(fitted[0], "--views are for encoders that fewshot trained", views=2)


@pytest.mark.parametrize("name", ["resnot50", "", ".", "Omniglot", "hf_hub:someone/model"])
def test_unknown_names_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(name, "is no encoder: give omniglot, the folder of a run of fewshot train or finetune fit, or a model")


def test_a_file_as_source_is_refused(conv4: Path) -> None:
    refused(conv4, "is no encoder")


# --- runs of finetune fit ---------------------------------------------------------------------------------------------


def test_vectors_of_a_finetune_run_are_the_normalised_features_of_its_backbone(fitted: tuple[Path, Path]) -> None:
    run, folder = fitted
    classifier = finetune.load(run, device="cpu", precision="float32")
    paths = list_unlabelled([folder])
    backbone, preprocessing = classifier.network.backbone, classifier.preprocessing
    features = run_frozen(classifier.fabric, backbone, preprocessing, classifier.pictures(paths)).values[:, 0]
    embedder = Embedder.load(run, device="cpu")
    np.testing.assert_allclose(embedder.embed(folder), F.normalize(features, dim=1).numpy(), atol=1e-6)
    assert embedder.fingerprint == Embedder.load(str(run), device="cpu").fingerprint
    published = Embedder.load("fewtune_conv4", device="cpu")
    assert embedder.fingerprint != published.fingerprint


def test_a_run_keeps_its_own_preprocessing(fitted: tuple[Path, Path]) -> None:
    config = json.loads((fitted[0] / "config.json").read_text())
    config["preprocessing"] |= {"crop_pct": 0.5, "interpolation": "bilinear"}
    (fitted[0] / "config.json").write_text(json.dumps(config))
    preprocessing = Embedder.load(fitted[0], device="cpu").spec.preprocessing
    assert preprocessing == finetune.load(fitted[0], device="cpu").preprocessing
    assert preprocessing is not None
    assert preprocessing.crop_pct == 0.5


def test_a_run_keeps_its_image_size(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(classes={"blue": 12, "green": 12})
    finetune.fit(folder, tmp_path / "run", strategy="head", image_size=42, **SMALL)
    embedder = Embedder.load(tmp_path / "run", device="cpu")
    assert embedder.spec.side == 42
    assert np.isfinite(embedder.embed(folder)).all()


def test_weights_given_with_a_run_are_refused(conv4: Path, fitted: tuple[Path, Path]) -> None:
    refused(fitted[0], "--weights are for timm's models; .* has its own", weights=conv4)
    refused("omniglot", "--weights are for timm's models; omniglot has its own", weights=conv4)


def test_a_finetune_run_that_has_not_finished_is_refused(fitted: tuple[Path, Path]) -> None:
    config = json.loads((fitted[0] / "config.json").read_text())
    del config["classes"]
    (fitted[0] / "config.json").write_text(json.dumps(config))
    refused(fitted[0], "has not finished; continue it with: finetune fit")


def test_a_damaged_finetune_run_is_named(fitted: tuple[Path, Path]) -> None:
    weights = fitted[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused(fitted[0], "model.safetensors")
    weights.unlink()
    refused(fitted[0], "model.safetensors")
    for config in ('{"config": 3}', '{"config": {"backbone": "resnot"}, "classes": [], "format": 1}', "[]", "{"):
        (fitted[0] / "config.json").write_text(config)
        refused(fitted[0], "config.json|resnot")
