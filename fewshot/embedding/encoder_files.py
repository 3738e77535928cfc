"""Encoders read from files: the one that ships, runs of `fewshot train` and `finetune fit`, timm models."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from fewshot.embedding.encoder import EncoderSpec, create
from fewshot.omniglot.dataset import Character
from finetune.classifier.classifier import load as load_classifier
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError
from finetune.files.reading import read_json, read_tensors
from finetune.models.backbone import Backbone
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display

FORMAT = 1
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SHIPPED = {"omniglot": Path(__file__).parent / "weights" / "omniglot"}


@dataclass(frozen=True, eq=False)
class StoredEncoder:
    """An encoder as its files hold it.

    Attributes:
        network: With its weights, on the CPU.
        spec: How pictures become the network's input.
        source, weights: Where it was read from; folders and files are absolute paths.
        trained_on: Omniglot's characters that it was trained on.
        fingerprint: Of weights, network and preprocessing; None where no file says it.
        verification, recognition: Calibrations that it carries.
    """

    network: nn.Module
    spec: EncoderSpec
    source: str = ""
    weights: str | None = None
    trained_on: frozenset[Character] = frozenset()
    fingerprint: str | None = None
    verification: dict[str, Any] | None = None
    recognition: dict[str, Any] | None = None


def read_encoder(source: str | Path, weights: str | Path | None, display: Display) -> StoredEncoder:
    """Read the encoder that `Embedder.load` describes by `source` and `weights`.

    Raises:
        InputError: If there is no such source, or it holds no finished run.
    """
    name = str(source)
    folder = SHIPPED.get(name, Path(source))
    if (folder / CONFIG_FILE).is_file():
        if weights is not None:
            raise InputError(f"--weights are for timm's models; {source} has its own")
        return replace(_read_run(folder), source=name if name in SHIPPED else os.path.abspath(folder))
    if folder.exists() or not timm.is_model(name):
        raise InputError(
            f"{source} is no encoder: give {', '.join(SHIPPED)}, the folder of a run of fewshot train or finetune fit, "
            "or a model that timm knows"
        )
    backbone = Backbone(name)
    file = None if weights is None else str(weights)
    load_pretrained(backbone, file, display, option="--model", instead=[f"--model {each}" for each in SHIPPED])
    spec = _crop_spec(name, backbone.preprocessing)
    return StoredEncoder(backbone, spec, name, None if weights is None else os.path.abspath(weights))


def fingerprint_of(network: nn.Module, spec: EncoderSpec) -> str:
    """12 hexadecimal digits of weights, network and preprocessing."""
    found = hashlib.sha256(repr(sorted(spec.to_dict().items())).encode())
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def characters_to_json(characters: Collection[Character]) -> dict[str, list[int]]:
    """Alphabet -> the numbers of its characters."""
    found: dict[str, list[int]] = {}
    for alphabet, number in sorted(characters):
        found.setdefault(alphabet, []).append(number)
    return found


def characters_from_json(saved: dict[str, list[int]]) -> frozenset[Character]:
    """The inverse of `characters_to_json`."""
    return frozenset(Character(alphabet, number) for alphabet, numbers in saved.items() for number in numbers)


def _read_run(folder: Path) -> StoredEncoder:
    config = read_json(folder / CONFIG_FILE)
    if isinstance(config, dict) and isinstance(config.get("config"), dict) and "backbone" in config["config"]:
        classifier = load_classifier(folder, device="cpu", precision="float32")
        backbone = classifier.network.backbone
        # The run's own preprocessing: a later timm may change that of the model.
        return StoredEncoder(backbone, _crop_spec(backbone.name, classifier.preprocessing))
    return _read_siamese_run(folder, config)


def _crop_spec(name: str, preprocessing: Preprocessing) -> EncoderSpec:
    return EncoderSpec(name, preprocessing.size, "crop", preprocessing)


def _read_siamese_run(folder: Path, config: Any) -> StoredEncoder:
    """The encoder of a finished run of `fewshot train`."""
    path = folder / CONFIG_FILE
    if not isinstance(config, dict) or config.get("format") != FORMAT or "recipe" not in config:
        raise InputError(f"{path} is not of a run that this version can read")
    if "spec" not in config or not (folder / WEIGHTS_FILE).is_file():
        raise InputError(f"the run in {folder} has not finished; continue it with --resume")
    try:
        spec, trained_on = EncoderSpec(**config["spec"]), characters_from_json(config["trained_on"])
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not of a run that this version can read") from error
    network = create(spec)
    tensors = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in read_tensors(folder / WEIGHTS_FILE).items()
    }
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{folder / WEIGHTS_FILE} does not fit {spec.network}; it may be damaged") from error
    fingerprint = fingerprint_of(network, spec)
    if fingerprint != config.get("fingerprint"):
        raise InputError(f"{folder / WEIGHTS_FILE} does not match {path}; one of them may be damaged")
    return StoredEncoder(
        network,
        spec,
        trained_on=trained_on,
        fingerprint=fingerprint,
        verification=config.get("verification"),
        recognition=config.get("recognition"),
    )
