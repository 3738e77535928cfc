"""Encoders read from files: the one that ships, runs of `fewshot train` and `finetune fit`, timm models."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from msgspec import Meta
from torch import nn

from fewshot.embedding.encoder import EncoderSpec, create, embedding_width
from fewshot.omniglot.dataset import Character
from finetune.classifier.loading import load as load_classifier
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError
from finetune.files.reading import as_type, read_json, read_tensors
from finetune.files.tensors import check_fits
from finetune.metrics import Count
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


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a run was computed with: device, precision, version of torch."""

    device: str
    precision: str
    torch: str


@dataclass(frozen=True, kw_only=True)
class SiameseRun:
    """config.json of a run of `fewshot train`.

    A run that has not finished lacks spec. recipe: the options. groups: number of groups in a batch, which the run
    chose where `alphabets` is not among the options.
    """

    format: Literal[1]
    spec: EncoderSpec | None = None
    fingerprint: str | None = None
    trained_on: dict[str, tuple[Count, ...]] = field(default_factory=dict)
    verification: dict[str, Any] | None = None
    recognition: dict[str, Any] | None = None
    source: str | None = None
    split: str | None = None
    everything: bool = False
    examples: Count | None = None
    self_supervised: bool = False
    recipe: dict[str, str | int | float | bool | None]
    steps: Annotated[int, Meta(ge=1, le=10**12)] | None = None
    groups: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    engine: Engine = Engine(device="", precision="", torch="")


def read_siamese_config(folder: Path) -> tuple[SiameseRun, dict[str, Any]]:
    """config.json of a run of `fewshot train`, checked, and all its values. InputError for another or a damaged one."""
    path = folder / CONFIG_FILE
    values = read_json(path)
    if not isinstance(values, dict) or values.get("format") != FORMAT or "recipe" not in values:
        raise InputError(f"{path} is not of a run of fewshot train that this version can read")
    return as_type(values, SiameseRun, str(path)), values


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


def characters_from_json(saved: Mapping[str, Sequence[int]]) -> frozenset[Character]:
    """The inverse of `characters_to_json`."""
    return frozenset(Character(alphabet, number) for alphabet, numbers in saved.items() for number in numbers)


def _read_run(folder: Path) -> StoredEncoder:
    config = read_json(folder / CONFIG_FILE)
    if isinstance(config, dict) and isinstance(config.get("config"), dict) and "backbone" in config["config"]:
        classifier = load_classifier(folder, device="cpu", precision="float32")
        backbone = classifier.network.backbone
        # The run's own preprocessing: a later timm may change that of the model.
        return StoredEncoder(backbone, _crop_spec(backbone.name, classifier.preprocessing))
    return _read_siamese_run(folder)


def _crop_spec(name: str, preprocessing: Preprocessing) -> EncoderSpec:
    return EncoderSpec(name, preprocessing.size, "crop", preprocessing)


def _read_siamese_run(folder: Path) -> StoredEncoder:
    """The encoder of a finished run of `fewshot train`."""
    path, weights = folder / CONFIG_FILE, folder / WEIGHTS_FILE
    run, values = read_siamese_config(folder)
    spec = run.spec
    if spec is None or not weights.is_file():
        raise InputError(f"the run in {folder} has not finished; continue it with --resume")
    if "trained_on" not in values:
        raise InputError(f"{path} is not of a run of fewshot train that this version can read")
    network = create(spec)
    tensors = read_tensors(weights)
    check_fits(tensors, network.state_dict(), f"{weights} does not fit {spec.network}; it may be damaged")
    network.load_state_dict(tensors)
    try:
        embedding_width(network, spec)
    except InputError as error:
        raise InputError(f"{path} may be damaged: spec.side: {error}") from error
    fingerprint = fingerprint_of(network, spec)
    if fingerprint != run.fingerprint:
        raise InputError(f"{weights} does not match {path}; one of them may be damaged")
    return StoredEncoder(
        network,
        spec,
        trained_on=characters_from_json(run.trained_on),
        fingerprint=fingerprint,
        verification=run.verification,
        recognition=run.recognition,
    )
